"""A request to the engine, and the handle its answer is read from."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Literal
from uuid import uuid4

from mecroute.engines.llama.sampling import SamplingParams
from mecroute.engines.llama.submitter import Submitter, current_submitter
from mecroute.errors import MecrouteError

FinishReason = Literal["stop", "length"]


def _new_id() -> str:
    return f"gen-{uuid4().hex}"


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """What to generate.

    Attributes:
        prompt: token ids, at least one.
        max_tokens: ≥ 1; tokens to generate at most. The engine lowers it to what its context has room for.
        sampling: how to choose tokens.
        stop: strings that end the answer, and are left out of it.
        id: names the request in logs and errors.
        submitter: for whom it is made; default: the task's, see `submitting`.
    """

    prompt: tuple[int, ...]
    max_tokens: int
    sampling: SamplingParams = field(default_factory=SamplingParams)
    stop: tuple[str, ...] = ()
    id: str = field(default_factory=_new_id)
    submitter: Submitter = field(default_factory=current_submitter, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Usage:
    """What a generation took, measured by the engine.

    Attributes:
        prompt_tokens: length of the prompt.
        completion_tokens: tokens generated, the one that ended the answer included.
        cached_tokens: tokens of the prompt that were not computed again.
        ttft_ms: from submission to the first token, waiting included.
        prefill_ms: from the start of work on the prompt to the first token.
        decode_ms: from the first token to the last.
    """

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    ttft_ms: float
    prefill_ms: float
    decode_ms: float

    @property
    def prefill_tokens_per_s(self) -> float:
        """Prompt tokens computed per second; 0 if none were measured."""
        computed = self.prompt_tokens - self.cached_tokens
        return computed / self.prefill_ms * 1e3 if self.prefill_ms > 0 else 0.0

    @property
    def decode_tokens_per_s(self) -> float:
        """Tokens per second after the first; 0 if there was only one."""
        return (self.completion_tokens - 1) / self.decode_ms * 1e3 if self.decode_ms > 0 else 0.0


@dataclass(frozen=True, slots=True)
class GenerationEvent:
    """A piece of an answer.

    Attributes:
        text: whole characters; may be empty.
        tokens: how many tokens were generated since the event before it.
        finish_reason: on the last event: `stop` (the model ended, or a stop string was met) or `length`.
        usage: on the last event.
    """

    text: str
    tokens: int
    finish_reason: FinishReason | None = None
    usage: Usage | None = None


class Generation:
    """An answer in the making. Read it with `for` or `async for`, by one consumer, once.

    When the reader is slower than the engine, waiting pieces arrive merged into one event. Leaving the loop
    early does not stop the engine: call `cancel`, or use it as a context manager.

    Raises while being read: what ended it early, if not its own `cancel` (`TierUnreachableError` when the
    engine was closed).

    Thread-safe, but for the one consumer.
    """

    __slots__ = (
        "_cancel", "_closed", "_error", "_events", "_loop", "_ready", "_waiter",
        "cancelled", "generated", "max_tokens", "request", "submitted_at",
    )  # fmt: skip

    def __init__(
        self, request: GenerationRequest, *, max_tokens: int, cancel: Callable[[Generation], None]
    ) -> None:
        self.request = request
        #: The request's, lowered to what the context has room for.
        self.max_tokens = max_tokens
        self.submitted_at = time.perf_counter()
        self.cancelled = False
        #: Tokens generated so far, as the engine reported them.
        self.generated = 0
        self._cancel = cancel
        self._events: deque[GenerationEvent] = deque()
        self._closed = False
        self._error: MecrouteError | None = None
        self._ready: threading.Event | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._waiter: asyncio.Future[None] | None = None

    @property
    def id(self) -> str:
        """The request's id."""
        return self.request.id

    @property
    def done(self) -> bool:
        """Whether the engine has finished with it; events may still be waiting to be read."""
        return self._closed

    def cancel(self) -> None:
        """Stop generating; the sequence is free at the engine's next step and reading ends at once."""
        if self._closed or self.cancelled:
            return
        self.cancelled = True
        self._cancel(self)
        wake((self,))

    def __enter__(self) -> Generation:
        return self

    def __exit__(self, *_: object) -> None:
        self.cancel()

    # The engine's side.

    def push(self, event: GenerationEvent) -> None:
        """Add an event; the reader sees it after `wake`. The one with a finish_reason is the last."""
        self._events.append(event)
        self.generated += event.tokens
        if event.finish_reason is not None:
            self._closed = True

    def fail(self, error: MecrouteError) -> None:
        """End it with an error, after the events already there; the reader sees it after `wake`."""
        if not self._closed:
            self._error = error
            self._closed = True

    # The reader's side. The engine appends, then looks for a waiter; the reader leaves its waiter, then
    # looks for events: in either order nothing is missed, so that no lock is needed per token.

    def _take(self) -> GenerationEvent | None:
        events = self._events
        if not events:
            return None
        event = events.popleft()
        if not events:
            return event
        texts, tokens = [event.text], event.tokens
        while events:
            event = events.popleft()
            texts.append(event.text)
            tokens += event.tokens
        return GenerationEvent("".join(texts), tokens, event.finish_reason, event.usage)

    def _ended(self) -> bool:
        """Whether nothing more will come; raises what ended it."""
        if self.cancelled:
            return True
        if self._closed and not self._events:
            if self._error is not None:
                raise self._error
            return True
        return False

    def __iter__(self) -> Iterator[GenerationEvent]:
        self._ready = ready = threading.Event()
        while not self._ended():
            if (event := self._take()) is not None:
                yield event
                continue
            ready.clear()
            if not self._events and not self._closed and not self.cancelled:
                ready.wait()

    async def __aiter__(self) -> AsyncIterator[GenerationEvent]:
        self._loop = loop = asyncio.get_running_loop()
        while not self._ended():
            if (event := self._take()) is not None:
                yield event
                continue
            self._waiter = waiter = loop.create_future()
            if not self._events and not self._closed and not self.cancelled:
                await waiter

    def wake_waiter(self) -> None:
        """Let an async reader look again; only on its loop's thread."""
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)


def _wake_waiters(generations: Iterable[Generation]) -> None:
    for generation in generations:
        generation.wake_waiter()


def wake(generations: Iterable[Generation]) -> None:
    """Tell the readers of these generations that there is something new: once per event loop, not per token.

    Thread-safe.
    """
    by_loop: dict[asyncio.AbstractEventLoop, list[Generation]] = {}
    for generation in generations:
        ready, loop = generation._ready, generation._loop
        if ready is not None:
            ready.set()
        if loop is not None:
            by_loop.setdefault(loop, []).append(generation)
    for loop, waiting in by_loop.items():
        try:
            loop.call_soon_threadsafe(_wake_waiters, waiting)
        except RuntimeError:  # the reader's loop has been closed: nobody is left to read
            for generation in waiting:
                generation.cancelled = True
