"""Progress on stderr: a rich bar for a person, a single line for a log."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

from mecroute_cli import formats

if TYPE_CHECKING:
    from mecroute_cli.output import Output, Unit


class Update(Protocol):
    """Reports how far something is; safe to call from any thread."""

    def __call__(self, done: float, total: float, note: str = "") -> None: ...


@contextmanager
def bar(output: Output, description: str, unit: Unit) -> Iterator[Update]:
    """Show progress while the block runs; the bar's last state stays on the screen."""
    if output.interactive:
        with _rich_bar(output, description, unit) as update:
            yield update
    else:
        with _plain_lines(output, description, unit) as update:
            yield update


@contextmanager
def _rich_bar(output: Output, description: str, unit: Unit) -> Iterator[Update]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        Progress,
        ProgressColumn,
        TaskProgressColumn,
        TextColumn,
        TimeElapsedColumn,
    )
    from rich.text import Text

    counted = False

    class Amount(ProgressColumn):
        def render(self, task: Any) -> Text:
            if unit == "share" or not counted:
                return Text("")
            if unit == "steps":
                return Text(f"{task.completed:.0f}/{task.total:.0f}")
            speed = f"  {formats.size(task.speed)}/s" if task.speed else ""
            return Text(f"{formats.size(task.completed)} of {formats.size(task.total)}{speed}")

    console = Console(file=output.stderr, highlight=False)
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        TaskProgressColumn(),
        Amount(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[note]}", markup=False),
    )
    with Progress(*columns, console=console, refresh_per_second=8) as progress:
        task = progress.add_task(description, total=None, note="")

        def update(done: float, total: float, note: str = "") -> None:
            nonlocal counted
            counted = counted or bool(total)
            if total or not counted:
                progress.update(task, completed=done, total=total or None, note=note)
            else:
                progress.update(task, note=note)  # the count is over: what follows is a state only

        yield update
        if not counted:
            # Nothing to count: the bar must not keep pulsing as if it still ran.
            progress.update(task, completed=1, total=1)


@contextmanager
def _plain_lines(output: Output, description: str, unit: Unit) -> Iterator[Update]:
    started = time.monotonic()
    last_note, last_total = "", 0.0

    def update(done: float, total: float, note: str = "") -> None:  # noqa: ARG001 - a log counts nothing
        nonlocal last_note, last_total
        last_total = total
        if note and note != last_note:
            last_note = note
            output.note(f"{description}: {note}")

    yield update
    amount = f", {formats.size(last_total)}" if unit == "bytes" and last_total else ""
    output.note(f"{description}: done in {time.monotonic() - started:.1f} s{amount}")
