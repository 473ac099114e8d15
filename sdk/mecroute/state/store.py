"""Decisions, outcomes, evidence and what was learned, in SQLite. Prompts and answers are never stored.

A database that cannot be used (locked, corrupt, read-only) never stops a request: it is reported once
and the client goes on without it. What a locked one could not take is kept for a while and written later.
"""

from __future__ import annotations

import json
import logging
import sqlite3
import threading
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from mecroute.config.schema import StateConfig
from mecroute.errors import StateError
from mecroute.state.encoding import unpack
from mecroute.state.schema import INSERT_DECISION, INSERT_EVIDENCE, INSERT_LEARNED, open_database
from mecroute_registry.paths import state_dir

_LOG = logging.getLogger("mecroute.state")
_PRUNE_EVERY = 500
_WAITING = 40  # batches that a locked database may fall behind
_SHARE_PRUNED = 10  # one tenth goes when the file has grown too large
_GENERATION = ("meta", "generation")


def database_path(config: StateConfig) -> Path:
    """The database that a configuration names."""
    return config.path.expanduser() if config.path is not None else state_dir() / "state.sqlite3"


class DecisionRow(NamedTuple):
    """One finished request, column by column; `detail` is what `state.encoding` makes of the rest."""

    id: str
    at: float
    target: str
    tier: str
    model: str
    policy: str
    complexity: float
    prompt_tokens: int
    output_tokens: int
    ttft_ms: float | None
    latency_ms: float
    cost_usd: float
    error: str | None
    cache: str | None
    propensity: float
    explored: int
    regret: float | None
    detail: bytes


class EvidenceRow(NamedTuple):
    """One judgement of an answer: score and weight 0..1; source `feedback`, `signals` or `shadow`."""

    request_id: str
    at: float
    source: str
    target: str
    score: float
    weight: float
    note: str


class LearnedRow(NamedTuple):
    """One thing that was learned, as a JSON object under a kind and a name."""

    kind: str
    name: str
    at: float
    value: Mapping[str, Any]


@dataclass(slots=True)
class Batch:
    """What is written in one transaction."""

    decisions: list[DecisionRow] = field(default_factory=list)
    evidence: list[EvidenceRow] = field(default_factory=list)
    learned: list[LearnedRow] = field(default_factory=list)


class StateStore:
    """Reads and writes the database. Thread-safe; every call may wait for a disk.

    Args:
        path: the SQLite file; default: the user state folder.
        enabled: False keeps nothing.
        max_decisions: the newest that are kept.
        max_bytes: size of the file beyond which the oldest decisions go.
    """

    def __init__(
        self,
        path: Path | None = None,
        *,
        enabled: bool = True,
        max_decisions: int = 50_000,
        max_bytes: int = 100_000_000,
    ) -> None:
        self.path = path or state_dir() / "state.sqlite3"
        self._max_decisions = max_decisions
        self._max_bytes = max_bytes
        self._working = enabled
        self._lock = threading.RLock()
        self._connection: sqlite3.Connection | None = None
        self._waiting: deque[Batch] = deque(maxlen=_WAITING)
        self._since_pruned = _PRUNE_EVERY
        self._said_locked = False

    @property
    def working(self) -> bool:
        """Whether records are being kept."""
        return self._working

    def write(self, batch: Batch) -> None:
        """Write a batch and whatever earlier ones a locked database could not take."""
        with self._lock:
            if not self._working:
                return
            self._waiting.append(batch)
            try:
                connection = self._open()
                while self._waiting:
                    self._write(connection, self._waiting[0])
                    self._waiting.popleft()
                self._said_locked = False
            except (OSError, sqlite3.Error, StateError) as error:
                self._failed(error)

    def has(self, request_id: str) -> bool:
        """Whether a request is in the database."""
        return bool(self._read("SELECT 1 FROM decisions WHERE id = ?", (request_id,)))

    def detail(self, request_id: str) -> dict[str, Any] | None:
        """Everything kept of one request; None when it is not there."""
        rows = self._read("SELECT detail FROM decisions WHERE id = ?", (request_id,))
        try:
            return unpack(rows[0][0]) if rows else None
        except ValueError:
            return None

    def feedback_of(self, request_id: str) -> list[float]:
        """Every score that a person gave to one request, oldest first."""
        rows = self._read(
            "SELECT score FROM evidence WHERE request_id = ? AND source = 'feedback' ORDER BY rowid",
            (request_id,),
        )
        return [float(row[0]) for row in rows]

    def learned(self) -> list[LearnedRow]:
        """Everything that was learned; nothing before the first run."""
        return self.restored()[1]

    def restored(self) -> tuple[int, list[LearnedRow]]:
        """The generation and everything that was learned, in one look at the file."""
        generation, found = 0, []
        for kind, name, at, text in self._read(
            "SELECT kind, name, at, value FROM learned ORDER BY kind, name", ()
        ):
            try:
                value = json.loads(text)
            except ValueError:
                continue  # one damaged entry is learned anew
            if not isinstance(value, dict):
                continue
            if (kind, name) == _GENERATION:
                generation = _count(value)
            else:
                found.append(LearnedRow(kind, name, at, value))
        return generation, found

    def generation(self) -> int:
        """How often what was learned has been thrown away; running clients then forget it as well."""
        rows = self._read("SELECT value FROM learned WHERE kind = ? AND name = ?", _GENERATION)
        try:
            return _count(json.loads(rows[0][0])) if rows else 0
        except (TypeError, ValueError):
            return 0

    def forget(self, kinds: Iterable[str], target: str | None = None) -> int:
        """Throw away what was learned of these kinds, of one target or of all.

        Returns:
            how many entries went.

        Raises:
            StateError: the database cannot be used.
        """
        wanted = list(kinds)
        marks = ", ".join("?" * len(wanted))
        query, values = f"DELETE FROM learned WHERE kind IN ({marks})", [*wanted]  # noqa: S608 - marks only
        if target is not None:
            query += " AND (name = ? OR substr(name, 1, ?) = ?)"
            values += [target, len(target) + 1, f"{target}|"]  # type: ignore[list-item]
        with self._lock:
            count = self.generation() + 1
            try:
                connection = self._open()
                connection.execute("BEGIN IMMEDIATE")
                gone = connection.execute(query, values).rowcount
                connection.execute(INSERT_LEARNED, (*_GENERATION, 0.0, json.dumps({"count": count})))
                connection.execute("COMMIT")
            except (OSError, sqlite3.Error) as error:
                raise StateError(
                    f"{self.path} cannot be written: {error}", hint="end what holds it, and try again"
                ) from error
        return gone

    def close(self) -> None:
        """Close the file; later calls open it again."""
        with self._lock:
            if self._connection is not None:
                self._connection.close()
                self._connection = None

    def _open(self) -> sqlite3.Connection:
        if self._connection is None:
            self._connection = open_database(self.path)
        return self._connection

    def _write(self, connection: sqlite3.Connection, batch: Batch) -> None:
        connection.execute("BEGIN IMMEDIATE")
        try:
            connection.executemany(INSERT_DECISION, batch.decisions)
            connection.executemany(INSERT_EVIDENCE, batch.evidence)
            connection.executemany(
                INSERT_LEARNED, [(kind, name, at, json.dumps(v)) for kind, name, at, v in batch.learned]
            )
            self._since_pruned += len(batch.decisions)
            if self._since_pruned >= _PRUNE_EVERY:
                self._since_pruned = 0
                self._prune(connection)
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise

    def _prune(self, connection: sqlite3.Connection) -> None:
        """Keep the newest by arrival: a clock that once jumped ahead must not keep its rows forever."""
        (count,) = connection.execute("SELECT count(*) FROM decisions").fetchone()
        surplus = count - self._max_decisions
        pages, free, size = (
            connection.execute(f"PRAGMA {name}").fetchone()[0]
            for name in ("page_count", "freelist_count", "page_size")
        )
        if (pages - free) * size > self._max_bytes:
            surplus = max(surplus, count // _SHARE_PRUNED + 1)
        if surplus <= 0:
            return
        connection.execute(
            "DELETE FROM decisions WHERE seq IN (SELECT seq FROM decisions ORDER BY seq LIMIT ?)", (surplus,)
        )
        connection.execute("DELETE FROM evidence WHERE request_id NOT IN (SELECT id FROM decisions)")
        connection.execute("PRAGMA incremental_vacuum")

    def _read(self, query: str, values: tuple[Any, ...]) -> list[Any]:
        with self._lock:
            if not self._working or not self.path.exists():
                return []
            try:
                return self._open().execute(query, values).fetchall()
            except (OSError, sqlite3.Error, StateError) as error:
                self._failed(error)
                return []

    def _failed(self, error: Exception) -> None:
        code = getattr(error, "sqlite_errorcode", None)
        if code is not None and code & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            if not self._said_locked:
                self._said_locked = True
                _LOG.warning(
                    "the state database %s is locked by another program; routing goes on without it, and "
                    "records are written when it is free",
                    self.path,
                )
            return
        self._working = False
        self._waiting.clear()
        _LOG.warning(
            "the state database %s cannot be used (%s); routing goes on without it; "
            "move the file away to start afresh",
            self.path,
            error,
        )


def _count(value: object) -> int:
    """A generation as it was written; a damaged one counts as the first."""
    count = value.get("count") if isinstance(value, dict) else None
    return count if isinstance(count, int) else 0
