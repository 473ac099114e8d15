"""When there will be a place for another request, from how fast requests end."""

from __future__ import annotations

import time

from mecroute.engines.llama.rates import Rate

#: Before any request has been completed.
UNMEASURED_S = 1.0


class FreePlaces:
    """Tells callers that find no place when to come back.

    One thread counts; whoever asks holds the scheduler's lock.

    Args:
        places: for requests that run or wait, ≥ 1.
    """

    def __init__(self, places: int) -> None:
        self._places = places
        # Requests end far less often than steps: a longer memory, of time with something running.
        self._rate = Rate(memory_s=30.0)
        #: Places that become free until then are for those that were refused before; time.perf_counter().
        self._promised_until = 0.0

    def completed(self, requests: int, seconds: float) -> None:
        """Count requests that ended in a step of so many seconds."""
        self._rate.add(requests, seconds)

    def next_s(self) -> float:
        """Seconds until one of the requests ends and makes a place free, at the measured rate."""
        per_s = self._rate.per_s
        return 1 / per_s if per_s else UNMEASURED_S

    def come_back_after_s(self) -> float:
        """When there will be a place for one that is refused now, behind those that were told to come back.

        Told the same time, all of them would come at once for the one place that there is then. Not all come
        back, so that nobody is sent away for longer than it takes to complete what is here now.
        """
        one_s, now = self.next_s(), time.perf_counter()
        self._promised_until = min(max(self._promised_until, now) + one_s, now + one_s * self._places)
        return self._promised_until - now
