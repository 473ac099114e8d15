"""Builds the sub-applications of nouns (`mecroute models …`) with the same manners as the root."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import typer

from mecroute_cli.help import Command, Group


class Noun:
    """A noun with its verbs.

    Args:
        help: one sentence on the noun.
    """

    def __init__(self, help: str) -> None:
        self.app = typer.Typer(cls=Group, no_args_is_help=True, rich_markup_mode=None, help=help)

    def verb(self, name: str, function: Callable[..., Any], epilog: str) -> None:
        """Add one verb; `epilog` holds its examples."""
        self.app.command(name, cls=Command, epilog=epilog)(function)
