"""How much each model is asked for: lately, and usually at this hour of the day."""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

HALF_LIFE_S = 3600.0
HOURS = 24
_HOUR_S = 3600.0
#: Weight of the newest day in an hour's usual count: about the last week counts.
_DAY_ALPHA = 0.25
_MAX_MODELS = 1000


@dataclass(slots=True)
class ModelDemand:
    """One model's demand.

    Args:
        recent: requests, each losing half its weight every hour, as of `at`.
        at: wall-clock seconds of the last count.
        usual: expected requests in each hour of the day (UTC).
        hour: the hour that is being counted, in hours since the epoch; None before the first request.
        count: requests in it so far.
    """

    recent: float = 0.0
    at: float = 0.0
    usual: list[float] = field(default_factory=lambda: [0.0] * HOURS)
    hour: int | None = None
    count: float = 0.0


class Demand:
    """Counts requests by model. For one thread.

    Args:
        clock: wall-clock seconds. One that jumps back counts on as if no time had passed.
    """

    def __init__(self, *, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._models: OrderedDict[str, ModelDemand] = OrderedDict()

    def asked_for(self, model: str, requests: float = 1.0) -> None:
        """Count requests for a model."""
        now = self._clock()
        known = self._models.setdefault(model, ModelDemand(at=now))
        self._models.move_to_end(model)
        while len(self._models) > _MAX_MODELS:
            self._models.popitem(last=False)
        known.recent = _decayed(known, now) + requests
        known.at = now
        _close_hours(known, int(now // _HOUR_S))
        known.count += requests

    def recent(self, model: str) -> float:
        """Recent requests for a model, each losing half its weight every hour."""
        known = self._models.get(model)
        return _decayed(known, self._clock()) if known is not None else 0.0

    def expected_per_hour(self, model: str, *, hours_ahead: float = 0.0) -> float:
        """Requests to expect in an hour: what was usual at that time of the day, or what is lately asked
        for (with what is left of it by then), whichever is more.

        Args:
            hours_ahead: >= 0; how far from now.
        """
        known = self._models.get(model)
        if known is None:
            return 0.0
        now = self._clock()
        then = now + hours_ahead * _HOUR_S
        _close_hours(known, int(now // _HOUR_S))
        # At a steady rate r per hour the decayed count settles at r / ln 2 times the half-life in hours.
        lately = _decayed(known, then) * math.log(2) * _HOUR_S / HALF_LIFE_S
        return max(lately, _usual_at(known, then))

    def models(self) -> dict[str, ModelDemand]:
        """Every model that was asked for."""
        return dict(self._models)

    def restore(self, models: dict[str, ModelDemand]) -> None:
        """Take over what an earlier run counted; what was counted since then is added to it."""
        for name, known in models.items():
            new = self._models.get(name)
            self._models[name] = known
            if new is not None:
                self.asked_for(name, new.recent)


def _decayed(known: ModelDemand, now: float) -> float:
    return known.recent * math.exp2(-max(0.0, now - known.at) / HALF_LIFE_S)


def _usual_at(known: ModelDemand, then: float) -> float:
    """Between the counts of two hours in proportion, so that demand is foreseen before the hour strikes."""
    position = then / _HOUR_S - 0.5
    hour, share = math.floor(position), position - math.floor(position)
    return known.usual[hour % HOURS] * (1 - share) + known.usual[(hour + 1) % HOURS] * share


def _close_hours(known: ModelDemand, hour: int) -> None:
    """Put finished hours into the pattern of the day; hours without a request count as such."""
    if known.hour is None:
        known.hour = hour
        return
    if hour < known.hour:
        known.hour = hour  # the clock was ahead, and was set back: it is counted on from here
    if hour == known.hour:
        return
    # A month without a request and a jump of the clock end at the same: an empty pattern.
    for finished in range(known.hour, min(hour, known.hour + HOURS * 31)):
        slot = finished % HOURS
        known.usual[slot] += _DAY_ALPHA * (known.count - known.usual[slot])
        known.count = 0.0
    known.hour, known.count = hour, 0.0
