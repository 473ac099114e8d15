"""Accuracy against mean latency: points, what mixing can reach, and how sure a difference is.

A point is what a way to choose gives over all requests. Random mixing of two points gives every point of the
line between them; of several, the upper hull of all. Intervals are percentiles over resampled requests
(bootstrap), everything that is compared being measured on the same resample.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

RESAMPLES = 2000
_SEED = 5


@dataclass(frozen=True, slots=True)
class Run:
    """What a way to choose gave, request by request.

    Args:
        right: float [requests], 0 or 1.
        latency_ms: float [requests].
    """

    name: str
    right: Any
    latency_ms: Any

    @property
    def accuracy(self) -> float:
        return float(self.right.mean())

    @property
    def mean_ms(self) -> float:
        return float(self.latency_ms.mean())

    @property
    def p95_ms(self) -> float:
        return float(np.quantile(self.latency_ms, 0.95))

    def of(self, chosen: Any) -> Run:
        """The same over some of the requests (a mask)."""
        return Run(self.name, self.right[chosen], self.latency_ms[chosen])


@dataclass(frozen=True, slots=True)
class Difference:
    """A difference and its 95% interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value * 100:+.1f} ({self.low * 100:+.1f} to {self.high * 100:+.1f})"


def best_mix(latencies_ms: Any, accuracies: Any, at_ms: Any) -> Any:
    """The best accuracy that mixing can reach within a mean latency.

    Args:
        latencies_ms, accuracies: float [..., points], of what is mixed.
        at_ms: float [...]; below the fastest point, that point's accuracy is given: no mix is as fast.
    """
    points = latencies_ms.shape[-1]
    fastest = np.take_along_axis(accuracies, latencies_ms.argmin(-1)[..., None], -1)[..., 0]
    best = np.where(latencies_ms <= at_ms[..., None], accuracies, -np.inf).max(-1)
    best = np.maximum(best, fastest)
    for one in range(points):
        for other in range(points):
            low, high = latencies_ms[..., one], latencies_ms[..., other]
            inside = (low <= at_ms) & (at_ms < high)
            share = (at_ms - low) / np.where(inside, high - low, 1.0)
            mixed = accuracies[..., one] + share * (accuracies[..., other] - accuracies[..., one])
            best = np.maximum(best, np.where(inside, mixed, -np.inf))
    return best


def over_mix(run: Run, mixed: Sequence[Run], *, resamples: int = RESAMPLES) -> Difference:
    """Its accuracy less the best that mixing the others reaches at the same mean latency."""
    weights = _resampled(len(run.right), resamples)
    rights = np.stack([one.right for one in mixed], 1)
    times = np.stack([one.latency_ms for one in mixed], 1)
    found = weights @ run.right - best_mix(weights @ times, weights @ rights, weights @ run.latency_ms)
    value = run.accuracy - best_mix(times.mean(0), rights.mean(0), np.asarray(run.mean_ms))
    return _interval(float(value), found)


def less(run: Run, other: Run, *, resamples: int = RESAMPLES) -> Difference:
    """Its accuracy less the other's."""
    gap = run.right - other.right
    return _interval(float(gap.mean()), _resampled(len(gap), resamples) @ gap)


def spread(values: Any, *, resamples: int = RESAMPLES) -> Difference:
    """A mean with its interval."""
    return _interval(float(np.mean(values)), _resampled(len(values), resamples) @ np.asarray(values, float))


def front(runs: Sequence[Run]) -> list[Run]:
    """Those that no other one is both faster and better than, the fastest first."""
    kept: list[Run] = []
    for run in sorted(runs, key=lambda run: (run.mean_ms, -run.accuracy)):
        if not kept or run.accuracy > kept[-1].accuracy:
            kept.append(run)
    return kept


def hull(runs: Sequence[Run]) -> list[Run]:
    """The corners of what mixing them can reach, the fastest first."""
    corners: list[Run] = []
    for run in front(runs):
        while len(corners) > 1 and _slope(corners[-2], run) >= _slope(corners[-2], corners[-1]):
            corners.pop()
        corners.append(run)
    return corners


def oracle(tiers: Mapping[str, Run]) -> Run:
    """The fastest tier that is right, and where none is, the fastest: what perfect routing would give."""
    rights = np.stack([run.right for run in tiers.values()], 1)
    times = np.stack([run.latency_ms for run in tiers.values()], 1)
    wanted = np.where(rights == rights.max(1, keepdims=True), times, np.inf)
    return Run("oracle", rights.max(1), wanted.min(1))


def _slope(one: Run, other: Run) -> float:
    return (other.accuracy - one.accuracy) / max(1e-9, other.mean_ms - one.mean_ms)


def _resampled(count: int, resamples: int) -> Any:
    """How often each request is drawn, as shares: float [resamples, count]."""
    rng = np.random.default_rng(_SEED)
    return rng.multinomial(count, np.full(count, 1 / count), size=resamples) / count


def _interval(value: float, found: Any) -> Difference:
    low, high = np.quantile(found, (0.025, 0.975))
    return Difference(value, float(low), float(high))
