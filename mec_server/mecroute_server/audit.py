"""The audit log: one line of JSON for each attempt to change the node, by whom and with what result."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import MutableMapping
from datetime import UTC, datetime
from io import TextIOWrapper
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Any

from mecroute.errors import ConfigError
from mecroute_server.auth import scopes_for
from mecroute_server.keys import ApiKey, KeyScope

_log = logging.getLogger(__name__)
_READS = frozenset({"GET", "HEAD", "OPTIONS"})
#: What a caller may have written into its request is cut off here.
_MAX_TEXT = 256


class AuditLog:
    """Appends to a file of mode 0600, which is rotated by size: `audit.jsonl`, `audit.jsonl.1` and so on.

    Only callers with an accepted key are recorded: strangers could otherwise push out what others did. They
    are counted in the metrics.

    Args:
        path: the file; its folder must exist.
        max_bytes: size at which it is rotated.
        keep: rotated files that are kept.

    Raises:
        ConfigError: the file cannot be written.
    """

    def __init__(self, path: Path, *, max_bytes: int = 10_000_000, keep: int = 5) -> None:
        try:
            self._file = _PrivateFile(path, maxBytes=max_bytes, backupCount=keep, encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"cannot write the audit log {path}: {error.strerror}") from error

    def record(
        self, scope: MutableMapping[str, Any], caller: ApiKey, *, status: int, code: str | None
    ) -> None:
        """Record a request that has been answered, if it is one to record.

        Args:
            scope: the request's ASGI scope. A route may name what it acted on in `state["audit_target"]`.
            caller: whose key it came with.
            status: of the answer; 499 where the caller had left.
            code: the error's code, if it was refused.
        """
        method, path = scope["method"], scope["path"]
        if method in _READS or scopes_for(method, path) == {KeyScope.INFER}:
            return
        state = scope.get("state", {})
        target = state.get("audit_target") or scope.get("path_params", {}).get("ref")
        client = scope.get("client")
        entry = {
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "key": caller.id,
            "key_name": caller.name,
            "action": f"{method} {getattr(scope.get('route'), 'path', path)}"[:_MAX_TEXT],
            "target": str(target)[:_MAX_TEXT] if target is not None else None,
            "result": "ok" if 200 <= status < 300 else code or "failed",
            "status": status,
            "client": client[0] if client else None,
            "request_id": state.get("request_id"),
        }
        try:
            self._file.write_line(json.dumps(entry))
        except OSError as error:  # a full disk must not take the node down; the log is then the last record
            _log.error("the audit log cannot be written (%s): %s", error.strerror, entry)

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class _PrivateFile(RotatingFileHandler):
    """The standard library's rotation, for a file that only its owner may read."""

    def write_line(self, line: str) -> None:
        """Append a line, rotating first where it would be too much; errors are the caller's."""
        record = logging.makeLogRecord({"msg": line})
        if self.shouldRollover(record):
            self.doRollover()
        assert isinstance(self.stream, TextIOWrapper)
        self.stream.write(line + "\n")
        self.stream.flush()

    def _open(self) -> TextIOWrapper:
        file = os.open(self.baseFilename, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        return os.fdopen(file, "a", encoding="utf-8")
