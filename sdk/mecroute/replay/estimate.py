"""Off-policy estimates: what another policy would have got, from what one policy did get.

For a deterministic policy that would choose a' where a was chosen with probability p, with outcome y and
prediction m(a):

    direct method          mean of m(a')
    IPS                    mean of w y                       w = 1[a = a'] / p
    SNIPS                  sum of w y / sum of w             (Swaminathan and Joachims 2015)
    doubly robust          mean of m(a') + w (y - m(a))      (Dudík, Langford and Li 2011)

IPS and SNIPS are right only where the other policy's choices had a chance of being made. Intervals are by
block bootstrap (Künsch 1989; blocks that do not overlap, Carlstein 1986), for neighbouring requests share the
load of their moment.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

_BLOCKS = 200
_RESAMPLES = 1000
_LEVEL = 0.95


@dataclass(frozen=True, slots=True)
class Sample:
    """One request and one metric.

    Args:
        weight: 1 / propensity where both policies choose alike, else 0.
        observed: None where it was not observed.
        predicted_logged: what was predicted of the logged choice.
        predicted_other: what was predicted of the other policy's choice.
    """

    weight: float
    observed: float | None
    predicted_logged: float
    predicted_other: float


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value with its 95% interval; None where there is nothing to estimate it from."""

    value: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True, slots=True)
class MetricEstimates:
    """What each estimator says of one metric, and what was observed under the logged policy."""

    logged: Estimate
    direct: Estimate
    ips: Estimate
    snips: Estimate
    doubly_robust: Estimate
    observations: int


#: Sums of a block: requests, requests observed, observed, predicted, weight, weight × observed,
#: weight × (observed - predicted) over those observed.
_Sums = tuple[float, float, float, float, float, float, float]


def estimate(samples: Sequence[Sample], *, seed: int = 0) -> MetricEstimates:
    """Estimate one metric from requests in the order of time.

    Where only some requests were observed (as with quality), the observed ones stand for all.
    """
    blocks = _blocks(samples)
    random = Random(seed)  # noqa: S311 - resampling
    point = _values(_total(blocks))
    drawn: list[list[float]] = [[] for _ in point]
    if len(blocks) > 1:
        for _ in range(_RESAMPLES):
            resampled = _values(_total(random.choices(blocks, k=len(blocks))))
            for values, value in zip(drawn, resampled, strict=True):
                if value is not None:
                    values.append(value)
    logged, direct, ips, snips, doubly_robust = (
        _interval(value, values) for value, values in zip(point, drawn, strict=True)
    )
    observations = sum(s.observed is not None for s in samples)
    return MetricEstimates(logged, direct, ips, snips, doubly_robust, observations)


def effective_samples(weights: Sequence[float]) -> float:
    """Kish's effective sample size of weights: (sum w)² / sum w²; 0 without any."""
    squares = sum(w * w for w in weights)
    return sum(weights) ** 2 / squares if squares else 0.0


def _blocks(samples: Sequence[Sample]) -> list[_Sums]:
    size = max(1, -(-len(samples) // _BLOCKS))
    blocks = []
    for begin in range(0, len(samples), size):
        n = seen = observed = predicted = weights = weighted = corrected = 0.0
        for s in samples[begin : begin + size]:
            n += 1
            predicted += s.predicted_other
            if s.observed is not None:
                seen += 1
                observed += s.observed
                weights += s.weight
                weighted += s.weight * s.observed
                corrected += s.weight * (s.observed - s.predicted_logged)
        blocks.append((n, seen, observed, predicted, weights, weighted, corrected))
    return blocks


def _total(blocks: Sequence[_Sums]) -> list[float]:
    return [sum(column) for column in zip(*blocks, strict=True)] or [0.0] * 7


def _values(sums: Sequence[float]) -> tuple[float | None, ...]:
    n, seen, observed, predicted, weights, weighted, corrected = sums
    direct = predicted / n if n else None
    return (
        observed / seen if seen else None,
        direct,
        weighted / seen if weights else None,
        weighted / weights if weights else None,
        direct + corrected / seen if direct is not None and seen else None,
    )


def _interval(value: float | None, drawn: list[float]) -> Estimate:
    # An interval that many resamples have nothing to say on would look narrower than it is.
    if value is None or len(drawn) < 0.9 * _RESAMPLES:
        return Estimate(value, None, None)
    drawn.sort()
    tail = (1 - _LEVEL) / 2
    return Estimate(
        value, drawn[int(tail * len(drawn))], drawn[min(len(drawn) - 1, int((1 - tail) * len(drawn)))]
    )
