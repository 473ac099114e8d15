"""The program: builds the command tree, runs one command, and turns what went wrong into an exit code."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

from mecroute_cli.output import Output

#: Options that may stand anywhere on the line; the value says whether an argument follows.
_ANYWHERE = {"--json": False, "--config": True}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: the arguments after the program's name; default: the process's own.

    Returns:
        the exit code: 0 ok, 1 an expected failure, 2 used wrongly, 130 interrupted.
    """
    arguments = hoist(sys.argv[1:] if argv is None else argv)
    output = Output(as_json="--json" in arguments)
    try:
        code = _run(arguments, output)
        output.close()
    except BrokenPipeError:
        # The reader (`head`, `less`) has gone. Python would complain again when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return code


def _run(arguments: list[str], output: Output) -> int:
    from typer.main import get_command

    from mecroute_cli.app import build_app
    from mecroute_cli.failures import INTERRUPTED, explain
    from mecroute_cli.session import Session

    try:
        session = Session(output, _config_path(arguments))
        result = get_command(build_app()).main(
            arguments, prog_name="mecroute", standalone_mode=False, obj=session
        )
        code = result if isinstance(result, int) else 0
        if code != INTERRUPTED:
            return code
        error: BaseException = KeyboardInterrupt()  # typer turned it into an exit code
    except BrokenPipeError:
        raise
    except (Exception, KeyboardInterrupt) as raised:  # noqa: BLE001 - the edge: every failure gets a sentence
        error = raised
    failure = explain(error)
    if os.environ.get("MECROUTE_DEBUG") == "1":
        traceback.print_exception(error)
    if failure.message:
        output.error(code=failure.code, message=failure.message, hint=failure.hint)
    return failure.exit_code


def hoist(argv: Sequence[str]) -> list[str]:
    """Move the options that may stand anywhere to the front; what follows `--` stays as it is."""
    front: list[str] = []
    rest: list[str] = []
    words = iter(argv)
    for word in words:
        name = word.partition("=")[0]
        if word == "--":
            rest += [word, *words]
        elif name not in _ANYWHERE:
            rest.append(word)
        elif _ANYWHERE[name] and "=" not in word:
            front += [word, *([value] if (value := next(words, None)) is not None else [])]
        else:
            front.append(word)
    return [*front, *rest]


def _config_path(arguments: Sequence[str]) -> Path | None:
    for position, word in enumerate(arguments):
        name, equals, value = word.partition("=")
        if name == "--config":
            following = arguments[position + 1 : position + 2]
            path = value if equals else (following[0] if following else "")
            return Path(path) if path else None
    return None
