"""Models that are loaded when they are first asked for, once for everybody who waits."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar


class Closable(Protocol):
    """What can be unloaded."""

    def close(self) -> None: ...


E = TypeVar("E", bound=Closable)


class SharedLoads(Generic[E]):
    """Engines by name. For one event loop; they are loaded and unloaded in threads."""

    def __init__(self) -> None:
        self._tasks: dict[str, asyncio.Task[E]] = {}

    def loaded(self) -> dict[str, E]:
        """Those that are in memory now."""
        return {
            name: task.result()
            for name, task in self._tasks.items()
            if task.done() and not task.cancelled() and task.exception() is None
        }

    async def get(self, name: str, load: Callable[[], E]) -> E:
        """The engine of that name; callers that come while it is loading share that load.

        Args:
            load: called in a thread where nobody has loaded it yet; what it raises goes to all who wait, and
                the next caller tries again.
        """
        known = self._tasks.get(name)
        if known is not None and known.done() and name not in self.loaded():
            del self._tasks[name]  # it failed with nobody waiting, perhaps long ago
        task = self.begin(name, load)
        try:
            # Shielded: one caller that gives up must not stop the load for the others.
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            raise
        except BaseException:
            if self._tasks.get(name) is task:  # and not what another one has begun since
                del self._tasks[name]
            raise

    def begin(self, name: str, load: Callable[[], E]) -> asyncio.Task[E]:
        """Have it loaded, where nobody has yet. Returns at once.

        A load that failed is not begun again by this: whoever waits for it with `get` has it tried again.
        """
        task = self._tasks.get(name)
        if task is None:
            task = self._tasks[name] = asyncio.create_task(asyncio.to_thread(load))
        return task

    def __contains__(self, name: object) -> bool:
        return name in self._tasks

    async def aclose(self) -> None:
        """Unload all. What is being loaded is waited for: its thread cannot be stopped, and nobody else would
        unload it."""
        tasks, self._tasks = self._tasks, {}
        for engine in await asyncio.gather(*tasks.values(), return_exceptions=True):
            if not isinstance(engine, BaseException):
                await asyncio.to_thread(engine.close)
