"""Live rates: how much was done per second of the time spent on it."""

from __future__ import annotations

import math


class Rate:
    """Amount per second over roughly the last `memory_s` seconds of measured time.

    Both sums decay with the measured time, so many small steps weigh no more than a large one, and idle
    time neither counts nor forgets.

    Args:
        memory_s: > 0; measured time after which a step has 1/e of its weight.

    One thread adds, any may read.
    """

    __slots__ = ("_amount", "_memory_s", "_seconds")

    def __init__(self, memory_s: float = 5.0) -> None:
        self._memory_s = memory_s
        self._amount = 0.0
        self._seconds = 0.0

    def add(self, amount: float, seconds: float) -> None:
        """Count `amount` done in `seconds` (≥ 0) of work."""
        keep = math.exp(-seconds / self._memory_s)
        self._amount = self._amount * keep + amount
        self._seconds = self._seconds * keep + seconds

    @property
    def per_s(self) -> float | None:
        """The rate, or None while nothing has been measured."""
        if self._amount <= 0 or self._seconds <= 0:
            return None
        return self._amount / self._seconds
