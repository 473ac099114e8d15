"""Work that must be done on the engine's thread, between two steps."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

T = TypeVar("T")


class Errands:
    """Calls left by other threads. Not thread-safe: whoever uses it holds the scheduler's lock."""

    def __init__(self) -> None:
        self._waiting: deque[tuple[Callable[[], Any], Future[Any]]] = deque()

    def leave(self, work: Callable[[], T]) -> Future[T]:
        """Have `work` done soon; it may raise, and the future then does."""
        future: Future[T] = Future()
        self._waiting.append((work, future))
        return future

    def do(self) -> None:
        """Do what is waiting, in the order in which it came."""
        while self._waiting:
            work, future = self._waiting.popleft()
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(work())
            except Exception as error:  # noqa: BLE001 - it belongs to whoever left the errand
                future.set_exception(error)

    def refuse(self, error: Exception) -> None:
        """Fail what is waiting."""
        while self._waiting:
            _, future = self._waiting.popleft()
            if future.set_running_or_notify_cancel():
                future.set_exception(error)
