"""What the commands over recorded decisions share: which ones are meant, and where they are."""

from __future__ import annotations

import re
import time
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from mecroute.state.history import Filter, History
    from mecroute_cli.session import Session
    from mecroute_cli.tables import Column

_AGO = re.compile(r"^(\d+(?:\.\d+)?)(s|m|h|d|w)$")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}

Since = Annotated[
    str | None,
    typer.Option("--since", metavar="WHEN", help="From then on: 30m, 24h, 7d ago, or a date as 2026-11-23."),
]
Until = Annotated[str | None, typer.Option("--until", metavar="WHEN", help="Before then; as --since.")]

Target = Annotated[
    str | None, typer.Option("--target", metavar="TARGET", help="A target, or a beginning: mec, mec/node-1.")
]
MadeUnder = Annotated[str | None, typer.Option("--under", metavar="POLICY", help="Decided by this policy.")]


def moment(text: str | None, option: str) -> float | None:
    """Unix seconds; None where nothing was typed.

    Raises:
        InvalidRequestError: the text is neither a duration nor a date.
    """
    from mecroute.errors import InvalidRequestError

    if text is None:
        return None
    if match := _AGO.match(text.strip()):
        return time.time() - float(match[1]) * _SECONDS[match[2]]
    try:
        return datetime.fromisoformat(text.strip()).timestamp()
    except (ValueError, OverflowError) as error:
        raise InvalidRequestError(
            f"{option}: '{text}' is no moment", hint="30m, 24h or 7d ago, or 2026-11-23T08:00"
        ) from error


def history_of(session: Session) -> History:
    """The decisions of the database that the configuration names."""
    from mecroute.state.history import History
    from mecroute.state.store import database_path

    return History(database_path(session.config.state))


def filter_of(
    since: str | None,
    until: str | None,
    target: str | None,
    policy: str | None,
    *,
    errors: bool = False,
    explored: bool = False,
) -> Filter:
    """The filter that the options state."""
    from mecroute.state.history import Filter

    return Filter(
        since=moment(since, "--since"),
        until=moment(until, "--until"),
        target=target,
        policy=policy,
        errors=True if errors else None,
        explored=True if explored else None,
    )


def section(session: Session, name: str, rows: Any, columns: tuple[Column, ...]) -> None:
    """Print a table after an empty line, where there is anything in it."""
    if rows:
        session.output.text("", "")
        session.output.table(name, rows, columns)
