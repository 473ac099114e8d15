"""How long a reader waits between two tokens of an answer: a histogram that the engine's thread fills."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass

#: Upper bounds of the buckets, in seconds; one more bucket has no bound.
GAP_BOUNDS_S = (0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5, 5.0)


@dataclass(frozen=True, slots=True)
class GapCounts:
    """A histogram at one moment.

    Attributes:
        counts: one for each bound of `GAP_BOUNDS_S`, and one for what is above them; not cumulated.
        sum_s: of all gaps.
    """

    counts: tuple[int, ...] = (0,) * (len(GAP_BOUNDS_S) + 1)
    sum_s: float = 0.0


class GapHistogram:
    """Counts gaps since the start. One thread adds, any may read."""

    def __init__(self) -> None:
        self._counts = [0] * (len(GAP_BOUNDS_S) + 1)
        self._sum_s = 0.0

    def add(self, seconds: float) -> None:
        """Count a gap of `seconds` ≥ 0."""
        self._counts[bisect_left(GAP_BOUNDS_S, seconds)] += 1
        self._sum_s += seconds

    def read(self) -> GapCounts:
        """The counts so far."""
        return GapCounts(tuple(self._counts), self._sum_s)
