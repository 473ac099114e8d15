"""Numbers that came from outside: out of JSON, which has whole ones of any length, and no NaN, or a NaN."""

from __future__ import annotations

import math


def finite(value: object) -> float | None:
    """A number as a float; None for NaN, infinities, what no float holds, and whatever is no number."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:  # of a whole number beyond 10**308
        return None
    return number if math.isfinite(number) else None
