"""Copies of conversations, made while others may look at the scheduler and leave requests."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from mecroute.engines.llama.context import DecodeContext


class UnlockedContext:
    """What the KV memory does with a context, without the scheduler's lock where it takes long.

    To copy a conversation takes milliseconds to tenths of a second, and an event loop that waits for the lock
    so long stands still with all its streams. Only the engine's thread changes what the lock protects, apart
    from requests that come and go, and whoever calls this has left all of it so that others may read it.

    Args:
        context: used by the engine's thread alone.
        lock: the scheduler's. Whoever calls holds it, once.
    """

    def __init__(self, context: DecodeContext, lock: threading.Condition) -> None:
        self._context = context
        self._lock = lock

    def keep_prefix(self, sequence: int, length: int) -> bool:
        """See `DecodeContext.keep_prefix`."""
        return self._context.keep_prefix(sequence, length)

    def clear(self) -> None:
        """See `DecodeContext.clear`."""
        self._context.clear()

    def share_prefix(self, source: int, target: int, length: int) -> bool:
        """See `DecodeContext.share_prefix`."""
        with self._unlocked():
            return self._context.share_prefix(source, target, length)

    def exchange(self, one: int, other: int) -> tuple[bool, bool]:
        """See `DecodeContext.exchange`."""
        with self._unlocked():
            return self._context.exchange(one, other)

    def decode_one(self, sequence: int) -> bool:
        """See `DecodeContext.decode_one`."""
        with self._unlocked():
            return self._context.decode_one(sequence)

    def read_state(self, sequence: int) -> memoryview:
        """See `DecodeContext.read_state`."""
        with self._unlocked():
            return self._context.read_state(sequence)

    def write_state(self, sequence: int, state: memoryview) -> bool:
        """See `DecodeContext.write_state`."""
        with self._unlocked():
            return self._context.write_state(sequence, state)

    @contextmanager
    def _unlocked(self) -> Iterator[None]:
        self._lock.release()
        try:
            yield
        finally:
            self._lock.acquire()
