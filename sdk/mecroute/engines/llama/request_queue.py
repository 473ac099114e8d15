"""The order in which waiting requests get a slot."""

from __future__ import annotations

from collections import deque

from mecroute.engines.llama.generation import Generation


class FifoQueue:
    """First come, first served. Another order is another class with these five methods.

    Not thread-safe: the scheduler holds its lock around every call.
    """

    def __init__(self) -> None:
        self._waiting: deque[Generation] = deque()

    def __len__(self) -> int:
        return len(self._waiting)

    def push(self, generation: Generation) -> None:
        """Add one that has just come."""
        self._waiting.append(generation)

    def peek(self) -> Generation | None:
        """The one whose turn it is, or None."""
        return self._waiting[0] if self._waiting else None

    def pop(self) -> Generation:
        """Take the one whose turn it is."""
        return self._waiting.popleft()

    def remove(self, generation: Generation) -> bool:
        """Take one out; False if it is not there."""
        try:
            self._waiting.remove(generation)
        except ValueError:
            return False
        return True
