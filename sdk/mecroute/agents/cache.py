"""The cache agent: remembered answers, and how hot each model is."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from mecroute.outcome import Provenance
from mecroute.request import Request
from mecroute.target import TargetState

Heat = Literal["hot", "warm", "cold"]

_MAX_ANSWERS = 256
_DEMAND_HALF_LIFE_S = 3600.0


@dataclass(frozen=True, slots=True)
class Remembered:
    """An answer given before, as the OpenAI-shaped body, with where it came from."""

    body: Mapping[str, Any]
    provenance: Provenance


class CacheAgent:
    """Remembers answers in this process and counts demand per model. For one event loop.

    Only what would come out the same again is remembered: requests at temperature 0. The key holds the
    whole request, the user and the requirements, so that nobody gets another's answer and no answer
    crosses a privacy floor. Nothing is written to disk.
    """

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._answers: OrderedDict[str, Remembered] = OrderedDict()
        self._demand: dict[str, tuple[float, float]] = {}

    def lookup(self, request: Request) -> Remembered | None:
        """The remembered answer to exactly this request, or None."""
        key = _key(request)
        if key is None or key not in self._answers:
            return None
        self._answers.move_to_end(key)
        return self._answers[key]

    def remember(self, request: Request, body: Mapping[str, Any], provenance: Provenance) -> None:
        """Keep a whole, undisturbed answer where the request allows it."""
        key = _key(request)
        if key is None or provenance.outcome.error is not None or len(provenance.segments) != 1:
            return
        self._answers[key] = Remembered(body, provenance)
        while len(self._answers) > _MAX_ANSWERS:
            self._answers.popitem(last=False)

    def asked_for(self, model: str) -> None:
        """Count one request answered by a model."""
        self._demand[model] = (self.demand(model) + 1, self._clock())

    def demand(self, model: str) -> float:
        """Recent requests for a model, each losing half its weight every hour."""
        count, at = self._demand.get(model, (0.0, self._clock()))
        return count * math.exp2(-max(0.0, self._clock() - at) / _DEMAND_HALF_LIFE_S)

    @staticmethod
    def heat(model: str, targets: Iterable[TargetState], in_store: bool) -> Heat:
        """`hot` when loaded on a MEC node, `warm` when it lies in the store, else `cold`."""
        if any(t.target.tier == "mec" and t.target.model == model and not t.ready_in_ms for t in targets):
            return "hot"
        return "warm" if in_store else "cold"


def _key(request: Request) -> str | None:
    if request.task in ("embed", "classify", "infer"):
        deterministic = True
    else:
        temperature = request.body.get("temperature")
        deterministic = isinstance(temperature, int | float) and temperature == 0
    if not deterministic:
        return None
    try:
        canonical = json.dumps(
            {
                "task": request.task,
                "model": request.model.text,
                "user": request.user,
                "body": dict(request.body),
                "requirements": request.requirements.to_dict(),
            },
            sort_keys=True,
            ensure_ascii=True,
        )
    except (TypeError, ValueError):
        return None  # holds something that is no JSON; it cannot be told apart safely
    return hashlib.sha256(canonical.encode()).hexdigest()
