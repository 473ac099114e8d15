"""Finished requests and feedback in SQLite. Prompts and answers are never stored.

A database that cannot be used (locked, corrupt, read-only) never stops a request: it is reported once
and the client goes on without it.
"""

from __future__ import annotations

import json
import logging
import queue
import sqlite3
import threading
import time
from pathlib import Path
from typing import Any

from mecroute.outcome import Provenance
from mecroute_registry.paths import state_dir

_LOG = logging.getLogger("mecroute.state")
_MAX_ROWS = 10_000
_PRUNE_EVERY = 500
_QUEUE = 10_000  # beyond this, records are dropped rather than holding up requests
_BUSY_TIMEOUT_S = 2.0
_LINGER_S = 0.2  # a busy process is woken a few times a second and not once per request
_SCHEMA = """
CREATE TABLE IF NOT EXISTS requests (
    id TEXT PRIMARY KEY, at REAL NOT NULL, target TEXT NOT NULL, tier TEXT NOT NULL, model TEXT NOT NULL,
    complexity REAL NOT NULL, ttft_ms REAL, latency_ms REAL NOT NULL, prompt_tokens INTEGER NOT NULL,
    output_tokens INTEGER NOT NULL, cost_usd REAL NOT NULL, error TEXT, provenance TEXT NOT NULL
);
CREATE INDEX IF NOT EXISTS requests_at ON requests (at);
CREATE TABLE IF NOT EXISTS feedback (
    request_id TEXT NOT NULL, at REAL NOT NULL, score REAL NOT NULL
);
"""
_INSERT = (
    "INSERT OR REPLACE INTO requests VALUES "
    "(:id, :at, :target, :tier, :model, :complexity, :ttft_ms, :latency_ms, :prompt_tokens, "
    ":output_tokens, :cost_usd, :error, :provenance)"
)


class StateStore:
    """Writes in a thread of its own, so that no request waits for a disk. Thread-safe.

    Args:
        path: the SQLite file; default: the user state folder. The newest 10,000 requests are kept.
        enabled: False keeps nothing.
    """

    def __init__(self, path: Path | None = None, *, enabled: bool = True) -> None:
        self.path = path or state_dir() / "state.sqlite3"
        self._queue: queue.Queue[tuple[str, dict[str, Any]] | threading.Event | None] = queue.Queue(_QUEUE)
        self._working = enabled
        self._hurry = threading.Event()
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()

    @property
    def working(self) -> bool:
        """Whether records are being kept."""
        return self._working

    def add(self, provenance: Provenance) -> None:
        """Keep one finished request. Returns at once."""
        outcome = provenance.outcome
        self._put(
            "request",
            {
                "id": provenance.request_id,
                "at": time.time(),
                "target": outcome.target_id,
                "tier": provenance.tier,
                "model": provenance.model,
                "complexity": provenance.decision.features.complexity,
                "ttft_ms": outcome.ttft_ms,
                "latency_ms": outcome.latency_ms,
                "prompt_tokens": outcome.prompt_tokens,
                "output_tokens": outcome.output_tokens,
                "cost_usd": outcome.cost_usd,
                "error": outcome.error,
                "provenance": provenance,
            },
        )

    def add_feedback(self, request_id: str, score: float) -> None:
        """Keep one judgement (0..1) of an earlier answer. Returns at once."""
        self._put("feedback", {"request_id": request_id, "at": time.time(), "score": score})

    def has(self, request_id: str) -> bool:
        """Whether a request is in the database (reads the disk)."""
        self.flush()
        return bool(self._read("SELECT 1 FROM requests WHERE id = ?", (request_id,)))

    def feedback_of(self, request_id: str) -> list[float]:
        """Every score given to one request, oldest first (reads the disk)."""
        self.flush()
        rows = self._read("SELECT score FROM feedback WHERE request_id = ? ORDER BY at", (request_id,))
        return [float(row[0]) for row in rows]

    def recent(self, limit: int = 100) -> list[dict[str, Any]]:
        """The newest requests, newest first, as JSON types (reads the disk)."""
        self.flush()
        rows = self._read("SELECT provenance, at FROM requests ORDER BY at DESC LIMIT ?", (limit,))
        return [json.loads(row[0]) | {"at": row[1]} for row in rows]

    def flush(self) -> None:
        """Wait until everything handed over so far is on disk (at most a few seconds)."""
        if self._thread is None or not self._working:
            return
        done = threading.Event()
        self._queue.put(done)
        self._hurry.set()
        done.wait(timeout=_BUSY_TIMEOUT_S + 1)

    def close(self) -> None:
        """Write what is left and end the thread."""
        with self._lock:
            thread, self._thread = self._thread, None
        if thread is not None:
            self._queue.put(None)
            self._hurry.set()
            thread.join(timeout=_BUSY_TIMEOUT_S + 1)

    def _put(self, kind: str, row: dict[str, Any]) -> None:
        if not self._working:
            return
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._write, name="mecroute-state", daemon=True)
                self._thread.start()
        try:
            self._queue.put_nowait((kind, row))
        except queue.Full:
            _LOG.warning("the state database cannot keep up; a record was dropped")

    def _read(self, query: str, values: tuple[Any, ...]) -> list[Any]:
        if not self._working or not self.path.exists():
            return []
        try:
            connection = sqlite3.connect(self.path, timeout=_BUSY_TIMEOUT_S)
            try:
                return connection.execute(query, values).fetchall()
            finally:
                connection.close()
        except sqlite3.Error as error:
            self._give_up(error)
            return []

    def _write(self) -> None:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            connection = sqlite3.connect(self.path, timeout=_BUSY_TIMEOUT_S)
        except (OSError, sqlite3.Error) as error:
            self._give_up(error)
            connection = None
        try:
            if connection is not None:
                self._prepare(connection)
            self._drain(connection)
        finally:
            if connection is not None:
                connection.close()

    def _prepare(self, connection: sqlite3.Connection) -> None:
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA synchronous=NORMAL")
            connection.executescript(_SCHEMA)
        except sqlite3.Error as error:
            self._give_up(error)

    def _drain(self, connection: sqlite3.Connection | None) -> None:
        written = 0
        while (item := self._queue.get()) is not None:
            if self._queue.empty() and not isinstance(item, threading.Event):
                self._hurry.wait(_LINGER_S)
            if isinstance(item, threading.Event):
                self._hurry.clear()
                item.set()
                continue
            if connection is None or not self._working:
                continue
            try:
                with connection:
                    self._insert(connection, *item)
                    written += 1
                    if written % _PRUNE_EVERY == 1:
                        _prune(connection)
            except sqlite3.Error as error:
                self._give_up(error)

    def _insert(self, connection: sqlite3.Connection, kind: str, row: dict[str, Any]) -> None:
        if kind == "feedback":
            connection.execute("INSERT INTO feedback VALUES (:request_id, :at, :score)", row)
            return
        connection.execute(_INSERT, row | {"provenance": json.dumps(row["provenance"].to_dict())})

    def _give_up(self, error: Exception) -> None:
        if self._working:
            self._working = False
            _LOG.warning(
                "the state database %s cannot be used (%s); routing goes on without it; "
                "move the file away to start afresh",
                self.path,
                error,
            )


def _prune(connection: sqlite3.Connection) -> None:
    connection.execute(
        "DELETE FROM requests WHERE id IN (SELECT id FROM requests ORDER BY at DESC LIMIT -1 OFFSET ?)",
        (_MAX_ROWS,),
    )
    connection.execute("DELETE FROM feedback WHERE request_id NOT IN (SELECT id FROM requests)")
