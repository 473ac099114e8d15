"""What evidence says about a target's quality: decayed Beta posteriors per target and difficulty.

The prior of each posterior is the predicted quality, worth `_PRIOR` answers. With s the weighted sum of
scores and q that of the predictions for the same answers, both out of a weight n, its mean differs from the
prediction by

    delta = (s - q) / (n + prior)

which is what is added to the next prediction. The prior of a bucket of difficulty is moved by half of what
the target's other buckets say, so that answers to requests of one difficulty tell something of the others.

What was judged of requests of one kind (the same instructions; see `predict/kind.py`) has a posterior of its
own, whose prior is the above: with delta' what the difficulty says, and s, q and n over the judged answers of
the kind,

    delta = (s - q + prior × delta') / (n + prior)

An answer that nobody judged counts for the difficulty alone.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from mecroute.numbers import finite

BUCKETS = 5
_PRIOR = 10.0
_BORROWED = 0.5
_HALF_LIFE_S = 14 * 86_400.0
#: No amount of evidence of other kinds moves a prediction further: it may be biased as a whole. What was
#: judged of the very kind may show that a model cannot do it at all.
_MOST = 0.3
_TARGETS = 2000
_KINDS = 256

#: How much an answer in which no bad sign was found says, and one with a sign (an answer judged wrong by a
#: person weighs 1).
CLEAN_WEIGHT = 0.2
SIGN_WEIGHTS: Mapping[str, float] = {"empty": 1.0, "invalid_json": 1.0, "refused": 0.7, "repetitive": 0.7}


@dataclass(slots=True)
class Posterior:
    """Decayed sums over the judged answers of one target in one bucket.

    Args:
        successes: sum of weight × score.
        failures: sum of weight × (1 - score).
        predicted: sum of weight × predicted quality.
        at: Unix time to which the sums are decayed.
    """

    successes: float = 0.0
    failures: float = 0.0
    predicted: float = 0.0
    at: float = 0.0

    @property
    def weight(self) -> float:
        """Judged answers, each as far as it counts."""
        return self.successes + self.failures

    def add(self, score: float, weight: float, predicted: float, now: float) -> None:
        """Take one judgement in."""
        # A clock that jumps, back or far ahead, costs at most one half-life.
        keep = math.exp2(-min(1.0, max(0.0, now - self.at) / _HALF_LIFE_S)) if self.at else 1.0
        self.successes = self.successes * keep + weight * score
        self.failures = self.failures * keep + weight * (1 - score)
        self.predicted = self.predicted * keep + weight * predicted
        self.at = now


class QualityEvidence:
    """Collects judgements and says how far predictions are off. Thread-safe.

    Args:
        clock: Unix seconds.
    """

    def __init__(self, *, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._known: dict[str, list[Posterior]] = {}
        self._kinds: dict[str, dict[str, Posterior]] = {}
        self._changed: set[str] = set()

    def add(
        self,
        target_id: str,
        complexity: float,
        *,
        score: float,
        weight: float,
        predicted: float,
        kind: str | None = None,
    ) -> None:
        """Take a judgement of one answer in.

        Args:
            complexity: 0..1, of the request.
            score: 0 (wrong) to 1 (right).
            weight: 0..1, how much it says; a person's word is 1.
            predicted: quality predicted for it, before any adjustment.
            kind: of the request, where the answer was judged; None: it counts for the difficulty alone.
        """
        if not all(math.isfinite(v) for v in (complexity, score, weight, predicted)) or weight <= 0:
            return
        with self._lock:
            if target_id not in self._known and len(self._known) >= _TARGETS:
                oldest = next(iter(self._known))
                del self._known[oldest]
                self._kinds.pop(oldest, None)
            score, predicted = min(1.0, max(0.0, score)), min(1.0, max(0.0, predicted))
            now = self._clock()
            buckets = self._known.setdefault(target_id, [Posterior() for _ in range(BUCKETS)])
            buckets[bucket_of(complexity)].add(score, weight, predicted, now)
            if kind is not None:
                kinds = self._kinds.setdefault(target_id, {})
                # Put back at the end: what is dropped for want of room was judged the longest ago.
                found = kinds[kind] = kinds.pop(kind) if kind in kinds else Posterior()
                found.add(score, weight, predicted, now)
                if len(kinds) > _KINDS:
                    del kinds[next(iter(kinds))]
            self._changed.add(target_id)

    def adjustment(self, target_id: str, complexity: float, kind: str | None = None) -> tuple[float, float]:
        """What to add to the predicted quality of a target, and how much evidence that stands on.

        The first is -0.3..0.3, or -1..1 where requests of this kind were judged. The second is in judged
        answers of this kind, or of about this difficulty; 0 where nothing is known, and the first is then
        what the target's other answers say.
        """
        buckets = self._known.get(target_id)
        if buckets is None:  # the usual case on the request path: no lock, nothing to compute
            return 0.0, 0.0
        with self._lock:
            here = buckets[bucket_of(complexity)]
            others = [b for b in buckets if b is not here]
            surplus = sum(b.successes - b.predicted for b in others)
            borrowed = _BORROWED * surplus / (sum(b.weight for b in others) + _PRIOR)
            delta = (here.successes - here.predicted + _PRIOR * borrowed) / (here.weight + _PRIOR)
            delta = min(_MOST, max(-_MOST, delta))
            if kind is not None and (alike := self._kinds.get(target_id, _NONE).get(kind)) is not None:
                told = alike.successes - alike.predicted + _PRIOR * delta
                return told / (alike.weight + _PRIOR), alike.weight
            return delta, here.weight

    def kinds(self, target_id: str) -> dict[str, Posterior]:
        """What was judged of a target, by kind of request."""
        with self._lock:
            return dict(self._kinds.get(target_id, _NONE))

    def __bool__(self) -> bool:
        return bool(self._known)

    def __iter__(self) -> Iterator[tuple[str, list[Posterior]]]:
        with self._lock:
            known = [(target, list(buckets)) for target, buckets in self._known.items()]
        return iter(known)

    def take_changes(self) -> dict[str, dict[str, Any]]:
        """What changed since the last call, as JSON objects by target."""
        with self._lock:
            changed, self._changed = self._changed, set()
            return {
                target: {
                    "buckets": [_numbers(b) for b in self._known[target]],
                    "kinds": {name: _numbers(k) for name, k in self._kinds.get(target, _NONE).items()},
                }
                for target in changed
                if target in self._known
            }

    def restore(self, name: str, value: Mapping[str, Any]) -> None:
        """Take back what `take_changes` gave. Damaged values are left out."""
        rows = value.get("buckets")
        if not isinstance(rows, list) or len(rows) != BUCKETS:
            return
        buckets = [_posterior(row) for row in rows]
        named = value.get("kinds") or {}
        kinds = (
            {str(kind): _posterior(row) for kind, row in named.items()} if isinstance(named, Mapping) else {}
        )
        if not all(buckets):
            return
        with self._lock:
            self._known[name] = [bucket for bucket in buckets if bucket]
            self._kinds[name] = {kind: found for kind, found in list(kinds.items())[-_KINDS:] if found}

    def forget(self) -> None:
        """Start afresh."""
        with self._lock:
            self._known.clear()
            self._kinds.clear()
            self._changed.clear()


_NONE: dict[str, Posterior] = {}


def _numbers(posterior: Posterior) -> list[float]:
    return [posterior.successes, posterior.failures, posterior.predicted, posterior.at]


def _posterior(row: object) -> Posterior | None:
    """What `_numbers` gave; None where it is damaged."""
    if not isinstance(row, list) or len(row) != 4:
        return None
    numbers = [number for value in row if (number := finite(value)) is not None and number >= 0]
    return Posterior(*numbers) if len(numbers) == len(row) else None


def bucket_of(complexity: float) -> int:
    """The bucket of a difficulty: fifths of 0..1."""
    return min(BUCKETS - 1, max(0, int(complexity * BUCKETS)))
