"""Dynamic batching: requests that wait at the same time and fit together are run together."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mecroute.engines.llama.rates import Rate
from mecroute.engines.onnx.model import OnnxModel
from mecroute.errors import InvalidRequestError, OverloadedError, TierUnreachableError

#: Retry-After while nothing has been measured.
_UNMEASURED_RETRY_S = 1.0
#: A lane joins no more rows than take about this long: the cost of a call is nothing beside it.
_LONG_RUN_S = 0.008
#: The weight of the newest run in the time that a row takes.
_NEWEST = 0.1

Outputs = dict[str, Any]


@dataclass(frozen=True, slots=True)
class OnnxStats:
    """What an engine is doing.

    Attributes:
        running: requests of the batch that is being computed.
        queued: requests that wait.
        batches_total, requests_total, rows_total: computed since the start.
        failed_total: of these requests, those whose input could not be computed.
        queue_s_total, compute_s_total: seconds that these requests waited, and were computed.
        success_s_total, fail_s_total: seconds from submission to the answer, of those that were answered and
            of those that failed.
        last_run_at: wall clock of the last run; None before the first.
        retry_after_s: when a request refused now is worth repeating; 0 if it would be accepted.
        kv_used_tokens, kv_total_tokens, prefill_tokens_per_s, decode_tokens_per_s, decode_slowdown,
            prefill_left_tokens: what a generative engine reports; a tensor model has no tokens.
    """

    running: int
    queued: int
    batches_total: int
    requests_total: int
    rows_total: int
    retry_after_s: float
    failed_total: int = 0
    queue_s_total: float = 0.0
    compute_s_total: float = 0.0
    success_s_total: float = 0.0
    fail_s_total: float = 0.0
    last_run_at: float | None = None
    kv_used_tokens: int = 0
    kv_total_tokens: int = 0
    prefill_tokens_per_s: float | None = None
    decode_tokens_per_s: float | None = None
    decode_slowdown: float | None = None
    prefill_left_tokens: int = 0


@dataclass(slots=True, eq=False)
class _Waiting:
    inputs: Mapping[str, Any]
    outputs: tuple[str, ...] | None
    rows: int
    #: Requests with the same key can be run together; None: only alone.
    key: object
    since: float
    failed: bool = False
    future: Future[Outputs] = field(default_factory=Future)


class Batcher:
    """Runs requests on one model, in threads of its own, in the order they come.

    A batch begins with the request that has waited longest and takes those that fit it, up to `max_batch`
    rows; it starts as soon as it is full, or once that first request has waited `max_delay_ms`.

    With several lanes so many batches are computed side by side, on one thread each: threads that share a
    run wait for each other (int8 MiniLM on 2 cores: 280 texts a second side by side, 200 with both threads in
    each run). A request that comes while nothing else is to be done gets all threads. Joining rows then pays
    only where a run is short: once it takes `_LONG_RUN_S`, more rows only leave the core's cache.

    Args:
        model: the model.
        name: names the engine in errors.
        batches: whether requests may be run together at all.
        max_batch: ≥ 1, rows of a batch. A request with more rows is run alone.
        max_delay_ms: ≥ 0; how long a request may wait for others. 0 takes those that wait already.
        max_queue: ≥ 0; requests that may wait while every lane is busy.
        lanes: ≥ 1; batches computed at the same time.
    """

    def __init__(
        self,
        model: OnnxModel,
        *,
        name: str,
        batches: bool,
        max_batch: int,
        max_delay_ms: float,
        max_queue: int,
        lanes: int = 1,
    ) -> None:
        self._model = model
        self._name = name
        self._batches = batches
        self._max_batch = max_batch
        self._max_delay_s = max_delay_ms / 1000
        self._max_queue = max_queue
        self._waiting: deque[_Waiting] = deque()
        self._changed = threading.Condition()
        self._running = 0
        self._free_lanes = lanes
        self._lanes = lanes
        self._closed = False
        self._rate = Rate()
        #: Seconds that a row takes in a lane; None while that is not measured.
        self._row_s: float | None = None
        self._batches_total = self._requests_total = self._rows_total = self._failed_total = 0
        self._queue_s = self._compute_s = self._success_s = self._fail_s = 0.0
        self._last_run_at: float | None = None
        self._threads = [
            threading.Thread(target=self._run, name=f"mecroute-onnx-{name}-{lane}", daemon=True)
            for lane in range(lanes)
        ]
        for thread in self._threads:
            thread.start()

    def submit(
        self, inputs: Mapping[str, Any], outputs: tuple[str, ...] | None, *, admitted: bool = False
    ) -> Future[Outputs]:
        """Queue a request that has been checked; returns at once. One that is `admitted` is not refused.

        Raises:
            OverloadedError: the queue is full.
            TierUnreachableError: the engine is closed.
        """
        rows, key = 1, None
        if self._batches:
            sizes = {len(array) for array in inputs.values()}
            if len(sizes) == 1:
                rows = sizes.pop()
                if rows:
                    key = (outputs, *((name, a.dtype.str, a.shape[1:]) for name, a in sorted(inputs.items())))
        waiting = _Waiting(inputs, outputs, rows, key, time.monotonic())
        with self._changed:
            if self._closed:
                raise self._closed_error()
            # One may always wait to be taken up by a free lane: an idle engine refuses nobody.
            if len(self._waiting) >= self._max_queue + self._free_lanes and not admitted:
                raise OverloadedError(
                    f"{self._name} has {self._running} requests running and {len(self._waiting)} waiting",
                    retry_after_s=self._retry_after_s(),
                )
            self._waiting.append(waiting)
            self._changed.notify_all()
        return waiting.future

    def stats(self) -> OnnxStats:
        """What is going on now."""
        with self._changed:
            full = not self._free_lanes and len(self._waiting) >= self._max_queue
            return OnnxStats(
                running=self._running,
                queued=len(self._waiting),
                batches_total=self._batches_total,
                requests_total=self._requests_total,
                rows_total=self._rows_total,
                retry_after_s=self._retry_after_s() if full else 0.0,
                failed_total=self._failed_total,
                queue_s_total=self._queue_s,
                compute_s_total=self._compute_s,
                success_s_total=self._success_s,
                fail_s_total=self._fail_s,
                last_run_at=self._last_run_at,
            )

    def close(self) -> None:
        """Fail what waits, wait for what runs, and end the threads; a second call does nothing."""
        with self._changed:
            self._closed = True
            left = list(self._waiting)
            self._waiting.clear()
            self._changed.notify_all()
        for waiting in left:
            if waiting.future.set_running_or_notify_cancel():
                waiting.future.set_exception(self._closed_error())
        for thread in self._threads:
            if threading.current_thread() is not thread:
                thread.join()

    def _retry_after_s(self) -> float:
        per_s = self._rate.per_s
        return 1 / (per_s * self._lanes) if per_s else _UNMEASURED_RETRY_S

    def _closed_error(self) -> TierUnreachableError:
        return TierUnreachableError(
            f"the engine of {self._name} was closed", hint="load the model again", model=self._name
        )

    def _run(self) -> None:
        while True:
            with self._changed:
                batch = self._take()
                if batch is None:
                    return
                narrow = self._lanes > 1 and (bool(self._waiting) or self._free_lanes < self._lanes)
                self._running += len(batch)
                self._free_lanes -= 1
            started = time.monotonic()
            try:
                self._compute(batch, narrow=narrow)
            finally:
                with self._changed:
                    ended = time.monotonic()
                    if narrow:
                        self._measure(sum(waiting.rows for waiting in batch), ended - started)
                    self._running -= len(batch)
                    self._free_lanes += 1
                    self._rate.add(len(batch), ended - started)
                    self._count(batch, started, ended)

    def _count(self, batch: Sequence[_Waiting], started: float, ended: float) -> None:
        """Add up what a batch took; the lock is held."""
        self._batches_total += 1
        self._requests_total += len(batch)
        self._rows_total += sum(waiting.rows for waiting in batch)
        self._last_run_at = time.time()
        for waiting in batch:
            self._queue_s += started - waiting.since
            self._compute_s += ended - started
            if waiting.failed:
                self._failed_total += 1
                self._fail_s += ended - waiting.since
            else:
                self._success_s += ended - waiting.since

    def _take(self) -> list[_Waiting] | None:
        """The next batch, once it is due; None when closed. The lock is held."""
        while True:
            while self._waiting and self._waiting[0].future.cancelled():
                self._waiting.popleft()
            if self._closed:
                return None
            if not self._waiting:
                self._changed.wait()
                continue
            first = self._waiting[0]
            batch, rows, most = [first], first.rows, self._most_rows()
            if first.key is not None:
                for waiting in list(self._waiting)[1:]:
                    if rows >= most:
                        break
                    if waiting.key == first.key and rows + waiting.rows <= most:
                        batch.append(waiting)
                        rows += waiting.rows
                left_s = first.since + self._max_delay_s - time.monotonic()
                if rows < most and left_s > 0:
                    self._changed.wait(left_s)
                    continue
            for waiting in batch:
                self._waiting.remove(waiting)
            batch = [waiting for waiting in batch if waiting.future.set_running_or_notify_cancel()]
            if batch:
                return batch

    def _most_rows(self) -> int:
        if self._row_s is None:
            return self._max_batch
        return min(self._max_batch, max(1, round(_LONG_RUN_S / self._row_s)))

    def _measure(self, rows: int, seconds: float) -> None:
        row_s = max(seconds, 1e-6) / max(rows, 1)
        self._row_s = row_s if self._row_s is None else self._row_s + _NEWEST * (row_s - self._row_s)

    def _compute(self, batch: Sequence[_Waiting], *, narrow: bool) -> None:
        if len(batch) > 1:
            try:
                answers = self._run_together(batch, narrow=narrow)
            except Exception:  # noqa: BLE001 - one bad request must not fail the others: each is tried alone
                answers = None
            if answers is not None:
                for waiting, answer in zip(batch, answers, strict=True):
                    waiting.future.set_result(answer)
                return
        for waiting in batch:
            try:
                waiting.future.set_result(self._model.run(waiting.inputs, waiting.outputs, narrow=narrow))
            except Exception as error:  # noqa: BLE001 - ORT has its own kinds; all of them are the input's fault
                failure = InvalidRequestError(
                    f"{self._name} could not compute this input: {_first_line(error)}",
                    hint="check the values and the shape",
                    model=self._name,
                )
                failure.__cause__ = error
                waiting.failed = True
                waiting.future.set_exception(failure)

    def _run_together(self, batch: Sequence[_Waiting], *, narrow: bool) -> list[Outputs] | None:
        """Each request's part of the outputs; None if they cannot be told apart."""
        joined = {name: np.concatenate([w.inputs[name] for w in batch]) for name in batch[0].inputs}
        outputs = self._model.run(joined, batch[0].outputs, narrow=narrow)
        rows = sum(waiting.rows for waiting in batch)
        if any(array.ndim < 1 or len(array) != rows for array in outputs.values()):
            return None
        ends = np.cumsum([waiting.rows for waiting in batch])[:-1]
        parts = {name: np.split(array, ends) for name, array in outputs.items()}
        return [{name: parts[name][at] for name in parts} for at in range(len(batch))]


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:500]
