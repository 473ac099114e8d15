"""What evidence says about a target's quality: decayed Beta posteriors per target and difficulty.

The prior of each posterior is the predicted quality, worth `_PRIOR` answers. With s the weighted sum of
scores and q that of the predictions for the same answers, both out of a weight n, its mean differs from the
prediction by

    delta = (s - q) / (n + prior)

which is what is added to the next prediction. The prior of a bucket of difficulty is moved by half of what
the target's other buckets say, so that answers to requests of one difficulty tell something of the others.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

BUCKETS = 5
_PRIOR = 10.0
_BORROWED = 0.5
_HALF_LIFE_S = 14 * 86_400.0
_MOST = 0.3  # no amount of evidence moves a prediction further: it may be biased as a whole
_TARGETS = 2000

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
        self._changed: set[str] = set()

    def add(
        self, target_id: str, complexity: float, *, score: float, weight: float, predicted: float
    ) -> None:
        """Take a judgement of one answer in.

        Args:
            complexity: 0..1, of the request.
            score: 0 (wrong) to 1 (right).
            weight: 0..1, how much it says; a person's word is 1.
            predicted: quality predicted for it, before any adjustment.
        """
        if not all(math.isfinite(v) for v in (complexity, score, weight, predicted)) or weight <= 0:
            return
        with self._lock:
            if target_id not in self._known and len(self._known) >= _TARGETS:
                self._known.pop(next(iter(self._known)))
            buckets = self._known.setdefault(target_id, [Posterior() for _ in range(BUCKETS)])
            buckets[bucket_of(complexity)].add(
                min(1.0, max(0.0, score)), weight, min(1.0, max(0.0, predicted)), self._clock()
            )
            self._changed.add(target_id)

    def adjustment(self, target_id: str, complexity: float) -> tuple[float, float]:
        """What to add to the predicted quality of a target, -0.3..0.3, and how much evidence that stands on.

        The second number is in judged answers of about this difficulty; 0 where nothing is known, and the
        first is then what the target's other answers say.
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
            return min(_MOST, max(-_MOST, delta)), here.weight

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
                    "buckets": [[b.successes, b.failures, b.predicted, b.at] for b in self._known[target]]
                }
                for target in changed
                if target in self._known
            }

    def restore(self, name: str, value: Mapping[str, Any]) -> None:
        """Take back what `take_changes` gave. Damaged values are left out."""
        rows = value.get("buckets")
        if not isinstance(rows, list) or len(rows) != BUCKETS:
            return
        buckets = []
        for row in rows:
            numbers = row if isinstance(row, list) and len(row) == 4 else [0.0] * 4
            if not all(isinstance(v, int | float) and math.isfinite(v) and v >= 0 for v in numbers):
                return
            buckets.append(Posterior(*(float(v) for v in numbers)))
        with self._lock:
            self._known[name] = buckets

    def forget(self) -> None:
        """Start afresh."""
        with self._lock:
            self._known.clear()
            self._changed.clear()


def bucket_of(complexity: float) -> int:
    """The bucket of a difficulty: fifths of 0..1."""
    return min(BUCKETS - 1, max(0, int(complexity * BUCKETS)))
