"""Reads the decisions that were recorded: newest first, filtered, one by one."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mecroute.errors import InvalidRequestError, StateError
from mecroute.state.encoding import unpack
from mecroute.state.schema import open_database

_COLUMNS = (
    *("seq", "id", "at", "target", "tier", "model", "policy", "complexity", "prompt_tokens"),
    *("output_tokens", "ttft_ms", "latency_ms", "cost_usd", "error", "cache", "propensity", "explored"),
    "regret",
)

_OF_ONE = "SELECT * FROM evidence WHERE substr(request_id, 1, ?) = ? ORDER BY rowid"


@dataclass(frozen=True, slots=True)
class Filter:
    """Which decisions are meant. Times in Unix seconds; None takes all.

    Args:
        since, until: when they ended.
        target: the id of the target that answered, or a beginning of it (`mec`, `mec/node-1`).
        policy: under which they were made.
        errors: True takes only those that failed, False only those that did not.
        explored: True takes only those that explored.
    """

    since: float | None = None
    until: float | None = None
    target: str | None = None
    policy: str | None = None
    errors: bool | None = None
    explored: bool | None = None

    def where(self) -> tuple[str, list[Any]]:
        """The condition in SQL, with its values."""
        parts: list[tuple[str, list[Any]]] = []
        if self.since is not None:
            parts.append(("at >= ?", [self.since]))
        if self.until is not None:
            parts.append(("at < ?", [self.until]))
        if self.target is not None:
            beginning = self.target.rstrip("/") + "/"
            parts.append(
                ("(target = ? OR substr(target, 1, ?) = ?)", [self.target, len(beginning), beginning])
            )
        if self.policy is not None:
            parts.append(("policy = ?", [self.policy]))
        if self.errors is not None:
            parts.append(("error IS NOT NULL" if self.errors else "error IS NULL", []))
        if self.explored is not None:
            parts.append(("explored = ?", [int(self.explored)]))
        if not parts:
            return "", []
        return " WHERE " + " AND ".join(text for text, _ in parts), [v for _, vs in parts for v in vs]


class History:
    """The recorded decisions of one state database. Every call opens the file anew.

    Raises (every call):
        StateError: the file cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def count(self, wanted: Filter) -> int:
        """How many decisions there are of that kind."""
        where, values = wanted.where()
        with self._opened() as connection:
            if connection is None:
                return 0
            return int(connection.execute(f"SELECT count(*) FROM decisions{where}", values).fetchone()[0])  # noqa: S608 - our own words, values bound

    def rows(self, wanted: Filter, limit: int) -> list[dict[str, Any]]:
        """The newest decisions of that kind, newest first, column by column."""
        where, values = wanted.where()
        query = f"SELECT {', '.join(_COLUMNS)} FROM decisions{where} ORDER BY seq DESC LIMIT ?"  # noqa: S608
        with self._opened() as connection:
            if connection is None:
                return []
            return [_row(found) for found in connection.execute(query, (*values, limit))]

    def details(self, wanted: Filter, limit: int) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
        """The same, oldest first, each with everything that was kept; what is damaged is left out."""
        where, values = wanted.where()
        inner = f"SELECT {', '.join(_COLUMNS)}, detail FROM decisions{where} ORDER BY seq DESC LIMIT ?"  # noqa: S608
        with self._opened() as connection:
            if connection is None:
                return
            for *columns, detail in connection.execute(
                f"SELECT * FROM ({inner}) ORDER BY seq",  # noqa: S608
                (*values, limit),
            ):
                try:
                    yield _row(columns), unpack(detail)
                except ValueError:
                    continue

    def judgements(self, wanted: Filter) -> dict[str, list[dict[str, Any]]]:
        """What was said of the answers to such requests, by request id, oldest first."""
        where, values = wanted.where()
        query = f"SELECT * FROM evidence WHERE request_id IN (SELECT id FROM decisions{where}) ORDER BY rowid"  # noqa: S608
        found: dict[str, list[dict[str, Any]]] = {}
        with self._opened() as connection:
            if connection is not None:
                for row in connection.execute(query, values):
                    found.setdefault(row[0], []).append(_judgement(row))
        return found

    def get(self, id: str) -> tuple[dict[str, Any], dict[str, Any], list[dict[str, Any]]]:
        """One decision by its id or an unambiguous beginning of it: columns, detail, judgements.

        Raises:
            InvalidRequestError: there is none, or there are several.
        """
        query = f"SELECT {', '.join(_COLUMNS)}, detail FROM decisions WHERE substr(id, 1, ?) = ? LIMIT 2"  # noqa: S608
        with self._opened() as connection:
            rows = [] if connection is None else connection.execute(query, (len(id), id)).fetchall()
            judged = [] if connection is None else connection.execute(_OF_ONE, (len(id), id)).fetchall()
        exact = [row for row in rows if row[1] == id]
        if len(exact or rows) != 1:
            raise InvalidRequestError(
                f"several decisions begin with '{id}'" if rows else f"no decision '{id}' is recorded",
                hint="`mecroute decisions list` shows their ids",
            )
        *columns, detail = (exact or rows)[0]
        row = _row(columns)
        try:
            return row, unpack(detail), [_judgement(j) for j in judged if j[0] == row["id"]]
        except ValueError as error:
            raise StateError(f"what was kept of '{row['id']}' is damaged: {error}") from error

    @contextmanager
    def _opened(self) -> Iterator[sqlite3.Connection | None]:
        if not self.path.exists():
            yield None
            return
        try:
            with closing(open_database(self.path)) as connection:
                yield connection
        except (OSError, sqlite3.Error) as error:
            raise StateError(
                f"the decisions in {self.path} cannot be read: {error}",
                hint="end what locks the file, or move it away to start afresh",
            ) from error


def _row(values: Any) -> dict[str, Any]:
    row = dict(zip(_COLUMNS, values, strict=True))
    row["explored"] = bool(row["explored"])
    return row


def _judgement(values: Any) -> dict[str, Any]:
    names = ("request_id", "at", "source", "target", "score", "weight", "note")
    return dict(zip(names, values, strict=True))
