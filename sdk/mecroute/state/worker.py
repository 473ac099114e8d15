"""A thread that takes work off the request path and does it in batches."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import Generic, TypeVar

_LOG = logging.getLogger("mecroute.state")
_LINGER_S = 0.2
_BATCH = 256
_LIMIT = 10_000
_FLUSH_TIMEOUT_S = 5.0

T = TypeVar("T")


class Worker(Generic[T]):
    """Hands items to one function, many at a time. Thread-safe.

    After the first item it waits a moment for more, so that a busy process is woken five times a second and
    not once per request. An idle one is not woken at all.

    Args:
        handle: called with each batch, in the worker's thread; what it raises is logged.
        name: of the thread.
    """

    def __init__(self, handle: Callable[[list[T]], None], *, name: str) -> None:
        self._handle = handle
        self._name = name
        self._queue: SimpleQueue[T | threading.Event | None] = SimpleQueue()
        self._hurry = threading.Event()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._dropping = False

    def put(self, item: T) -> None:
        """Hand over one item; returns at once. Beyond 10,000 that wait it is dropped, which is said once."""
        if self._queue.qsize() >= _LIMIT:
            if not self._dropping:
                self._dropping = True
                _LOG.warning("%s cannot keep up: records are being dropped", self._name)
            return
        self._dropping = False
        if self._thread is None:
            self._start()
        self._queue.put(item)

    def flush(self) -> None:
        """Wait until everything handed over so far was handled (at most a few seconds)."""
        with self._lock:
            thread = self._thread
        if thread is None or not thread.is_alive() or thread is threading.current_thread():
            return
        done = threading.Event()
        self._queue.put(done)
        self._hurry.set()
        done.wait(_FLUSH_TIMEOUT_S)

    def close(self) -> None:
        """Handle what is left and end the thread."""
        with self._lock:
            thread, self._thread = self._thread, None
        if thread is not None:
            self._queue.put(None)
            self._hurry.set()
            thread.join(_FLUSH_TIMEOUT_S)

    def _start(self) -> None:
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
                self._thread.start()

    def _run(self) -> None:
        ended = False
        while not ended:
            taken: list[T | threading.Event | None] = [self._queue.get()]
            self._hurry.wait(_LINGER_S)
            self._hurry.clear()
            try:
                while len(taken) < _BATCH:
                    taken.append(self._queue.get_nowait())
            except Empty:
                pass
            ended = None in taken
            work = [item for item in taken if item is not None and not isinstance(item, threading.Event)]
            try:
                if work:
                    self._handle(work)
            except Exception:  # noqa: BLE001 - a defect in what is learned must not end the recording
                _LOG.exception("%s could not handle %d records", self._name, len(work))
            for item in taken:
                if isinstance(item, threading.Event):
                    item.set()
            if len(taken) >= _BATCH:
                self._hurry.set()  # more is waiting than was taken
