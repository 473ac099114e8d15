"""The one output object: data to stdout, everything else to stderr.

Under `--json`, stdout carries exactly one JSON object per command, whose members are the names given to
`table`, `dict` and `text`; an error is `{"error": {"code", "message", "hint"}}`.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal, TextIO

from mecroute_cli import formats, tables
from mecroute_cli.tables import Column, Row

if TYPE_CHECKING:
    from mecroute_cli.progress import Update

Unit = Literal["bytes", "steps", "share"]


class Output:
    """Prints what a command found. Not thread-safe, apart from a progress bar's updates.

    Args:
        as_json: print one JSON object in place of text.
        stdout, stderr: default: the process's own.
    """

    def __init__(
        self, *, as_json: bool = False, stdout: TextIO | None = None, stderr: TextIO | None = None
    ) -> None:
        self.as_json = as_json
        self.stdout = stdout or sys.stdout
        self.stderr = stderr or sys.stderr
        self._document: dict[str, Any] = {}

    @property
    def interactive(self) -> bool:
        """Whether a person watches stderr, so that bars and live lines make sense."""
        return self.stderr.isatty() and os.environ.get("TERM") != "dumb"

    def table(self, name: str, rows: Sequence[Row], columns: Sequence[Column], *, empty: str = "") -> None:
        """Print rows of JSON values; `empty` says on stderr that there are none and what to do."""
        if self.as_json:
            self._document[name] = list(rows)
        elif not rows:
            self.note(empty or f"no {name}")
        elif self.stdout.isatty() and os.environ.get("TERM") != "dumb":
            tables.print_rich(self.stdout, rows, columns)
        else:
            tables.print_plain(self.stdout, rows, columns)

    def dict(self, name: str, fields: Mapping[str, Any], shown: Mapping[str, str] | None = None) -> None:
        """Print one thing as `label  value` lines.

        Args:
            fields: JSON values, all of them part of the JSON document.
            shown: label to text, what a person sees; default: every field.
        """
        if self.as_json:
            self._document[name] = dict(fields)
            return
        lines = shown if shown is not None else {key: formats.text(value) for key, value in fields.items()}
        width = max((len(label) for label in lines), default=0)
        for label, value in lines.items():
            self.stdout.write(f"{label.ljust(width)}  {value}\n".rstrip(" "))

    def text(self, name: str, value: str) -> None:
        """Print a text of its own."""
        if self.as_json:
            self._document[name] = value
        else:
            self.stdout.write(value if value.endswith("\n") else value + "\n")

    def stream(self, piece: str) -> None:
        """Write a piece of an answer as it comes; nothing under `--json`."""
        if not self.as_json:
            self.stdout.write(piece)
            self.stdout.flush()

    def value(self, name: str, value: Any) -> None:
        """Add a value to the JSON document only."""
        if self.as_json:
            self._document[name] = value

    def note(self, message: str) -> None:
        """Say on stderr what is going on."""
        self.stderr.write(message + "\n")
        self.stderr.flush()

    def hint(self, message: str) -> None:
        """Say on stderr what can be done next."""
        self.note(f"→ {message}" if _can_encode(self.stderr, "→") else f"> {message}")

    def error(self, *, code: str, message: str, hint: str | None) -> None:
        """Print an error: on stderr for people, as the only JSON document on stdout for programs."""
        if self.as_json:
            self._document = {"error": {"code": code, "message": message, "hint": hint}}
            self.close()
            return
        self.note(f"error: {message}")
        if hint:
            self.hint(hint)

    @contextmanager
    def progress(self, description: str, *, unit: Unit = "bytes") -> Iterator[Update]:
        """A progress bar on a terminal, one line otherwise.

        Yields:
            a function `update(done, total, note="")`, safe to call from any thread.
        """
        from mecroute_cli.progress import bar

        with bar(self, description, unit) as update:
            yield update

    def close(self) -> None:
        """Write the JSON document, if one was asked for, and flush both streams."""
        if self.as_json and self._document:
            json.dump(self._document, self.stdout, indent=2, default=str, ensure_ascii=False)
            self.stdout.write("\n")
            self._document = {}
        self.stdout.flush()
        self.stderr.flush()


def _can_encode(stream: TextIO, sign: str) -> bool:
    try:
        sign.encode(stream.encoding or "utf-8")
    except UnicodeEncodeError:
        return False
    return True
