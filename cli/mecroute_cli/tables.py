"""Draws rows for a terminal (rich) or for a pipe (plain aligned columns, one row a line)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TextIO

from mecroute_cli import formats

Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a table.

    Args:
        key: the field of the row, which is also its name under `--json`.
        header: what a person reads above it.
        show: turns the field's value into text.
        right: aligned to the right, as numbers are; never broken.
        whole: never broken over two lines, as names that are copied.
    """

    key: str
    header: str
    show: Callable[[Any], str] = formats.text
    right: bool = False
    whole: bool = False


def cells(rows: Iterable[Row], columns: Sequence[Column]) -> list[list[str]]:
    """Every cell as text."""
    return [[column.show(row.get(column.key)) for column in columns] for row in rows]


def print_plain(stream: TextIO, rows: Sequence[Row], columns: Sequence[Column]) -> None:
    """Aligned columns without colour, wrapping or truncation: what grep and awk want."""
    grid = [[column.header for column in columns], *cells(rows, columns)]
    widths = [max(len(line[i]) for line in grid) for i in range(len(columns))]
    for line in grid:
        parts = [
            cell.rjust(width) if column.right else cell.ljust(width)
            for cell, width, column in zip(line, widths, columns, strict=True)
        ]
        stream.write("  ".join(parts).rstrip() + "\n")


def print_rich(stream: TextIO, rows: Sequence[Row], columns: Sequence[Column]) -> None:
    """The same with rich's drawing, fitted to the terminal."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(
        box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold", show_edge=False
    )
    for column in columns:
        # Numbers are narrow: a header of two words stands on two lines, so that more columns fit.
        header = column.header.replace(" ", "\n", 1) if column.right else column.header
        table.add_column(
            Text(header),
            justify="right" if column.right else "left",
            overflow="fold",
            no_wrap=column.right or column.whole,
        )
    for line in cells(rows, columns):
        table.add_row(*(Text(cell) for cell in line))
    console = Console(file=stream, highlight=False)
    if sum(_narrowest(rows, column) + 2 for column in columns) - 2 > console.width:
        print_plain(stream, rows, columns)  # too wide to be fitted without losing figures
    else:
        console.print(table)


def _narrowest(rows: Sequence[Row], column: Column) -> int:
    """The width below which rich would cut a column; one that may be folded has next to none."""
    if not (column.right or column.whole):
        return 6
    words = column.header.split(" ", 1) if column.right else [column.header]
    return max(len(text) for text in (*words, *(column.show(row.get(column.key)) for row in rows)))
