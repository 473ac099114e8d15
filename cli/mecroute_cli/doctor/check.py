"""The result of one check."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

#: `missing` is something optional that is not there; only `broken` is a failure.
Status = Literal["ok", "missing", "broken"]


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at.

    Args:
        area: the group it belongs to, as `extras` or `nodes`.
        name: what was looked at.
        status: `ok`, `missing` (optional and not there) or `broken` (should work and does not).
        detail: what was found.
        fix: what to do about it; empty when there is nothing to do.
    """

    area: str
    name: str
    status: Status
    detail: str
    fix: str = ""
