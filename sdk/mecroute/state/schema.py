"""The tables of the state database, their version, and the way from older ones."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path

from mecroute.errors import StateError
from mecroute.state.encoding import pack

#: `PRAGMA user_version` of the tables below. Version 0 with a table `requests` is the first that was used.
VERSION = 2
_BUSY_TIMEOUT_S = 2.0

_TABLES = """
CREATE TABLE decisions (
    seq INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, at REAL NOT NULL, target TEXT NOT NULL,
    tier TEXT NOT NULL, model TEXT NOT NULL, policy TEXT NOT NULL, complexity REAL NOT NULL,
    prompt_tokens INTEGER NOT NULL, output_tokens INTEGER NOT NULL, ttft_ms REAL, latency_ms REAL NOT NULL,
    cost_usd REAL NOT NULL, error TEXT, cache TEXT, propensity REAL NOT NULL, explored INTEGER NOT NULL,
    regret REAL, detail BLOB NOT NULL
);
CREATE INDEX decisions_at ON decisions (at);
CREATE TABLE evidence (
    request_id TEXT NOT NULL, at REAL NOT NULL, source TEXT NOT NULL, target TEXT NOT NULL,
    score REAL NOT NULL, weight REAL NOT NULL, note TEXT NOT NULL
);
CREATE INDEX evidence_request ON evidence (request_id);
CREATE TABLE learned (
    kind TEXT NOT NULL, name TEXT NOT NULL, at REAL NOT NULL, value TEXT NOT NULL, PRIMARY KEY (kind, name)
) WITHOUT ROWID;
"""

INSERT_DECISION = (
    "INSERT OR REPLACE INTO decisions (id, at, target, tier, model, policy, complexity, prompt_tokens, "
    "output_tokens, ttft_ms, latency_ms, cost_usd, error, cache, propensity, explored, regret, detail) "
    "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
)
INSERT_EVIDENCE = "INSERT INTO evidence VALUES (?, ?, ?, ?, ?, ?, ?)"
INSERT_LEARNED = "INSERT OR REPLACE INTO learned VALUES (?, ?, ?, ?)"


def open_database(path: Path) -> sqlite3.Connection:
    """Open the state database, make its tables or bring them up to date.

    The connection is in autocommit mode and may be used from several threads, one at a time.

    Raises:
        StateError: a newer mecroute wrote it.
        sqlite3.Error, OSError: it cannot be used.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    connection = sqlite3.connect(path, timeout=_BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False)
    try:
        _prepare(connection, path)
    except BaseException:
        connection.close()
        raise
    return connection


def _prepare(connection: sqlite3.Connection, path: Path) -> None:
    if _version(connection) == 0:
        # Must come before the first table; what is pruned is then given back to the file system.
        connection.execute("PRAGMA auto_vacuum=INCREMENTAL")
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=NORMAL")
    connection.execute("PRAGMA journal_size_limit=4000000")
    if _version(connection) == VERSION:
        return
    migrated = False
    connection.execute("BEGIN IMMEDIATE")  # of two processes, one migrates
    try:
        version = _version(connection)
        if version > VERSION:
            raise StateError(
                f"{path} was written by a newer mecroute (version {version}, this one knows {VERSION})",
                hint="update mecroute, or name another file with MECROUTE_STATE_PATH",
            )
        if version < VERSION:
            migrated = _exists(connection, "requests")
            for statement in _TABLES.split(";"):
                connection.execute(statement)
            if migrated:
                _from_first(connection)
            connection.execute(f"PRAGMA user_version={VERSION}")
        connection.execute("COMMIT")
    except BaseException:
        connection.execute("ROLLBACK")
        raise
    if migrated:
        connection.execute("PRAGMA auto_vacuum=INCREMENTAL")
        connection.execute("VACUUM")


def _from_first(connection: sqlite3.Connection) -> None:
    """Take over the tables `requests` and `feedback`, which held the provenance as JSON text."""
    rows = connection.execute(
        "SELECT id, at, target, tier, model, complexity, prompt_tokens, output_tokens, ttft_ms, latency_ms, "
        "cost_usd, error, provenance FROM requests ORDER BY at"
    )
    while many := rows.fetchmany(500):
        connection.executemany(INSERT_DECISION, [_converted(row) for row in many])
    connection.execute(
        "INSERT INTO evidence SELECT request_id, feedback.at, 'feedback', requests.target, score, 1.0, '' "
        "FROM feedback JOIN requests ON requests.id = feedback.request_id"
    )
    connection.execute("DROP TABLE requests")
    connection.execute("DROP TABLE feedback")


def _converted(row: tuple[object, ...]) -> tuple[object, ...]:
    *columns, provenance = row
    id, at, target, tier, model, complexity, prompt, output, ttft_ms, latency_ms, cost, error = columns
    detail = json.loads(str(provenance))
    decision = detail.get("decision", {})
    return (
        *(id, at, target, tier, model, decision.get("policy", "balanced"), complexity, prompt, output),
        *(ttft_ms, latency_ms, cost, error, detail.get("cache"), 1.0, 0, None, pack(detail)),
    )


def _version(connection: sqlite3.Connection) -> int:
    return int(connection.execute("PRAGMA user_version").fetchone()[0])


def _exists(connection: sqlite3.Connection, table: str) -> bool:
    found = connection.execute("SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = ?", (table,))
    return found.fetchone() is not None
