"""An event loop in a thread of its own, on which the blocking client runs."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Coroutine, Iterator
from typing import Any, TypeVar

from mecroute.errors import UsageError

T = TypeVar("T")


class LoopThread:
    """Runs coroutines for callers in other threads. Thread-safe; the thread is a daemon."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="mecroute-client", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether the loop still takes work."""
        return self._thread.is_alive()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine to its end and return its result; an interrupt cancels it.

        Raises:
            UsageError: the loop was closed.
        """
        if self._loop.is_closed():
            work.close()
            raise UsageError("the client is closed", hint="make a new Client, or close it later")
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def iterate(self, items: AsyncIterator[T]) -> Iterator[T]:
        """Hand out an asynchronous iterator's items one by one."""
        ended = object()

        async def following() -> T | object:
            return await anext(items, ended)

        while (item := self.run(following())) is not ended:
            yield item  # type: ignore[misc]  # not the sentinel, so a T

    def close(self) -> None:
        """Cancel what still runs and end the thread."""
        if not self.alive:
            return
        self.run(self._cancel_all())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(timeout=5)
        self._loop.close()

    async def _cancel_all(self) -> None:
        others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await self._loop.shutdown_asyncgens()
        await self._loop.shutdown_default_executor()
