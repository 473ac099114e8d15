"""A race of two calls: the second is begun only if the first is late."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


async def race(
    first: Coroutine[Any, Any, T | None],
    second: Callable[[], Coroutine[Any, Any, T | None]],
    *,
    after_s: float,
    discard: Callable[[T], Awaitable[None] | None],
) -> T | None:
    """The result of whichever comes first; the other is cancelled, and awaited until it has stopped.

    Args:
        first, second: return None when they fail, and the other may still win.
        after_s: how long the first has before the second is begun. If it fails within that time, the
            second is not begun.
        discard: told a result that came at the same moment and lost.

    Returns:
        The winner's result; None when nobody had one.

    Raises: what `first` raises.
    """
    tasks = [asyncio.create_task(first)]
    winner: asyncio.Task[T | None] | None = None
    try:
        done, pending = await asyncio.wait(tasks, timeout=after_s)
        if pending:
            tasks.append(asyncio.create_task(second()))
            pending = set(tasks)
        while True:
            for task in tasks:
                if task in done and task.result() is not None:
                    winner = task
                    return task.result()
            if not pending:
                return None
            done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        for outcome, task in zip(await asyncio.gather(*tasks, return_exceptions=True), tasks, strict=True):
            if task is not winner and outcome is not None and not isinstance(outcome, BaseException):
                closing = discard(outcome)
                if closing is not None:
                    await closing
