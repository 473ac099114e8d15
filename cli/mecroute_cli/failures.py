"""From an exception to what the user reads and the exit code: one ordered table.

Exit codes: 0 ok, 1 an expected failure, 2 the command was used wrongly, 130 interrupted.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

OK = 0
FAILED = 1
USAGE = 2
INTERRUPTED = 130


@dataclass(frozen=True, slots=True)
class Failure:
    """What went wrong, in the words of the command line."""

    code: str
    message: str
    hint: str | None
    exit_code: int


def _mecroute(exit_code: int) -> Callable[[Any], Failure]:
    return lambda error: Failure(error.code, error.message, error.hint, exit_code)


def _parsing(error: Any) -> Failure:
    context = getattr(error, "ctx", None)
    hint = f"{context.command_path} --help" if context is not None else "mecroute --help"
    return Failure("usage", error.format_message().rstrip("."), hint, USAGE)


def _missing_package(error: Any) -> Failure:
    return Failure(
        "missing_extra",
        f"the Python package '{error.name}' is not installed",
        "pip install 'mecroute[all]', or see `mecroute doctor` for the one extra it belongs to",
        FAILED,
    )


def _operating_system(error: Any) -> Failure:
    hints = {
        errno.ENOSPC: "free some space, or put the registry on another disk with MECROUTE_REGISTRY_PATH",
        errno.EACCES: "check the permissions of that path",
        errno.ENOENT: "check the path",
        errno.EROFS: "that file system is read-only: choose another path",
    }
    where = f": {error.filename}" if error.filename else ""
    reason = error.strerror or str(error) or type(error).__name__
    return Failure("os_error", f"{reason}{where}", hints.get(error.errno or 0), FAILED)


def _defect(error: BaseException) -> Failure:
    return Failure(
        "internal_error",
        f"mecroute itself failed: {type(error).__name__}: {error}",
        "run it again with MECROUTE_DEBUG=1 for the traceback, and report it with that",
        FAILED,
    )


def explain(error: BaseException) -> Failure:
    """Turn any exception into a failure; the first row of the table that matches wins."""
    # Imported here: `mecroute --help` must not pay for the error classes it does not need.
    from typer import Abort, TyperException

    from mecroute.errors import AuthenticationError, MecrouteError, MissingExtraError, UsageError

    table: tuple[tuple[type[BaseException], Callable[[Any], Failure]], ...] = (
        (KeyboardInterrupt, lambda _: Failure("interrupted", "interrupted", None, INTERRUPTED)),
        (
            Abort,
            lambda _: Failure("aborted", "not confirmed: nothing was changed", "--yes answers yes", FAILED),
        ),
        (TyperException, _parsing),
        (MissingExtraError, _mecroute(FAILED)),
        (AuthenticationError, _mecroute(FAILED)),
        (UsageError, _mecroute(USAGE)),
        (MecrouteError, _mecroute(FAILED)),
        (ModuleNotFoundError, _missing_package),
        (OSError, _operating_system),
    )
    for kind, describe in table:
        if isinstance(error, kind):
            return describe(error)
    return _defect(error)
