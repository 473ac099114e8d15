"""An event loop in a thread of its own, on which the blocking client runs."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from concurrent.futures import CancelledError
from typing import Any, TypeVar

from mecroute.errors import UsageError

T = TypeVar("T")


class LoopThread:
    """Runs coroutines for callers in other threads. Thread-safe; the thread is a daemon."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._lock = threading.Lock()
        self._closing = False
        self._thread = threading.Thread(target=self._loop.run_forever, name="mecroute-client", daemon=True)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine to its end and return its result; an interrupt cancels it.

        Raises:
            UsageError: the loop was closed, before or meanwhile.
        """
        # A process that was forked has the object, and not its thread.
        if self._closing or not self._thread.is_alive():
            work.close()
            raise UsageError(
                "the client is closed", hint="make a new Client (each process its own), or close it later"
            )
        try:
            return self._result(work)
        except CancelledError as error:
            if not self._closing:
                raise
            raise UsageError("the client was closed meanwhile", hint="close it once it is done") from error

    def _result(self, work: Coroutine[Any, Any, T]) -> T:
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

    def close(self, last: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Refuse further work, run what is to be done last, cancel what still runs and end the thread.

        A second call, from whatever thread, does nothing.
        """
        with self._lock:
            if self._closing or not self._thread.is_alive():
                return
            self._closing = True
        try:
            self._result(last())
        finally:
            self._end()

    def _end(self) -> None:
        self._result(self._cancel_all())
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
