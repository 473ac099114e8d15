"""What this client has under way and sent before: what balancing, stickiness and hedging look at."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass

_SESSIONS_KEPT = 10_000
_SESSION_IDLE_S = 1800.0
#: Sent requests that are counted in full; half of each count is then forgotten, so that a node that joins is
#: not sent everything until it has caught up with years of others.
_SERVED_WINDOW = 256.0
#: Hedges that may come at once after a quiet time.
_HEDGES_IN_STORE = 5.0


@dataclass(frozen=True, slots=True)
class Session:
    """Where a conversation was served last.

    Args:
        zone: where its user was then; None where unknown.
    """

    target_id: str
    zone: str | None
    at: float


class Dispatch:
    """Counts requests per target, remembers the node of each conversation, and budgets hedges.

    A decision only reads it; the pipeline writes. For one event loop. Bounded: the 10,000 sessions used last
    are kept, for half an hour after their last request.

    Args:
        hedge_budget: most hedges per request, as a share.
        clock: monotonic seconds.
    """

    def __init__(self, *, hedge_budget: float = 0.05, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._hedge_budget = hedge_budget
        self._hedges = min(1.0, hedge_budget * _HEDGES_IN_STORE)
        self._in_flight: dict[str, int] = {}
        self._served: dict[str, float] = {}
        self._served_in_all = 0.0
        self._sessions: OrderedDict[str, Session] = OrderedDict()

    @property
    def in_flight(self) -> Mapping[str, int]:
        """Requests of this client that are under way, by target."""
        return self._in_flight

    def served(self, target_id: str) -> float:
        """Requests sent to a target of late, those of longer ago counting less."""
        return self._served.get(target_id, 0.0)

    def session(self, name: str | None) -> Session | None:
        """Where a conversation was served last; None where that is unknown or long ago."""
        known = self._sessions.get(name) if name is not None else None
        # A clock that jumped back makes the age negative, and the session as good as new.
        if known is None or self._clock() - known.at > _SESSION_IDLE_S:
            return None
        return known

    def keep(self, name: str | None, target_id: str, zone: str | None) -> None:
        """Remember that a conversation was served by a target."""
        if name is None:
            return
        self._sessions[name] = Session(target_id, zone, self._clock())
        self._sessions.move_to_end(name)
        while len(self._sessions) > _SESSIONS_KEPT:
            self._sessions.popitem(last=False)

    def begin(self, target_id: str, *, hedge: bool = False) -> None:
        """A request was sent to a target. Each earns the share of a hedge that the budget allows."""
        self._in_flight[target_id] = self._in_flight.get(target_id, 0) + 1
        self._served[target_id] = self._served.get(target_id, 0.0) + 1
        self._served_in_all += 1
        if self._served_in_all > _SERVED_WINDOW:
            self._served = {id: count / 2 for id, count in self._served.items() if count > 1 / 64}
            self._served_in_all /= 2
        if not hedge:
            self._hedges = min(_HEDGES_IN_STORE, self._hedges + self._hedge_budget)

    def end(self, target_id: str) -> None:
        """It is over, one way or another."""
        left = self._in_flight.get(target_id, 0) - 1
        if left > 0:
            self._in_flight[target_id] = left
        else:
            self._in_flight.pop(target_id, None)

    def take_hedge(self, weight: float = 1.0) -> bool:
        """Whether a hedge is within the budget; it is then counted.

        Args:
            weight: what it costs, in requests: 1, or more where the fallback is dearer than the primary.
        """
        if self._hedges < weight:
            return False
        self._hedges -= weight
        return True
