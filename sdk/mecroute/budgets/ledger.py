"""What was spent and what is reserved, in SQLite, shared by the processes of one machine.

Amounts are whole nano-dollars, so that sums are exact. Every change is one transaction that holds the write
lock from its first read (`BEGIN IMMEDIATE`), which is what keeps concurrent callers from overspending.
"""

from __future__ import annotations

import logging
import math
import sqlite3
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from mecroute.budgets.period import Period, in_words, period_of
from mecroute.errors import BudgetExceededError, StateError

_LOG = logging.getLogger("mecroute.budgets")
_NANO = 1_000_000_000
_BUSY_TIMEOUT_S = 5.0
#: A reservation that is neither settled nor renewed for so long belongs to a process that is gone.
RESERVED_FOR_S = 900.0
_KEEP_S = 400 * 86_400
#: A larger step of the wall clock is a jump (or the machine slept), and no correction of its pace.
_JUMP_S = 60.0
#: After the file could not be used, calls are refused for so long without trying it again: of many that wait
#: for a locked file, only the first waits long.
_REST_S = 1.0
VERSION = 1
_TABLES = """
CREATE TABLE spent (
    budget TEXT NOT NULL, subject TEXT NOT NULL, begin INTEGER NOT NULL, nano_usd INTEGER NOT NULL,
    PRIMARY KEY (budget, subject, begin)
) WITHOUT ROWID;
CREATE TABLE reserved (
    id TEXT NOT NULL, budget TEXT NOT NULL, subject TEXT NOT NULL, begin INTEGER NOT NULL,
    nano_usd INTEGER NOT NULL, at REAL NOT NULL, expires_at REAL NOT NULL
);
CREATE INDEX reserved_by ON reserved (budget, subject, begin);
CREATE INDEX reserved_id ON reserved (id);
"""


@dataclass(frozen=True, slots=True)
class Budget:
    """One limit for one subject: everybody (``""``), or one user, app or key.

    Args:
        limit_usd: most that may be spent in each period.
    """

    name: str
    limit_usd: float
    per: Period
    subject: str = ""


@dataclass(frozen=True, slots=True)
class Reservation:
    """Money set aside for one call in one or several budgets. `begins` are the periods it counts in."""

    id: str
    budgets: tuple[Budget, ...]
    begins: tuple[int, ...]
    usd: float


@dataclass(frozen=True, slots=True)
class Balance:
    """The state of a budget in its present period. Amounts in USD, `frees_at` in Unix seconds."""

    budget: Budget
    spent_usd: float
    reserved_usd: float
    frees_at: int

    @property
    def left_usd(self) -> float:
        """What may still be reserved; never below 0."""
        return max(0.0, self.budget.limit_usd - self.spent_usd - self.reserved_usd)


class Ledger:
    """The budgets' file. Thread-safe; every call may wait for a disk or for another process.

    Args:
        path: the SQLite file; made at the first reservation.
        clock: Unix seconds. A clock that jumps moves calls to another period; it never frees what is spent,
            nor what calls under way have reserved.
        monotonic: seconds, by which a jump is noticed.
    """

    def __init__(
        self,
        path: Path,
        *,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._monotonic = monotonic
        #: The wall clock less the monotonic one, and until when the age of reservations says nothing.
        self._offset_s: float | None = None
        self._ageless_until = float("-inf")
        self.path = path
        self._clock = clock
        self._lock = threading.Lock()
        self._connection: sqlite3.Connection | None = None
        self._unsettled: list[tuple[Reservation, float]] = []
        self._said = False
        self._rests_until = float("-inf")
        self._problem: Exception | None = None

    def reserve(self, budgets: Sequence[Budget], usd: float) -> Reservation:
        """Set an amount aside in every one of these budgets, or in none.

        Raises:
            BudgetExceededError: one has no room, or the file cannot be used: then nothing may be spent.
        """
        nano = _nano(usd)
        now = self._clock()
        begins = tuple(period_of(budget.per, now)[0] for budget in budgets)
        made = Reservation(uuid.uuid4().hex, tuple(budgets), begins, usd)
        try:
            with self._lock, self._transaction() as connection:
                self._settle_late(connection)
                if self._ages_hold(now):
                    connection.execute(
                        "DELETE FROM reserved WHERE expires_at < ? OR at > ?", (now, now + RESERVED_FOR_S)
                    )
                for budget, begin in zip(budgets, begins, strict=True):
                    spent, reserved = _used(connection, budget, begin)
                    if spent + reserved + nano > _nano(budget.limit_usd):
                        raise _no_room(budget, spent, reserved, usd, now)
                    connection.execute(
                        "INSERT INTO reserved VALUES (?, ?, ?, ?, ?, ?, ?)",
                        (made.id, budget.name, budget.subject, begin, nano, now, now + RESERVED_FOR_S),
                    )
        except (OSError, sqlite3.Error, StateError) as error:
            raise self._unusable(error, budgets) from error
        self._said, self._problem = False, None
        return made

    def settle(self, reservation: Reservation, usd: float) -> None:
        """Put what a call did cost in the place of what was reserved for it. Never raises.

        Where the file is locked, it is tried again with the next reservation; the money stays reserved.
        """
        with self._lock:
            self._unsettled.append((reservation, usd))
            try:
                with self._transaction() as connection:
                    self._settle_late(connection)
            except (OSError, sqlite3.Error, StateError) as error:
                _LOG.warning("%s cannot be written (%s): a cost is noted later", self.path, error)

    def renew(self, reservation: Reservation) -> None:
        """Say that a call still runs. Never raises."""
        try:
            with self._lock, self._transaction() as connection:
                connection.execute(
                    "UPDATE reserved SET expires_at = ? WHERE id = ?",
                    (self._clock() + RESERVED_FOR_S, reservation.id),
                )
        except (OSError, sqlite3.Error, StateError) as error:
            _LOG.warning("%s cannot be written (%s): a reservation was not renewed", self.path, error)

    def balances(self, budgets: Sequence[Budget]) -> list[Balance]:
        """The state of each budget now.

        Raises:
            BudgetExceededError: the file cannot be used.
        """
        now = self._clock()
        found = []
        try:
            with self._lock:
                connection = self._open()
                without_dead = now if self._ages_hold(now) else None
                for budget in budgets:
                    begin, end = period_of(budget.per, now)
                    spent, reserved = _used(connection, budget, begin, without_dead)
                    found.append(Balance(budget, spent / _NANO, reserved / _NANO, end))
        except (OSError, sqlite3.Error, StateError) as error:
            raise self._unusable(error, budgets) from error
        return found

    def subjects(self, name: str, per: Period) -> list[str]:
        """Those who have spent or reserved anything of a budget in its present period.

        Raises:
            BudgetExceededError: the file cannot be used.
        """
        begin, _ = period_of(per, self._clock())
        query = (
            "SELECT subject FROM spent WHERE budget = :name AND begin = :begin UNION "
            "SELECT subject FROM reserved WHERE budget = :name AND begin = :begin ORDER BY subject"
        )
        try:
            with self._lock:
                rows = self._open().execute(query, {"name": name, "begin": begin}).fetchall()
        except (OSError, sqlite3.Error, StateError) as error:
            raise self._unusable(error, (Budget(name, 0, per),)) from error
        return [str(row[0]) for row in rows]

    def close(self) -> None:
        """Close the file; later calls open it again."""
        with self._lock:
            if self._connection is not None:
                self._connection.close()
                self._connection = None

    def _ages_hold(self, now: float) -> bool:
        """Whether reservations are as old as the wall clock says; for a while after a jump they are not."""
        monotonic = self._monotonic()
        offset = now - monotonic
        if self._offset_s is not None and abs(offset - self._offset_s) > _JUMP_S:
            self._ageless_until = monotonic + RESERVED_FOR_S
        self._offset_s = offset
        return monotonic >= self._ageless_until

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        connection = self._open()
        connection.execute("BEGIN IMMEDIATE")
        try:
            yield connection
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise

    def _settle_late(self, connection: sqlite3.Connection) -> None:
        settled, self._unsettled = self._unsettled, []
        try:
            for reservation, usd in settled:
                connection.execute("DELETE FROM reserved WHERE id = ?", (reservation.id,))
                for budget, begin in zip(reservation.budgets, reservation.begins, strict=True):
                    connection.execute(
                        "INSERT INTO spent VALUES (?, ?, ?, ?) ON CONFLICT DO UPDATE "
                        "SET nano_usd = nano_usd + excluded.nano_usd",
                        (budget.name, budget.subject, begin, _nano(usd)),
                    )
        except BaseException:
            self._unsettled = settled
            raise

    def _open(self) -> sqlite3.Connection:
        if self._problem is not None and time.monotonic() < self._rests_until:
            raise self._problem
        if self._connection is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            connection = sqlite3.connect(
                self.path, timeout=_BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False
            )
            try:
                self._prepare(connection)
            except BaseException:
                connection.close()
                raise
            self._connection = connection
        return self._connection

    def _prepare(self, connection: sqlite3.Connection) -> None:
        connection.execute("PRAGMA journal_mode=WAL")
        # A crash of the process loses nothing; a power failure may lose the last moments' calls.
        connection.execute("PRAGMA synchronous=NORMAL")
        connection.execute("BEGIN IMMEDIATE")
        try:
            version = int(connection.execute("PRAGMA user_version").fetchone()[0])
            if version > VERSION:
                raise StateError(f"{self.path} was written by a newer mecroute", hint="update mecroute")
            if version == 0:
                for statement in _TABLES.split(";"):
                    connection.execute(statement)
                connection.execute(f"PRAGMA user_version={VERSION}")
            connection.execute("DELETE FROM spent WHERE begin < ?", (self._clock() - _KEEP_S,))
            connection.execute("COMMIT")
        except BaseException:
            connection.execute("ROLLBACK")
            raise

    def _unusable(self, error: Exception, budgets: Sequence[Budget]) -> BudgetExceededError:
        if error is not self._problem or time.monotonic() >= self._rests_until:
            self._problem, self._rests_until = error, time.monotonic() + _REST_S
        if not self._said:
            self._said = True
            _LOG.warning(
                "the budgets in %s cannot be used (%s): nothing that costs money is called until they can",
                self.path,
                error,
            )
        name = budgets[0].name if budgets else ""
        return BudgetExceededError(
            f"the file of the budgets, {self.path}, cannot be used ({error}); nothing is spent without it",
            budget=name,
            frees_at=None,
            hint="end what locks the file or move it away; free targets are still used",
        )


def _used(
    connection: sqlite3.Connection, budget: Budget, begin: int, now: float | None = None
) -> tuple[int, int]:
    """Nano-dollars spent and reserved in a period; with `now`, without reservations that have expired."""
    key = (budget.name, budget.subject, begin)
    row = connection.execute(
        "SELECT nano_usd FROM spent WHERE budget = ? AND subject = ? AND begin = ?", key
    ).fetchone()
    query = "SELECT coalesce(sum(nano_usd), 0) FROM reserved WHERE budget = ? AND subject = ? AND begin = ?"
    values: tuple[object, ...] = key
    if now is not None:
        query += " AND expires_at >= ? AND at <= ?"
        values = (*key, now, now + RESERVED_FOR_S)
    return int(row[0]) if row else 0, int(connection.execute(query, values).fetchone()[0])


def _no_room(budget: Budget, spent: int, reserved: int, usd: float, now: float) -> BudgetExceededError:
    balance = Balance(budget, spent / _NANO, reserved / _NANO, period_of(budget.per, now)[1])
    return BudgetExceededError(
        no_room_in_words(balance, usd),
        budget=budget.name,
        frees_at=balance.frees_at,
        hint="wait, raise limit_usd, set max_tokens, or add a target that is free",
    )


def no_room_in_words(balance: Balance, usd: float) -> str:
    """Why an amount does not fit, and when it may."""
    budget = balance.budget
    text = (
        f"budget '{budget.name}' has ${balance.left_usd:.6f} of ${budget.limit_usd:.6g} a {budget.per} left"
    )
    if balance.reserved_usd > 0:
        text += f" (${balance.reserved_usd:.6f} is reserved by calls under way)"
    text += f", and this may cost up to ${usd:.6f}"
    if usd > budget.limit_usd:
        return text + ", more than the whole of it"
    return text + f"; it begins anew at {in_words(balance.frees_at)}"


def _nano(usd: float) -> int:
    """Whole nano-dollars, rounded up; nonsense counts as nothing and a negative amount as well."""
    return math.ceil(round(max(0.0, usd) * _NANO, 3)) if math.isfinite(usd) else 0
