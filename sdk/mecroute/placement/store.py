"""Demand in SQLite, beside the decisions: model names and counts, nothing of what was asked."""

from __future__ import annotations

import json
import logging
import math
import sqlite3
from contextlib import closing
from pathlib import Path

from mecroute.placement.demand import HOURS, ModelDemand

_LOG = logging.getLogger("mecroute.placement")
_BUSY_TIMEOUT_S = 1.0
_SCHEMA = """
CREATE TABLE IF NOT EXISTS demand (
    model TEXT PRIMARY KEY, recent REAL NOT NULL, at REAL NOT NULL, usual TEXT NOT NULL, hour INTEGER,
    count REAL NOT NULL
)
"""


def load_demand(path: Path) -> dict[str, ModelDemand]:
    """What an earlier run counted; nothing where there is no file, or none that can be read (logged)."""
    if not path.exists():
        return {}
    try:
        with closing(sqlite3.connect(path, timeout=_BUSY_TIMEOUT_S)) as connection:
            # Not made here: that would wait for whoever writes, and this is called before the first answer.
            if not connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'demand'").fetchone():
                return {}
            rows = connection.execute("SELECT model, recent, at, usual, hour, count FROM demand").fetchall()
    except sqlite3.Error as error:
        _LOG.warning("the demand in %s cannot be read (%s); it is counted afresh", path, error)
        return {}
    found = {}
    for model, recent, at, usual, hour, count in rows:
        try:
            pattern = [float(value) for value in json.loads(usual)]
        except (ValueError, TypeError, OverflowError):
            continue
        numbers = (recent, at, count, *pattern)
        if len(pattern) == HOURS and all(isinstance(n, int | float) and math.isfinite(n) for n in numbers):
            found[str(model)] = ModelDemand(recent, at, pattern, hour, count)
    return found


def save_demand(path: Path, models: dict[str, ModelDemand]) -> None:
    """Keep the counts; a file that cannot be written is logged, and nothing more."""
    if not models:
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with closing(sqlite3.connect(path, timeout=_BUSY_TIMEOUT_S)) as connection, connection:
            connection.execute(_SCHEMA)
            connection.executemany(
                "INSERT OR REPLACE INTO demand VALUES (?, ?, ?, ?, ?, ?)",
                [
                    (model, known.recent, known.at, json.dumps(known.usual), known.hour, known.count)
                    for model, known in models.items()
                ],
            )
    except (OSError, sqlite3.Error) as error:
        _LOG.warning("the demand cannot be kept in %s (%s)", path, error)
