"""Thresholds that keep a rate of errors among what passes them, with a stated confidence.

The bound is the exact one of Clopper and Pearson (1934), and holds for cases like those of the data:
thresholds are tried from stricter to laxer, and the first one that fails ends a sequence, so that choosing
within a sequence costs none of the confidence; there are three sequences, with different starts, which share
it evenly (multi-start fixed-sequence testing; Angelopoulos et al. 2021, "Learn then Test"). The thresholds
must be fixed before the data is seen.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

#: A sequence begins where so many times the least number of cases is reached that could pass at all: the
#: more, the more errors it bears at its start.
_STARTS = (1.0, 2.0, 4.0)
_BISECTIONS = 60


class Level(NamedTuple):
    """A threshold, the cases that pass it, and how many of those are errors."""

    threshold: float
    passed: int
    wrong: int


class Found(NamedTuple):
    """The threshold that keeps the rate and lets most cases pass; the strictest, where several let as many.

    None where none does, with what was found at the first tried.

    Attributes:
        upper_bound: of the rate of errors among what passes.
    """

    threshold: float | None
    passed: int
    wrong: int
    upper_bound: float


def least_cases(rate: float, confidence: float) -> int:
    """How many cases have to pass a threshold, all of them right, before it can be known to keep the rate."""
    return math.ceil(math.log((1 - confidence) / len(_STARTS)) / math.log(1 - rate))


def find_threshold(levels: Iterable[Level], rate: float, confidence: float) -> Found:
    """The threshold that lets most cases pass, of those that some sequence accepts.

    Args:
        levels: from the strictest threshold on.
        rate: 0..1, both excluded.
        confidence: 0..1, both excluded.
    """
    levels = list(levels)
    least = least_cases(rate, confidence)
    shared = 1 - (1 - confidence) / len(_STARTS)
    best: Level | None = None
    failed: Level | None = None
    for start in _STARTS:
        for level in levels:
            if level.passed < least * start:
                continue  # where a sequence begins depends on no error
            if at_most(level.wrong, level.passed, rate) > 1 - shared:  # its bound is above the rate
                failed = failed or level
                break
            # Not laxer than what let a case pass: below the last one nothing was seen.
            if best is None or level.passed > best.passed:
                best = level
    if best is not None:
        return Found(*best, upper_bound(best.wrong, best.passed, shared))
    if failed is not None:
        return Found(None, failed.passed, failed.wrong, upper_bound(failed.wrong, failed.passed, shared))
    return Found(None, 0, 0, 1.0)


def upper_bound(wrong: int, passed: int, confidence: float = 0.95) -> float:
    """The one-sided Clopper-Pearson bound: the largest rate at which so few errors still occur with
    probability 1 - confidence."""
    if wrong >= passed:
        return 1.0
    low, high = wrong / passed, 1.0
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        if at_most(wrong, passed, middle) > 1 - confidence:
            low = middle
        else:
            high = middle
    return high


def at_most(wrong: int, passed: int, rate: float) -> float:
    """P(X <= wrong) of a binomial distribution."""
    if rate <= 0:
        return 1.0
    if rate >= 1:
        return float(wrong >= passed)
    log_rate, log_rest = math.log(rate), math.log1p(-rate)
    total = 0.0
    for k in range(wrong + 1):
        log_ways = math.lgamma(passed + 1) - math.lgamma(k + 1) - math.lgamma(passed - k + 1)
        total += math.exp(log_ways + k * log_rate + (passed - k) * log_rest)
    return min(1.0, total)
