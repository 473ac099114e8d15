"""Requests that wait, in a slot of their own, for the beginning of their prompt to come into memory."""

from __future__ import annotations

import time

from mecroute.engines.llama.generation import Generation
from mecroute.engines.llama.kv_slot import Slot
from mecroute.engines.llama.prefix_disk import Fetch

#: A disk that takes longer is not waited for.
DISK_PATIENCE_S = 2.0


class Computing:
    """Tokens that another request is computing.

    It is over also when they are not going to come: the other one was cancelled, or failed.

    Args:
        source: the sequence of the other one, which is busy.
        length: how many of its tokens are waited for.
    """

    __slots__ = ("_length", "_source", "_use")

    def __init__(self, source: Slot, length: int) -> None:
        self._source = source
        self._length = length
        # Changes when the sequence is given back, and again when another request gets it.
        self._use = source.last_used

    @property
    def is_over(self) -> bool:
        """Whether there is nothing left to wait for."""
        return len(self._source.tokens) >= self._length or self._source.last_used != self._use


class Awaiting:
    """A request that takes over what is being computed or read, as soon as it is there.

    Args:
        generation: the request.
        what: it waits for.
    """

    __slots__ = ("_since", "_what", "generation")

    def __init__(self, generation: Generation, what: Computing | Fetch) -> None:
        self.generation = generation
        self._what = what
        self._since = time.perf_counter()

    @property
    def fetch(self) -> Fetch | None:
        """What it waits for, if that is the disk."""
        return self._what if isinstance(self._what, Fetch) else None

    @property
    def is_over(self) -> bool:
        """Whether there is nothing left to wait for, or it has waited long enough."""
        if self._what.is_over:
            return True
        return self.fetch is not None and time.perf_counter() - self._since >= DISK_PATIENCE_S
