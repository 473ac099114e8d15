"""What this client has under way and sent before: what balancing, stickiness and hedging look at."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from mecroute.predict.line import Line, Pace, Place

_SESSIONS_KEPT = 10_000
_SESSION_IDLE_S = 1800.0
#: Sent requests that are counted in full; half of each count is then forgotten, so that a node that joins is
#: not sent everything until it has caught up with years of others.
_SERVED_WINDOW = 256.0
#: Targets with nothing under way are forgotten once there are so many.
_TARGETS_SWEPT_AT = 256
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


class UnderWay:
    """A request that this client has under way. It is told of its first token and of its end."""

    __slots__ = ("_at", "_place", "_there", "begun_s", "output_tokens")

    def __init__(
        self, there: AtTarget, at: Callable[[], float], place: Place | None, output_tokens: float
    ) -> None:
        self._there = there
        self._at = at
        self._place = place
        self.begun_s = at()
        self.output_tokens = output_tokens

    @property
    def alone(self) -> bool:
        """Whether this client had nothing else there from its beginning to its first token."""
        return self._place is None or self._place.alone

    def first_token(self) -> None:
        """Its prompt is computed; another's turn begins."""
        if self._place is not None:
            self._there.line.first_token(self._at() * 1000, self._place)

    def end(self) -> None:
        """It is over, one way or another."""
        self._there.ended(self)
        if self._place is not None:
            self._there.line.leave(self._at() * 1000, self._place)


class AtTarget:
    """What this client has under way at one target.

    Attributes:
        count: requests.
        output_tokens: that their answers are expected to have, together.
        line: those of them of which it is known what they take there; its times are the clock's.
    """

    __slots__ = ("count", "line", "output_tokens")

    def __init__(self) -> None:
        self.count = 0
        self.output_tokens = 0.0
        self.line = Line()

    def add(self, one: UnderWay) -> None:
        """A request was sent."""
        self.count += 1
        self.output_tokens += one.output_tokens

    def ended(self, one: UnderWay) -> None:
        """A request is over."""
        self.count -= 1
        self.output_tokens -= one.output_tokens


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
        self._under_way: dict[str, AtTarget] = {}
        self._served: dict[str, float] = {}
        self._served_in_all = 0.0
        self._sessions: OrderedDict[str, Session] = OrderedDict()

    @property
    def under_way(self) -> Mapping[str, AtTarget]:
        """What this client has under way, by target."""
        return self._under_way

    def now_s(self) -> float:
        """The time by which it counts."""
        return self._clock()

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

    def begin(
        self,
        target_id: str,
        *,
        hedge: bool = False,
        prefill_ms: float = 0.0,
        output_tokens: float = 0.0,
        pace: Pace | None = None,
        streams: bool = False,
    ) -> UnderWay:
        """A request is sent to a target. Each earns the share of a hedge that the budget allows.

        Args:
            prefill_ms: how long its prompt is predicted to take once it is its turn.
            output_tokens: that its answer is expected to have.
            pace: how fast the target computes; None where no line is reckoned with.
            streams: whether its first token will be told.
        """
        there = self._under_way.get(target_id)
        if there is None:
            if len(self._under_way) >= _TARGETS_SWEPT_AT:
                self._under_way = {id: at for id, at in self._under_way.items() if at.count}
            there = self._under_way[target_id] = AtTarget()
        self._served[target_id] = self._served.get(target_id, 0.0) + 1
        self._served_in_all += 1
        if self._served_in_all > _SERVED_WINDOW:
            self._served = {id: count / 2 for id, count in self._served.items() if count > 1 / 64}
            self._served_in_all /= 2
        if not hedge:
            self._hedges = min(_HEDGES_IN_STORE, self._hedges + self._hedge_budget)
        place = None
        if pace is not None:
            place = Place(prefill_ms, output_tokens - 1, watched=streams)
            there.line.join(self._clock() * 1000, place, pace)
        sent = UnderWay(there, self._clock, place, output_tokens)
        there.add(sent)
        return sent

    def take_hedge(self, weight: float = 1.0) -> bool:
        """Whether a hedge is within the budget; it is then counted.

        Args:
            weight: what it costs, in requests: 1, or more where the fallback is dearer than the primary.
        """
        if self._hedges < weight:
            return False
        self._hedges -= weight
        return True
