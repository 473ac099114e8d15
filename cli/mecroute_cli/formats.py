"""How numbers are written for people: bytes, rates, times, shares, money, digests.

Each returns a short text; a missing value (None) is a dash, so that a table never shows a guess.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

MISSING = "-"


def text(value: Any) -> str:
    """Any value in plain words: lists joined, booleans as yes and no, None as a dash."""
    if value is None or value == "":
        return MISSING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return ", ".join(text(item) for item in value) or MISSING
    return str(value)


def size(size_bytes: float | None) -> str:
    """Bytes in decimal units, as file managers and S3 show them: `98.4 MB`."""
    if size_bytes is None:
        return MISSING
    amount = float(size_bytes)
    for unit in ("B", "kB", "MB", "GB"):
        if abs(amount) < 1000:
            return f"{amount:.0f} B" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1000
    return f"{amount:.1f} TB"


def milliseconds(duration_ms: float | None) -> str:
    """`84 ms`, `1.84 s`."""
    if duration_ms is None:
        return MISSING
    return f"{duration_ms:.0f} ms" if duration_ms < 1000 else f"{duration_ms / 1000:.2f} s"


def rate(per_second: float | None) -> str:
    """Tokens per second with one decimal; the column's header names the unit."""
    return MISSING if per_second is None else f"{per_second:.1f}"


def decimals(value: float | None, places: int = 2) -> str:
    """A number with a fixed count of decimals."""
    return MISSING if value is None else f"{value:.{places}f}"


def usd(amount: float | None) -> str:
    """`$0.000120`; a free request is `$0`."""
    if amount is None:
        return MISSING
    return "$0" if amount == 0 else f"${amount:.6f}"


def accuracy(share: float | None, items: int | None = None) -> str:
    """A share of right answers, with its binomial standard error where the count of items is known."""
    if share is None:
        return MISSING
    if not items:
        return f"{share:.3f}"
    return f"{share:.3f} ± {(share * (1 - share) / items) ** 0.5:.3f}"


def digest(value: str | None) -> str:
    """The first twelve hex digits of a digest, enough to tell two apart by eye."""
    return MISSING if not value else value.removeprefix("sha256:")[:12]


def day(moment: datetime | str | None) -> str:
    """A moment as local date and minute."""
    if moment is None:
        return MISSING
    parsed = datetime.fromisoformat(moment) if isinstance(moment, str) else moment
    aware = parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)
    return aware.astimezone().strftime("%Y-%m-%d %H:%M")


def when(at: float | None) -> str:
    """A moment in Unix seconds as local date and second; one that no calendar knows is a dash."""
    if at is None:
        return MISSING
    try:
        return datetime.fromtimestamp(at, UTC).astimezone().strftime("%Y-%m-%d %H:%M:%S")
    except (ValueError, OverflowError, OSError):
        return MISSING
