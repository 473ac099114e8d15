"""How long a decoding step takes, and how much longer with each further row."""

from __future__ import annotations

import math

#: What a step's weight is multiplied by at each later one.
_KEEP = 0.97
#: Rows must have varied by about this much (standard deviation) before a slope is read off them.
_MIN_SPREAD = 0.5
#: Steps that a measured slope is good for: other work on the machine may have spoilt it, or the load changed.
#: Twice as many each time that it is found to be about the same.
_VALID_STEPS, _MOST_VALID_STEPS = 400, 12_800
_ABOUT = 0.5
#: A step that took this many times what was expected says something about the machine's other work.
_OUTLIER = 3.0
#: What is less likely than this is not drafted even where rows cost nothing.
MIN_PROBABILITY = 0.1


class StepCost:
    """Least squares of step time over rows, with a memory of some thirty steps.

    Not thread-safe.
    """

    __slots__ = (
        "_age", "_before_s", "_per_row_s", "_rows", "_rows2", "_rows_s", "_seconds", "_valid_steps",
        "_weight",
    )  # fmt: skip

    def __init__(self) -> None:
        self._weight = self._rows = self._seconds = self._rows2 = self._rows_s = 0.0
        self._per_row_s: float | None = None
        self._before_s: float | None = None
        self._valid_steps = _VALID_STEPS
        self._age = 0

    def add(self, rows: int, seconds: float) -> None:
        """Count a step that decoded `rows` tokens and no prompt."""
        expected = self.step_s(rows)
        if expected is not None:
            seconds = min(seconds, _OUTLIER * expected)
        self._weight = self._weight * _KEEP + 1
        self._rows = self._rows * _KEEP + rows
        self._seconds = self._seconds * _KEEP + seconds
        self._rows2 = self._rows2 * _KEEP + rows * rows
        self._rows_s = self._rows_s * _KEEP + rows * seconds
        self._age += 1
        mean = self._rows / self._weight
        variance = self._rows2 / self._weight - mean * mean
        if variance >= _MIN_SPREAD**2 and self._weight > 4:
            slope = (self._rows_s / self._weight - mean * self._seconds / self._weight) / variance
            # More rows never take less, and never more than as many steps of their own.
            per_row_s = min(max(0.0, slope), self._seconds / self._rows)
            if self._per_row_s is None and self._before_s is not None:
                same = abs(per_row_s - self._before_s) <= _ABOUT * max(per_row_s, self._before_s)
                self._valid_steps = min(2 * self._valid_steps, _MOST_VALID_STEPS) if same else _VALID_STEPS
            self._per_row_s = per_row_s
            self._age = 0
        elif self._age > self._valid_steps and self._per_row_s is not None:
            self._before_s, self._per_row_s = self._per_row_s, None

    @property
    def per_row_s(self) -> float | None:
        """Seconds that a further row adds; None while that is not known."""
        return self._per_row_s

    def step_s(self, rows: int) -> float | None:
        """Seconds to expect of a step; None while too little is known."""
        if self._per_row_s is None:
            return None
        mean_s, mean_rows = self._seconds / self._weight, self._rows / self._weight
        return max(mean_s + (rows - mean_rows) * self._per_row_s, mean_s / max(1.0, mean_rows), 1e-9)


def draft_length(
    probability: float, *, generating: int, cost: StepCost, draft_token_s: float, margin: float, limit: int
) -> int:
    """How many tokens to draft for one of the requests, so that all together get more tokens a second.

    The n-th drafted token is right with about `probability ** n`. It is worth its row where that is more than
    the tokens which the requests would get without it in the time it takes:
    probability ** n > margin * (generating / step time) * (row time + drafting time).

    Args:
        probability: 0..1, that a drafted token is right if those before it were.
        generating: requests that get a token from the step.
        cost: measured; its per_row_s is known.
        draft_token_s: seconds it takes to draft a token.
        margin: ≥ 1; how much better it must be, for the noise in what was measured.
        limit: ≥ 0; never more.
    """
    step_s, per_row_s = cost.step_s(generating), cost.per_row_s
    if step_s is None or per_row_s is None or probability <= 0:
        return 0
    needed = max(MIN_PROBABILITY, margin * generating / step_s * (per_row_s + draft_token_s))
    if probability >= 1 > needed:
        return limit
    if needed >= 1 or probability >= 1:
        return 0
    return min(limit, int(math.log(needed) / math.log(probability)))
