"""Help pages: commands in named groups, and examples that keep their line breaks.

Help is plain text on purpose: rich's help doubles the time of `mecroute --help` (0.14 s to 0.30 s here).
"""

from __future__ import annotations

from typing import Any

from typer.core import TyperCommand, TyperGroup

GLOBAL_OPTIONS = "Anywhere on the line: --json (one JSON object on stdout), --config PATH."


def examples(*lines: str) -> str:
    """The epilog of a command: one example a line."""
    return "\n".join(lines)


def _write_examples(epilog: str | None, formatter: Any) -> None:
    if not epilog:
        return
    with formatter.section("Examples"):
        for line in epilog.splitlines():
            formatter.write(f"{'':>{formatter.current_indent}}{line}\n")


class Command(TyperCommand):
    """A command whose epilog is a list of examples."""

    def format_epilog(self, ctx: Any, formatter: Any) -> None:  # noqa: ARG002 - typer's signature
        """Write the examples, then what every command takes."""
        _write_examples(self.epilog, formatter)
        formatter.write(f"\n{GLOBAL_OPTIONS}\n")


class Group(TyperGroup):
    """A group that lists its commands under the panel each one names."""

    def format_epilog(self, ctx: Any, formatter: Any) -> None:  # noqa: ARG002 - typer's signature
        """Write the examples."""
        _write_examples(self.epilog, formatter)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write the commands by panel, in the order in which they were added."""
        panels: dict[str, list[tuple[str, Any]]] = {}
        for name in self.list_commands(ctx):
            command: Any = self.get_command(ctx, name)
            if command is not None and not command.hidden:
                panel = command.rich_help_panel
                panels.setdefault(panel if isinstance(panel, str) else "Commands", []).append((name, command))
        width = max((len(name) for commands in panels.values() for name, _ in commands), default=0)
        for panel, commands in panels.items():
            with formatter.section(panel):
                limit = formatter.width - 6 - width
                formatter.write_dl([(name.ljust(width), c.get_short_help_str(limit)) for name, c in commands])
