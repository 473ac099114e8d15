"""Calendar periods, in UTC: the hour, the day or the month that a moment lies in."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Literal

Period = Literal["hour", "day", "month"]

_FIRST, _LAST = 0.0, 253_370_764_800.0  # 1970 to 9999: a clock beyond that is broken, not late


def period_of(per: Period, now: float) -> tuple[int, int]:
    """Begin and end, in Unix seconds, of the period that `now` lies in.

    Calendar periods were chosen over rolling ones: they say plainly when there is money again, they are what
    providers bill by, and a month needs one number where a rolling one needs every call.
    """
    moment = datetime.fromtimestamp(min(_LAST, max(_FIRST, now)), UTC).replace(
        minute=0, second=0, microsecond=0
    )
    if per == "hour":
        begin, end = moment, moment + timedelta(hours=1)
    elif per == "day":
        begin = moment.replace(hour=0)
        end = begin + timedelta(days=1)
    else:
        begin = moment.replace(hour=0, day=1)
        end = (begin + timedelta(days=32)).replace(day=1)
    return int(begin.timestamp()), int(end.timestamp())


def in_words(moment: float) -> str:
    """`2026-11-24 00:00 UTC`."""
    return datetime.fromtimestamp(min(_LAST, max(_FIRST, moment)), UTC).strftime("%Y-%m-%d %H:%M UTC")
