"""How many threads to compute with, and who goes first, while others use the same cores."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time

#: How often the machine's load is looked at; reading it costs 0.1 ms.
INTERVAL_S = 1.0
#: After a pause of this length the load is looked at anew: what others did meanwhile says nothing about now.
PAUSE_S = 0.1
#: And for the first time so long after it.
FIRST_INTERVAL_S = 0.2
#: Between 0, as everything else, and 19. Where 8 requests of 1,200 tokens came together beside 8 answers, on
#: 2 cores, the last of them was refused after 37 to 62 ms with it and 42 to 147 without. With an answer or 8
#: and nothing else to do throughput was the same within noise, and gaps between tokens were 4 to 9% shorter.
_NICENESS = 5


def give_way() -> None:
    """Let others have the cores first, from the calling thread and those that it will start.

    Whoever takes in requests and sends tokens needs a core now and then for less than a millisecond, and
    threads that compute always want all of them. Only Linux knows this of single threads.
    """
    if sys.platform == "linux":
        thread = threading.get_native_id()
        with contextlib.suppress(OSError):
            own = os.getpriority(os.PRIO_PROCESS, thread)
            os.setpriority(os.PRIO_PROCESS, thread, max(own, _NICENESS))


class ThreadGovernor:
    """Keeps the number of threads at the number of cores that others leave free.

    llama.cpp's threads meet several hundred times a token and spin while they wait for each other. A thread
    without a core of its own then holds up all others: on 2 cores with 5 other busy processes a step of 4
    tokens took seconds with 2 threads. One thread fewer loses far less than one too many.

    Args:
        most: ≥ 1; never more than this.

    Not thread-safe.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._cpus = os.cpu_count() or most
        self._at, self._all, self._own = self._read()
        self._due = self._worked_at = self._at
        self._due += INTERVAL_S

    def _read(self) -> tuple[float, float, float]:
        """Now, and the CPU seconds that everything and this process have used."""
        import psutil

        times = psutil.cpu_times()
        # guest time is already part of user time; iowait is idle time
        busy = (
            times.user + times.system + sum(getattr(times, kind, 0.0) for kind in ("nice", "irq", "softirq"))
        )
        # What a hypervisor gives to others cannot be had either.
        return time.monotonic(), busy + getattr(times, "steal", 0.0), time.process_time()

    def threads(self) -> int | None:
        """How many threads to use from now on, or None to go on as before."""
        if self._most == 1:
            return None
        now = time.monotonic()
        if now - self._worked_at > PAUSE_S:
            self._at, self._all, self._own = self._read()
            self._due = self._at + FIRST_INTERVAL_S
        if now < self._due:
            return None
        at, everything, own = self._read()
        self._due = at + INTERVAL_S
        others = ((everything - self._all) - (own - self._own)) / (at - self._at)
        self._at, self._all, self._own = at, everything, own
        return cores_left(self._cpus - others, self._most)

    def worked(self) -> None:
        """A step has ended."""
        self._worked_at = time.monotonic()


def cores_left(free: float, most: int) -> int:
    """Threads for `free` cores' worth of CPU: a core that is mostly free counts, and there is always one."""
    return max(1, min(most, int(free + 0.5)))
