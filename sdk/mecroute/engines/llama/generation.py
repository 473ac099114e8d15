"""A request to the engine, and the handle its answer is read from."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, Protocol
from uuid import uuid4

from mecroute.engines.llama.grammar import Constraint
from mecroute.engines.llama.logprobs import TokenLogprob
from mecroute.engines.llama.sampling import SamplingParams
from mecroute.engines.llama.submitter import Submitter, current_submitter
from mecroute.errors import MecrouteError

FinishReason = Literal["stop", "length"]


def _new_id() -> str:
    return f"gen-{uuid4().hex}"


@dataclass(frozen=True, slots=True)
class Shown:
    """What of a text completion its caller wants to see; the engine does not look at it.

    Attributes:
        echo: stands before the text of each answer.
        keep: how many of the answers, those with the most likely tokens; None: all.
        logprobs: whether those of its tokens, where there are any.
        answer: whether what was generated at all, and not the echo alone.
    """

    echo: str = ""
    keep: int | None = None
    logprobs: bool = True
    answer: bool = True


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """What to generate.

    Attributes:
        prompt: token ids, at least one.
        again: what the answer begins with without anybody seeing it, because the caller has it already; its
            tokens count as the prompt's. See `mecroute.engines.llama.healing`.
        n_again: how many tokens it was before it was taken off the prompt.
        max_tokens: ≥ 1; tokens to generate at most. The engine lowers it to what its context has room for.
        sampling: how to choose tokens.
        stop: strings that end the answer, and are left out of it.
        top_logprobs: ≥ 0; with each token comes its probability and those of that many candidates. None:
            nothing is computed.
        scores_prompt: with the answer come the probabilities of the prompt's tokens too, and of as many
            candidates. All of the prompt is computed for that, whatever is in memory of it.
        constraint: the grammar that the answer must conform to.
        functions: names of functions; the answer may be calls of these, for its reader to find.
        adapters: LoRA adapters and their scales, sorted by name; empty for the model as it is.
        n: ≥ 1; answers to generate, each with the next seed. They share the prompt's KV cells.
        prefix_keys: names of the beginnings of the conversation that the prompt is made of; see
            `mecroute.prefix_keys`.
        session: the caller's name for the conversation, or None.
        shown: what of a text completion its reader shows.
        id: names the request in logs and errors.
        submitter: for whom it is made; default: the task's, see `submitting`.
    """

    prompt: tuple[int, ...]
    max_tokens: int
    sampling: SamplingParams = field(default_factory=SamplingParams)
    stop: tuple[str, ...] = ()
    top_logprobs: int | None = None
    scores_prompt: bool = False
    constraint: Constraint | None = None
    functions: tuple[str, ...] = ()
    adapters: tuple[tuple[str, float], ...] = ()
    n: int = 1
    prefix_keys: tuple[str, ...] = ()
    session: str | None = None
    again: bytes = b""
    n_again: int = 0
    shown: Shown = Shown()
    id: str = field(default_factory=_new_id)
    submitter: Submitter = field(default_factory=current_submitter, compare=False, repr=False)

    @property
    def prompt_tokens(self) -> int:
        """How long the prompt is in its caller's eyes."""
        return len(self.prompt) + self.n_again

    def choice(self, index: int) -> GenerationRequest:
        """The request for one of its `n` answers."""
        if self.n == 1:
            return self
        sampling = self.sampling
        if sampling.seed is not None:
            sampling = replace(sampling, seed=(sampling.seed + index) % (2**32 - 1))
        return replace(self, n=1, sampling=sampling, id=f"{self.id}-{index}")


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


def total_usage(usages: Sequence[Usage]) -> Usage:
    """What the answers to one request took together; the prompt, which they share, counts once."""
    if len(usages) == 1:
        return usages[0]
    first = min(usages, key=lambda usage: usage.ttft_ms)
    return replace(
        first,
        completion_tokens=sum(usage.completion_tokens for usage in usages),
        decode_ms=max(usage.ttft_ms + usage.decode_ms for usage in usages) - first.ttft_ms,
    )


@dataclass(slots=True)  # one is made for every token, and a frozen one takes five times as long
class GenerationEvent:
    """A piece of an answer; not to be changed.

    Attributes:
        text: whole characters; may be empty.
        tokens: how many tokens were generated since the event before it.
        finish_reason: on the last event: `stop` (the model ended, or a stop string was met) or `length`.
        usage: on the last event.
        logprobs: of the tokens whose text begins in this event, where the request asks for them.
        index: which of the request's `n` answers it belongs to. Each has a last event.
        stop_met: on the last event, the stop string that ended the answer; None if something else did.
        prompt: on an answer's first event, the tokens of a prompt that was to be scored. Nothing stands
            before the first one: its probability is NaN.
    """

    text: str
    tokens: int
    finish_reason: FinishReason | None = None
    usage: Usage | None = None
    logprobs: tuple[TokenLogprob, ...] = ()
    index: int = 0
    stop_met: str | None = None
    prompt: tuple[TokenLogprob, ...] = ()


class Answers(Protocol):
    """What shapes an answer from: a `Generation`, or several that are read as one (`GenerationGroup`)."""

    @property
    def generations(self) -> tuple[Generation, ...]:
        """Those that it consists of, one for each prompt."""
        ...

    @property
    def requests(self) -> tuple[GenerationRequest, ...]:
        """What was asked, one for each prompt; the answers are counted through all of them."""
        ...

    @property
    def usage(self) -> Usage | None:
        """What all answers took, once the last event of each has been read."""
        ...

    def cancel(self) -> None:
        """See `Generation.cancel`."""
        ...

    def __enter__(self) -> Answers: ...

    def __exit__(self, *_: object) -> None: ...

    def __aiter__(self) -> AsyncIterator[GenerationEvent]: ...


class Generation:
    """An answer in the making. Read it with `for` or `async for`, by one consumer, once.

    When the reader is slower than the engine, waiting pieces arrive merged into one event. Leaving the loop
    early does not stop the engine: call `cancel`, or use it as a context manager.

    Raises while being read: what ended it early, if not its own `cancel` (`TierUnreachableError` when the
    engine was closed).

    Thread-safe, but for the one consumer.
    """

    __slots__ = (
        "_cancel", "_closed", "_error", "_events", "_index", "_loop", "_reader", "_ready", "_unfinished",
        "_usages", "_waiter", "branches", "cancelled", "followers", "generated", "max_tokens", "request",
        "submitted_at",
    )  # fmt: skip

    def __init__(
        self,
        request: GenerationRequest,
        *,
        max_tokens: int,
        cancel: Callable[[Generation], None],
        reader: Generation | None = None,
        index: int = 0,
    ) -> None:
        self.request = request
        #: The request's, lowered to what the context has room for.
        self.max_tokens = max_tokens
        self.submitted_at = time.perf_counter()
        self.cancelled = False
        self._usages: list[Usage] = []
        #: Tokens generated so far for all of its answers, as the engine reported them.
        self.generated = 0
        self._cancel = cancel
        self._events: deque[GenerationEvent] = deque()
        self._closed = False
        self._error: MecrouteError | None = None
        self._ready: threading.Event | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._waiter: asyncio.Future[None] | None = None
        # Of several answers to one request, each is a generation to the engine, and all are read from one.
        self._reader = reader or self
        self._index = index
        self._unfinished = request.n
        #: What the engine runs: itself, or one for each of the request's `n` answers.
        self.branches: tuple[Generation, ...] = (self,)
        if request.n > 1:
            self.branches = tuple(
                Generation(request.choice(at), max_tokens=max_tokens, cancel=cancel, reader=self, index=at)
                for at in range(request.n)
            )
        #: To be started when the prompt of this one is in memory, where they find it.
        self.followers = self.branches[1:]
        if request.n > 1:
            self.branches[0].followers = self.followers

    @property
    def id(self) -> str:
        """The request's id."""
        return self.request.id

    @property
    def generations(self) -> tuple[Generation, ...]:
        """Itself alone; see `Answers`."""
        return (self,)

    @property
    def requests(self) -> tuple[GenerationRequest, ...]:
        """Its one request; see `Answers`."""
        return (self.request,)

    @property
    def room(self) -> int:
        """KV cells that it may come to need."""
        return len(self.request.prompt) + len(self.request.again) + self.max_tokens

    @property
    def done(self) -> bool:
        """Whether the engine has finished with it; events may still be waiting to be read."""
        return self._closed

    @property
    def usage(self) -> Usage | None:
        """What all of its answers took, once the last event of each has been read."""
        return total_usage(self._usages) if len(self._usages) == self.request.n else None

    def cancel(self) -> None:
        """Stop generating; the sequence is free at the engine's next step and reading ends at once."""
        if self._closed or self.cancelled:
            return
        self.cancelled = True
        for branch in self.branches:
            if branch is not self:
                branch.cancel()
        self._cancel(self)
        wake((self,))

    def __enter__(self) -> Generation:
        return self

    def __exit__(self, *_: object) -> None:
        self.cancel()

    # The engine's side.

    def push(self, event: GenerationEvent) -> None:
        """Add an event; the reader sees it after `wake`. The one with a finish_reason is the last."""
        reader = self._reader
        if reader is not self:
            event = replace(event, index=self._index)
        reader._events.append(event)
        reader.generated += event.tokens
        if event.finish_reason is not None:
            self._closed = True
            reader._unfinished -= 1
            if not reader._unfinished:
                reader._closed = True

    def fail(self, error: MecrouteError) -> None:
        """End it with an error, after the events already there; the reader sees it after `wake`."""
        reader = self._reader
        if not self._closed and not reader._closed:
            self._closed = True
            reader._error = error
            reader._closed = True
            for branch in reader.branches:
                branch.cancelled = branch.cancelled or branch is not self

    # The reader's side. The engine appends, then looks for a waiter; the reader leaves its waiter, then
    # looks for events: in either order nothing is missed, so that no lock is needed per token.

    def _take(self) -> GenerationEvent | None:
        events = self._events
        if not events:
            return None
        event = events.popleft()
        if not events:
            self._note_usage(event)
            return event
        texts, tokens, logprobs, prompt = [event.text], event.tokens, event.logprobs, event.prompt
        while events and events[0].index == event.index:
            event = events.popleft()
            texts.append(event.text)
            tokens += event.tokens
            logprobs += event.logprobs
        self._note_usage(event)
        return GenerationEvent(
            "".join(texts),
            tokens,
            event.finish_reason,
            event.usage,
            logprobs,
            event.index,
            event.stop_met,
            prompt,
        )

    def _note_usage(self, event: GenerationEvent) -> None:
        if event.usage is not None:
            self._usages.append(event.usage)

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
        generation._reader.wake_waiter()


def wake(generations: Iterable[Generation]) -> None:
    """Tell the readers of these generations that there is something new: once per event loop, not per token.

    Thread-safe.
    """
    by_loop: dict[asyncio.AbstractEventLoop, list[Generation]] = {}
    for generation in generations:
        ready, loop = generation._reader._ready, generation._reader._loop
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
