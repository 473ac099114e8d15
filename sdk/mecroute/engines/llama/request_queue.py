"""The order in which waiting requests get a slot."""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Iterator
from itertools import count

from mecroute.engines.llama.generation import Generation

#: A request without a deadline stands where one with this much time would. Later ones of its key can
#: overtake it only while that lasts, so that a flow of urgent requests never starves it.
PATIENCE_S = 30.0

_Entry = tuple[float, int, Generation]


class FairQueue:
    """Keys take turns; within a key the earliest deadline is first, and among equals who came first.

    Not thread-safe: the scheduler holds its lock around every call.
    """

    def __init__(self) -> None:
        self._by_key: dict[str, list[_Entry]] = {}
        self._turns: deque[str] = deque()
        self._arrivals = count()
        self._length = 0
        self._next_expiry = math.inf

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[Generation]:
        """All of them, in the order in which they would get a slot."""
        lines = [sorted(self._by_key[key], key=_place) for key in self._turns]
        for rank in range(max(map(len, lines), default=0)):
            for line in lines:
                if rank < len(line):
                    yield line[rank][2]

    def push(self, generation: Generation) -> None:
        """Add one that has just come."""
        submitter = generation.request.submitter
        deadline_at = submitter.deadline_at
        if deadline_at is not None:
            self._next_expiry = min(self._next_expiry, deadline_at)
        if submitter.key not in self._by_key:
            self._by_key[submitter.key] = []
            self._turns.append(submitter.key)
        due_at = generation.submitted_at + PATIENCE_S if deadline_at is None else deadline_at
        heapq.heappush(self._by_key[submitter.key], (due_at, next(self._arrivals), generation))
        self._length += 1

    def peek(self) -> Generation | None:
        """The one whose turn it is, or None."""
        return self._by_key[self._turns[0]][0][2] if self._turns else None

    def pop(self) -> Generation:
        """Take the one whose turn it is; the next turn is another key's, if there is one."""
        key = self._turns[0]
        self._turns.rotate(-1)
        generation = heapq.heappop(self._by_key[key])[2]
        self._taken(key)
        return generation

    def remove(self, generation: Generation) -> bool:
        """Take one out; False if it is not there."""
        key = generation.request.submitter.key
        line = self._by_key.get(key, [])
        for position, entry in enumerate(line):
            if entry[2] is generation:
                del line[position]
                heapq.heapify(line)
                self._taken(key)
                return True
        return False

    def expire(self, now: float) -> list[Generation]:
        """Take out those whose deadline has passed.

        Args:
            now: time.perf_counter().
        """
        if now < self._next_expiry:
            return []
        waiting = [(_deadline_at(generation), generation) for generation in self]
        late = [generation for deadline_at, generation in waiting if deadline_at <= now]
        for generation in late:
            self.remove(generation)
        self._next_expiry = min((at for at, _ in waiting if at > now), default=math.inf)
        return late

    def make_room_for(self, key: str) -> Generation | None:
        """Take out the last in line of the key that has most in a full queue, or nothing.

        Only where that key is left with no fewer than `key` then has: one caller's flood does not shut out
        the others, and two callers with as many each do not push each other out.
        """
        longest = max(self._by_key, key=lambda other: len(self._by_key[other]), default=None)
        if longest is None or len(self._by_key[longest]) - 1 < len(self._by_key.get(key, ())) + 1:
            return None
        last = max(self._by_key[longest], key=_place)[2]
        self.remove(last)
        return last

    def _taken(self, key: str) -> None:
        self._length -= 1
        if not self._by_key[key]:
            del self._by_key[key]
            self._turns.remove(key)


def _place(entry: _Entry) -> tuple[float, int]:
    return entry[:2]


def _deadline_at(generation: Generation) -> float:
    deadline_at = generation.request.submitter.deadline_at
    return math.inf if deadline_at is None else deadline_at
