"""How the demo speaks: rich on a terminal, plain text elsewhere; stderr under `--json`."""

from __future__ import annotations

import re
import shutil
import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from mecroute_cli import tables
from mecroute_cli.output import Output
from mecroute_cli.tables import Column, Row

if TYPE_CHECKING:
    from rich.console import Console

_WIDTH = 96


class Screen:
    """Prints headings, plain words, tables and streamed answers. For one thread.

    Args:
        output: whose stdout carries the story, or whose stderr does under `--json`.
    """

    def __init__(self, output: Output) -> None:
        self.output = output
        self._stream = output.stderr if output.as_json else output.stdout
        self._column = 0
        self._width = min(_WIDTH, shutil.get_terminal_size().columns)
        self._console = _console_on(self._stream, self._width) if self._stream.isatty() else None

    def heading(self, title: str) -> None:
        """Begin a step."""
        if self._console is not None:
            self._console.print()
            self._console.rule(title, align="left", style="cyan")
        else:
            self._line(f"\n== {title} ==")

    def say(self, words: str) -> None:
        """Explain in plain words."""
        self._line(textwrap.fill(" ".join(words.split()), self._width))

    def label(self, words: str) -> None:
        """A short line that stands out, such as a question that is asked."""
        if self._console is not None:
            from rich.text import Text

            self._console.print(Text(words, style="bold"))
        else:
            self._line(words)

    def result(self, ok: bool, words: str) -> None:
        """Say whether something is as it should be."""
        mark = "ok" if ok else "FAILED"
        if self._console is not None:
            from rich.text import Text

            self._console.print(Text.assemble((f"{mark}: ", "green" if ok else "bold red"), words))
        else:
            self._line(f"{mark}: {words}")

    def facts(self, facts: Mapping[str, str]) -> None:
        """Label and value, one a line."""
        width = max(len(label) for label in facts)
        for label, value in facts.items():
            self._line(f"  {label.ljust(width)}  {value}")

    def table(self, rows: Sequence[Row], columns: Sequence[Column]) -> None:
        """Rows of values."""
        if self._stream.isatty():
            tables.print_rich(self._stream, rows, columns)
        else:
            tables.print_plain(self._stream, rows, columns)
        self._stream.flush()

    def piece(self, text: str) -> None:
        """A piece of an answer, as it comes; lines are broken between words."""
        for part in re.findall(r"\n|[^\S\n]+|\S+", text):
            if part == "\n":
                self._column = 0
            elif self._column + len(part) > self._width and not part.isspace():
                self._stream.write("\n")
                self._column = len(part)
            else:
                self._column += len(part)
            self._stream.write(part)
        self._stream.flush()

    def quote(self, text: str) -> None:
        """A text with its own lines, indented."""
        self._line(textwrap.indent(text, "  "))

    def blank(self) -> None:
        """An empty line."""
        self._line("")

    def _line(self, text: str) -> None:
        self._stream.write(text + "\n")
        self._stream.flush()


def _console_on(stream: object, width: int) -> Console:
    from rich.console import Console

    return Console(file=stream, width=width, highlight=False)  # type: ignore[arg-type]
