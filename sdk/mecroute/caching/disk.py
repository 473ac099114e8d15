"""Remembered answers in SQLite, for `[cache] persist = true` only: what was asked and answered is stored."""

from __future__ import annotations

import json
import logging
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mecroute.caching.answers import Remembered
from mecroute.caching.keys import CacheKey
from mecroute.outcome import Outcome, Provenance
from mecroute_registry.paths import state_dir

_LOG = logging.getLogger("mecroute.cache")
_BUSY_TIMEOUT_S = 0.2  # an answer is sooner made than a lock waited for
_PRUNE_EVERY = 50
_PER_FRAME = 256
#: By so much a clock is corrected every now and then.
_SLACK_S = 60.0
_SCHEMA = """
CREATE TABLE IF NOT EXISTS answers (
    key TEXT PRIMARY KEY, frame TEXT, question TEXT NOT NULL, at REAL NOT NULL, size_bytes INTEGER NOT NULL,
    body TEXT NOT NULL, provenance TEXT NOT NULL
);
CREATE INDEX IF NOT EXISTS answers_frame ON answers (frame, at);
CREATE INDEX IF NOT EXISTS answers_at ON answers (at);
"""


def default_path() -> Path:
    """Where answers are kept when no file is named."""
    return state_dir() / "answers.sqlite3"


class AnswerDisk:
    """Answers by key. For one thread. A file that cannot be used is reported once and then left alone.

    Args:
        path: the SQLite file, readable by its owner only.
        ttl_s, max_bytes: bounds, as of the answers in memory.
        clock: wall-clock seconds.
    """

    def __init__(
        self, path: Path, *, ttl_s: float, max_bytes: int, clock: Callable[[], float] = time.time
    ) -> None:
        self.path = path
        self._ttl_s = ttl_s
        self._max_bytes = max_bytes
        self._clock = clock
        self._connection: sqlite3.Connection | None = None
        self._working = True
        self._writes = 0

    def get(self, key: str) -> tuple[Remembered, int, float] | None:
        """The answer of a key, its bytes and its age in seconds; None where there is none that holds."""
        with self._using() as connection:
            if connection is None:
                return None
            row = connection.execute(
                "SELECT at, size_bytes, body, provenance FROM answers WHERE key = ?", (key,)
            ).fetchone()
            if row is None:
                return None
            age_s = self._clock() - row[0]
            # Of an answer from the future (the clock was ahead then, or is behind now) nobody knows the age.
            if not -_SLACK_S <= age_s <= self._ttl_s:
                return None
            age_s = max(0.0, age_s)
            try:
                return Remembered(json.loads(row[2]), _provenance(json.loads(row[3]))), row[1], age_s
            except (ValueError, KeyError, TypeError):
                connection.execute("DELETE FROM answers WHERE key = ?", (key,))
                connection.commit()
        return None

    def questions(self, frame: str) -> list[tuple[str, str]]:
        """(key, question) of the newest answers of a frame."""
        with self._using() as connection:
            if connection is None:
                return []
            now = self._clock()
            rows = connection.execute(
                "SELECT key, question FROM answers WHERE frame = ? AND at BETWEEN ? AND ? "
                "ORDER BY at DESC LIMIT ?",
                (frame, now - self._ttl_s, now + _SLACK_S, _PER_FRAME),
            ).fetchall()
            return [(row[0], row[1]) for row in rows]
        return []

    def put(self, key: CacheKey, answer: Remembered, text_bytes: int) -> None:
        """Keep an answer."""
        with self._using() as connection:
            if connection is None:
                return
            row = (
                key.exact,
                key.frame,
                key.text,
                self._clock(),
                text_bytes,
                json.dumps(dict(answer.body)),
                json.dumps(answer.provenance.to_dict()),
            )
            with connection:
                connection.execute("INSERT OR REPLACE INTO answers VALUES (?, ?, ?, ?, ?, ?, ?)", row)
                if self._writes % _PRUNE_EVERY == 0:
                    self._prune(connection)
            self._writes += 1

    def clear(self) -> int:
        """Forget everything; returns how many answers there were."""
        with self._using() as connection:
            if connection is None:
                return 0
            with connection:
                count = connection.execute("DELETE FROM answers").rowcount
            connection.execute("VACUUM")
            return int(count)
        return 0

    def count(self) -> tuple[int, int]:
        """How many answers there are, and their bytes."""
        with self._using() as connection:
            if connection is None:
                return 0, 0
            row = connection.execute("SELECT COUNT(*), COALESCE(SUM(size_bytes), 0) FROM answers").fetchone()
            return int(row[0]), int(row[1])
        return 0, 0

    def close(self) -> None:
        """Close the file."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    @contextmanager
    def _using(self) -> Iterator[sqlite3.Connection | None]:
        connection = self._ready()
        try:
            yield connection
        except sqlite3.Error as error:
            self._failed(error)

    def _ready(self) -> sqlite3.Connection | None:
        if self._connection is None and self._working:
            try:
                self._connection = self._open()
            except (OSError, sqlite3.Error) as error:
                self._failed(error)
        return self._connection

    def _failed(self, error: Exception) -> None:
        if isinstance(error, sqlite3.OperationalError) and "locked" in str(error):
            return  # busy for the moment: this one answer is not remembered
        self._working = False
        self.close()
        _LOG.warning(
            "the answers in %s cannot be used (%s); answers are remembered in memory only; "
            "move the file away to start afresh",
            self.path,
            error,
        )

    def _open(self) -> sqlite3.Connection:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.touch(mode=0o600)
        connection = sqlite3.connect(self.path, timeout=_BUSY_TIMEOUT_S, check_same_thread=False)
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA synchronous=NORMAL")
            connection.executescript(_SCHEMA)
        except BaseException:
            connection.close()
            raise
        return connection

    def _prune(self, connection: sqlite3.Connection) -> None:
        now = self._clock()
        connection.execute("DELETE FROM answers WHERE at < ?", (now - self._ttl_s,))
        # Those from the future come last, and go first: they would never grow old.
        rows = connection.execute(
            "SELECT key, size_bytes FROM answers ORDER BY at > ?, at DESC", (now + _SLACK_S,)
        ).fetchall()
        total, gone = 0, []
        for key, size in rows:
            total += size
            if total > self._max_bytes:
                gone.append((key,))
        connection.executemany("DELETE FROM answers WHERE key = ?", gone)


def _provenance(told: dict[str, Any]) -> Provenance:
    """A provenance as `Provenance.to_dict` wrote it, but for its segments."""
    from pydantic import TypeAdapter

    from mecroute.decision import Decision

    return Provenance(
        request_id=str(told["request_id"]),
        decision=TypeAdapter(Decision).validate_python(told["decision"]),
        outcome=TypeAdapter(Outcome).validate_python(told["outcome"]),
        segments=(),
        tier=told["tier"],
        node=told["node"],
        model=told["model"],
    )
