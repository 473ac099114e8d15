"""Whether a cloud takes requests at the moment, by the status codes of its answers."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping

#: A cloud may ask for a pause; within reason, it gets it.
_MAX_PAUSE_S = 300.0
_DEFAULT_PAUSE_S = 1.0
#: A key that is not accepted is seldom accepted a second later; it is tried again in case it was mended.
_REFUSED_PAUSE_S = 60.0
_MAX_REMOTES = 1024


class CloudHealth:
    """Pauses that clouds asked for. For one event loop.

    What failed altogether is the monitor's business; this hears only of answers.

    Args:
        clock: monotonic seconds.
    """

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._pauses: dict[str, tuple[float, str]] = {}

    def answered(self, remote: str, status: int, headers: Mapping[str, str]) -> None:
        """A cloud answered with this status.

        Args:
            headers: with lower-case names, or a mapping that does not tell cases apart.
        """
        if status == 429:
            pause = _pause_s(headers)
            self._pause(remote, pause, "it is at its rate limit (429)")
        elif status in (401, 403):
            self._pause(remote, _REFUSED_PAUSE_S, f"it does not accept the API key ({status})")
        elif status < 400:
            self._pauses.pop(remote, None)

    def problem(self, remote: str) -> str | None:
        """Why a cloud is not asked now; None when it may be."""
        known = self._pauses.get(remote)
        if known is None:
            return None
        left = known[0] - self._clock()
        # A clock that jumped back would otherwise make the pause longer than any can be.
        if not 0 < left <= _MAX_PAUSE_S:
            del self._pauses[remote]
            return None
        return f"{known[1]}; next try in {left:.0f} s"

    def _pause(self, remote: str, pause_s: float, why: str) -> None:
        if remote in self._pauses or len(self._pauses) < _MAX_REMOTES:
            self._pauses[remote] = (self._clock() + pause_s, why)


def _pause_s(headers: Mapping[str, str]) -> float:
    """What Retry-After asks for in seconds (a date is read as the default), within reason."""
    told = headers.get("retry-after", "").strip()
    if not re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,6})?", told):
        return _DEFAULT_PAUSE_S
    return min(_MAX_PAUSE_S, max(_DEFAULT_PAUSE_S, float(told)))
