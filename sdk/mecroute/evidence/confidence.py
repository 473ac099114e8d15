"""What log-probabilities tell of an answer that nobody judged: learned, per target, from those that were.

The mean log-probability per token of right and of wrong answers is taken to be normal with one variance
(linear discriminant analysis), so that

    odds of being right = predicted odds × exp(((x - wrong)² - (x - right)²) / 2 variance)

Over all answers of the target that changes nothing on average; it tells requests apart at which the target is
surer than usual from those at which it is not.
"""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from mecroute.numbers import finite

#: Judged answers of each sort before anything is concluded from them.
LEAST_JUDGED = 10
#: Judged answers that count; older ones fade.
_MOST_JUDGED = 500.0
_ANSWERS_KEPT = 2000
_TARGETS = 2000
#: No target's log-probabilities are all the same, and no single answer turns the odds round by more.
_LEAST_DEVIATION, _MOST_LOG_ODDS = 0.05, 3.0


@dataclass(slots=True)
class Sort:
    """Right or wrong answers: how many, their mean log-probability, and the sum of squared deviations."""

    count: float = 0.0
    mean: float = 0.0
    squares: float = 0.0

    def add(self, value: float) -> None:
        """Take one in (Welford 1962)."""
        if self.count >= _MOST_JUDGED:
            self.squares *= (_MOST_JUDGED - 1) / self.count
            self.count = _MOST_JUDGED - 1
        self.count += 1
        step = value - self.mean
        self.mean += step / self.count
        self.squares += step * (value - self.mean)


@dataclass(slots=True)
class Sorts:
    """Of one target."""

    right: Sort = field(default_factory=Sort)
    wrong: Sort = field(default_factory=Sort)

    def log_odds(self, value: float) -> float | None:
        """What a log-probability adds to the log-odds of being right; None where too little is known."""
        count = self.right.count + self.wrong.count
        if min(self.right.count, self.wrong.count) < LEAST_JUDGED:
            return None
        variance = max(_LEAST_DEVIATION**2, (self.right.squares + self.wrong.squares) / (count - 2))
        found = ((value - self.wrong.mean) ** 2 - (value - self.right.mean) ** 2) / (2 * variance)
        return min(_MOST_LOG_ODDS, max(-_MOST_LOG_ODDS, found))


class LogprobEvidence:
    """Thread-safe. What is kept are numbers; no text."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._seen: OrderedDict[str, float] = OrderedDict()
        self._known: dict[str, Sorts] = {}
        self._changed: set[str] = set()

    def saw(self, request_id: str, mean_logprob: float) -> None:
        """An answer came with this mean log-probability; it may be judged later."""
        with self._lock:
            self._seen[request_id] = mean_logprob
            while len(self._seen) > _ANSWERS_KEPT:
                self._seen.popitem(last=False)

    def judged(self, request_id: str, target_id: str, score: float) -> None:
        """An answer was judged: 0 (wrong) to 1 (right)."""
        with self._lock:
            value = self._seen.pop(request_id, None)
            if value is None or not (math.isfinite(value) and math.isfinite(score)):
                return
            if target_id not in self._known and len(self._known) >= _TARGETS:
                del self._known[next(iter(self._known))]
            known = self._known.setdefault(target_id, Sorts())
            (known.right if score >= 0.5 else known.wrong).add(value)
            self._changed.add(target_id)

    def quality(self, target_id: str, mean_logprob: float, predicted: float) -> float | None:
        """How likely an answer with this log-probability is right, 0..1; None where too little is known.

        Args:
            predicted: quality predicted for it, 0..1.
        """
        with self._lock:
            known = self._known.get(target_id)
            shift = (
                known.log_odds(mean_logprob) if known is not None and math.isfinite(mean_logprob) else None
            )
        if shift is None or not 0 < predicted < 1:
            return None
        return 1 / (1 + math.exp(-(math.log(predicted / (1 - predicted)) + shift)))

    def __iter__(self) -> Iterator[tuple[str, Sorts]]:
        with self._lock:
            return iter(list(self._known.items()))

    def take_changes(self) -> dict[str, dict[str, Any]]:
        """What changed since the last call, as JSON objects by target."""
        with self._lock:
            changed, self._changed = self._changed, set()
            return {
                target: {name: _numbers(getattr(self._known[target], name)) for name in ("right", "wrong")}
                for target in changed
                if target in self._known
            }

    def restore(self, name: str, value: Mapping[str, Any]) -> None:
        """Take back what `take_changes` gave. Damaged values are left out."""
        right, wrong = _sort(value.get("right")), _sort(value.get("wrong"))
        if right is not None and wrong is not None:
            with self._lock:
                self._known[name] = Sorts(right, wrong)

    def forget(self) -> None:
        """Start afresh."""
        with self._lock:
            self._known.clear()
            self._seen.clear()
            self._changed.clear()


def _numbers(sort: Sort) -> list[float]:
    return [sort.count, sort.mean, sort.squares]


def _sort(row: object) -> Sort | None:
    if not isinstance(row, list) or len(row) != 3:
        return None
    count, mean, squares = map(finite, row)
    if count is None or mean is None or squares is None or count < 0 or squares < 0:
        return None
    return Sort(count, mean, squares)
