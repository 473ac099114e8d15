"""Conversations in ordinary memory: out of the attention's way, and back in some milliseconds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from mecroute.engines.llama.radix import RadixTree

#: Fewer tokens than this are as soon computed as brought back.
_MIN_GAIN_TOKENS = 4
#: To bring back a token takes far less than to compute one; so many to one at least.
_MIN_GAIN_SHARE = 0.02


class Taken(NamedTuple):
    """A conversation taken out of the KV memory.

    Attributes:
        tokens: its tokens.
        state: what llama.cpp wrote of its cells.
        keys: names of its beginnings; see `mecroute.prefix_keys`.
        session: its caller's name for it, or None.
    """

    tokens: tuple[int, ...]
    state: memoryview
    keys: tuple[str, ...]
    session: str | None


class PrefixRam:
    """Holds conversations up to a number of bytes; the least recently put in go first.

    Args:
        max_bytes: of the states of all of them together.
        on_drop: called with each that has to go.

    Not thread-safe: whoever calls holds the scheduler's lock.
    """

    def __init__(self, max_bytes: int, *, on_drop: Callable[[Taken], None] = lambda _: None) -> None:
        self.max_bytes = max_bytes
        self.on_drop = on_drop
        self._tree: RadixTree[int] = RadixTree()
        self._held: dict[int, Taken] = {}
        self._count = 0
        self.size_bytes = 0

    def held(self) -> list[Taken]:
        """What is here, the one put in last first."""
        return list(reversed(self._held.values()))

    def put(self, taken: Taken) -> None:
        """Hold a conversation; what it was before it went on is let go."""
        for number in list(self._tree.ending_on(taken.tokens)):
            if self._held[number].session in (None, taken.session):
                self._remove(number)
        if len(taken.state) > self.max_bytes:
            self.on_drop(taken)
            return
        self._count += 1
        self._held[self._count] = taken
        self._tree.put(self._count, taken.tokens)
        self.size_bytes += len(taken.state)
        while self.size_bytes > self.max_bytes:
            self.on_drop(self._remove(next(iter(self._held))))

    def length(self, prompt: Sequence[int], *, beyond: int) -> int:
        """How many tokens of a prompt are here, if bringing them back is worth it; else 0.

        Args:
            prompt: tokens without the last one, which is always computed.
            beyond: how many of them are in the KV memory.
        """
        found = self._find(prompt, beyond)
        return found[0] if found is not None else 0

    def pop(self, prompt: Sequence[int], *, beyond: int) -> Taken | None:
        """Give away the conversation that begins most like a prompt, if that is worth it."""
        found = self._find(prompt, beyond)
        return self._remove(found[1]) if found is not None else None

    def pop_oldest(self) -> Taken | None:
        """Give away the one put in first; None if there is none."""
        return self._remove(next(iter(self._held))) if self._held else None

    def _find(self, prompt: Sequence[int], beyond: int) -> tuple[int, int] | None:
        for length, numbers in self._tree.matches(prompt):
            number = min(numbers, key=lambda one: len(self._held[one].tokens))
            whole = len(self._held[number].tokens)
            if length - beyond >= max(_MIN_GAIN_TOKENS, _MIN_GAIN_SHARE * whole):
                return length, number
            return None
        return None

    def _remove(self, number: int) -> Taken:
        taken = self._held.pop(number)
        self._tree.discard(number)
        self.size_bytes -= len(taken.state)
        return taken
