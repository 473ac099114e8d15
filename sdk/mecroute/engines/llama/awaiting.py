"""Requests that wait, in a slot of their own, for the beginning of their prompt to come into memory."""

from __future__ import annotations

from mecroute.engines.llama.generation import Generation
from mecroute.engines.llama.kv_slot import Slot


class Awaiting:
    """A request that takes over tokens which another one is computing, as soon as they are there.

    It stops waiting also when they are not going to come: the other one was cancelled, or failed.

    Args:
        generation: the request.
        source: the sequence of the other one, which is busy.
        length: how many of its tokens are waited for.
    """

    __slots__ = ("_length", "_source", "_use", "generation")

    def __init__(self, generation: Generation, source: Slot, length: int) -> None:
        self.generation = generation
        self._source = source
        self._length = length
        # Changes when the sequence is given back, and again when another request gets it.
        self._use = source.last_used

    @property
    def is_over(self) -> bool:
        """Whether there is nothing left to wait for."""
        return len(self._source.tokens) >= self._length or self._source.last_used != self._use
