"""Simulated servers: batches whose requests slow each other down, in virtual time.

A server runs up to `parallel` requests together. Alone, a request takes its prompt over the prefill speed
plus its output over the decode speed. With b requests running, each gets on at the speed

    1 / (1 + contention · (b - 1))

of that: 0 for a server that batches for free, 1 for one that only takes turns. llama.cpp on two CPU cores
(SmolLM2-135M, `llama-batched-bench`: 134, 195 and 221 tokens/s at 1, 4 and 16 sequences) fits 0.58.
"""

from __future__ import annotations

import heapq
from collections import deque
from dataclasses import dataclass, field


@dataclass(slots=True, eq=False)
class Job:
    """One request on a server. Times in virtual seconds; None until they have come."""

    prefill_s: float
    decode_s: float
    arrived_s: float
    first_token_s: float | None = None
    done_s: float | None = None
    tag: object = None


@dataclass(slots=True)
class ServerModel:
    """What a simulated server can do.

    Args:
        prefill_tokens_per_s, decode_tokens_per_s: of one request alone, > 0.
        parallel: requests that run together, >= 1.
        contention: 0..1, see the module.
        max_queue: requests that may wait; one more is refused.
    """

    prefill_tokens_per_s: float
    decode_tokens_per_s: float
    parallel: int
    contention: float
    max_queue: int = 64


@dataclass(slots=True)
class Server:
    """A server's queue and batch.

    Requests get on in step, so it is enough to keep the progress that any request has made since the start
    (`_progress_s`) and the progress at which each running one reaches its first token and its end.

    Attributes:
        version: counts the plans made for its next event, so that an outdated one is known.
    """

    model: ServerModel
    version: int = 0
    _running: int = 0
    _waiting: deque[Job] = field(default_factory=deque)
    _marks: list[tuple[float, int, bool, Job]] = field(default_factory=list)
    _progress_s: float = 0.0
    _at_s: float = 0.0
    _serial: int = 0

    @property
    def running(self) -> int:
        """Requests in the batch."""
        return self._running

    @property
    def queued(self) -> int:
        """Requests that wait."""
        return len(self._waiting)

    def submit(self, job: Job, now_s: float) -> bool:
        """Take a request; False when the queue is full."""
        self._move(now_s)
        if self._running < self.model.parallel:
            self._begin(job)
        elif len(self._waiting) < self.model.max_queue:
            self._waiting.append(job)
        else:
            return False
        return True

    def next_event_s(self) -> float | None:
        """When the next request reaches its first token or its end; None while nothing runs."""
        if not self._marks:
            return None
        return self._at_s + max(0.0, self._marks[0][0] - self._progress_s) * self._slowdown()

    def advance(self, now_s: float) -> list[Job]:
        """Let time pass; returns the requests that ended."""
        ended: list[Job] = []
        while self._marks:
            at_s = self._at_s + max(0.0, self._marks[0][0] - self._progress_s) * self._slowdown()
            if at_s > now_s:
                break
            self._move(at_s)
            _, _, is_end, job = heapq.heappop(self._marks)
            if not is_end:
                job.first_token_s = at_s
                continue
            job.done_s = at_s
            self._running -= 1
            ended.append(job)
            if self._waiting:
                self._begin(self._waiting.popleft())
        self._move(now_s)
        return ended

    def _move(self, now_s: float) -> None:
        if self._running:
            self._progress_s += max(0.0, now_s - self._at_s) / self._slowdown()
        self._at_s = max(self._at_s, now_s)

    def _slowdown(self) -> float:
        return 1 + self.model.contention * max(0, self._running - 1)

    def _begin(self, job: Job) -> None:
        self._running += 1
        first = self._progress_s + job.prefill_s
        self._serial += 2  # ties go by order of arrival, a first token before its end
        heapq.heappush(self._marks, (first, self._serial, False, job))
        heapq.heappush(self._marks, (first + job.decode_s, self._serial + 1, True, job))
