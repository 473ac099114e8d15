"""Ollama's `keep_alive`: how long a model stays in memory after its last request."""

from __future__ import annotations

import math
import re
from typing import Any

from mecroute.errors import InvalidRequestError

#: Go's durations: `300ms`, `1h30m`, `-1s`.
_PART = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(ns|us|µs|μs|ms|s|m|h)")
_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_MAX_CHARS = 64


def parse_keep_alive(value: Any) -> float | None:
    """Seconds, >= 0; infinite for a negative value, as Ollama has it; None where nothing is said.

    Args:
        value: a number of seconds, one as a text, or a duration of Go's.

    Raises:
        InvalidRequestError: it is something else.
    """
    if value is None:
        return None
    seconds = _seconds(value)
    if seconds is None or math.isnan(seconds):
        raise InvalidRequestError(
            f"keep_alive is {str(value)[:_MAX_CHARS]!r}",
            hint="send seconds, a duration such as '5m', 0 to unload, or -1 to keep it",
        )
    return math.inf if seconds < 0 else seconds


def _seconds(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    if not isinstance(value, str):
        return float(min(max(value, -1), 1e12))
    text = value.strip()
    if len(text) > _MAX_CHARS or (not text.isascii() and not re.search("[µμ]", text)):
        return None
    digits = text.lstrip("+-")
    if len(text) - len(digits) > 1 or not digits:
        return None
    sign = -1.0 if text[0] == "-" else 1.0
    if re.fullmatch(r"\d+(\.\d*)?", digits):
        return sign * float(digits)
    if not re.fullmatch(f"(?:{_PART.pattern})+", digits):
        return None
    return sign * sum(float(number) * _UNITS[unit] for number, unit in _PART.findall(digits))
