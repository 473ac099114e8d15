"""Answers to several prompts that were sent as one request, read as one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from itertools import accumulate

from mecroute.engines.llama.generation import (
    Answers,
    Generation,
    GenerationEvent,
    GenerationRequest,
    Usage,
)


class GenerationGroup:
    """Generations that are read, cancelled and counted together. Read it with `async for`, once.

    Each event's `index` is that of its answer among all of them: those to the first prompt come first.

    Args:
        generations: at least one; not read by anybody else.

    Thread-safe, but for the one consumer.
    """

    def __init__(self, generations: Sequence[Generation]) -> None:
        self._generations = tuple(generations)
        self._starts = list(accumulate([one.request.n for one in generations], initial=0))

    @property
    def generations(self) -> tuple[Generation, ...]:
        """One for each prompt."""
        return self._generations

    @property
    def requests(self) -> tuple[GenerationRequest, ...]:
        """Theirs."""
        return tuple(one.request for one in self._generations)

    @property
    def usage(self) -> Usage | None:
        """What all of them took, once the last event of each has been read."""
        usages = [usage for one in self._generations if (usage := one.usage) is not None]
        return usage_of_several(usages) if len(usages) == len(self._generations) else None

    def cancel(self) -> None:
        """Stop them all."""
        for one in self._generations:
            one.cancel()

    def __enter__(self) -> GenerationGroup:
        return self

    def __exit__(self, *_: object) -> None:
        self.cancel()

    async def __aiter__(self) -> AsyncIterator[GenerationEvent]:
        waiting = {
            asyncio.ensure_future(anext(events, None)): (events, start)
            for events, start in zip(map(aiter, self._generations), self._starts, strict=False)
        }
        try:
            while waiting:
                ready, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                for task in ready:
                    events, start = waiting.pop(task)
                    event = task.result()
                    if event is not None:
                        waiting[asyncio.ensure_future(anext(events, None))] = (events, start)
                        yield replace(event, index=start + event.index)
        finally:
            if waiting:
                self.cancel()  # the readers below then end by themselves
                await asyncio.wait(waiting)


def submit_all(
    submit: Callable[[GenerationRequest], Generation], requests: Sequence[GenerationRequest]
) -> Answers:
    """Submit the requests of several prompts: all of them, or none.

    Args:
        submit: an engine's.
        requests: at least one.

    Raises: as `submit`.
    """
    if len(requests) == 1:
        return submit(requests[0])
    made: list[Generation] = []
    try:
        for request in requests:
            made.append(submit(request))
    except BaseException:
        for one in made:
            one.cancel()
        raise
    return GenerationGroup(made)


def usage_of_several(usages: Sequence[Usage]) -> Usage:
    """What the answers to several prompts took together, prompts included; times run from the first."""
    first = min(usages, key=lambda usage: usage.ttft_ms)
    begun_ms = min(usage.ttft_ms - usage.prefill_ms for usage in usages)
    return Usage(
        prompt_tokens=sum(usage.prompt_tokens for usage in usages),
        completion_tokens=sum(usage.completion_tokens for usage in usages),
        cached_tokens=sum(usage.cached_tokens for usage in usages),
        ttft_ms=first.ttft_ms,
        prefill_ms=max(usage.ttft_ms for usage in usages) - begun_ms,
        decode_ms=max(usage.ttft_ms + usage.decode_ms for usage in usages) - first.ttft_ms,
    )
