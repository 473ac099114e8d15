"""From a generation to OpenAI's answers, whole or in chunks.

Each shape comes twice, for `async` and for plain callers, around the same functions. All cancel the
generation when their reader leaves early.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

from mecroute.engines.llama.generation import Generation, GenerationEvent, Usage
from mecroute.errors import TierUnreachableError


async def chat_chunks(
    generation: Generation, model: str, include_usage: bool, id: str
) -> AsyncIterator[dict[str, Any]]:
    """Yield `chat.completion.chunk` objects.

    Args:
        generation: not read by anybody else.
        model: the name to answer with.
        include_usage: end with a chunk without choices that carries `usage`.
        id: of the completion, the same in each chunk.

    Raises:
        TierUnreachableError: the engine was closed before the end.
    """
    shape = _Shape("chat.completion.chunk", model, id, include_usage)
    with generation:
        async for event in generation:
            for chunk in shape.chat_chunks(event):
                yield chunk


async def text_chunks(
    generation: Generation, model: str, include_usage: bool, id: str
) -> AsyncIterator[dict[str, Any]]:
    """Yield the chunks of a text completion; arguments as for `chat_chunks`."""
    shape = _Shape("text_completion", model, id, include_usage)
    with generation:
        async for event in generation:
            for chunk in shape.text_chunks(event):
                yield chunk


async def chat_completion(generation: Generation, model: str, id: str) -> dict[str, Any]:
    """Wait for the whole answer and return a `chat.completion` object.

    Args:
        generation: not read by anybody else.
        model: the name to answer with.
        id: of the completion.

    Raises:
        TierUnreachableError: the engine was closed, or the generation cancelled, before the end.
    """
    with generation:
        events = [event async for event in generation]
    return _Shape("chat.completion", model, id).chat_whole(events)


async def text_completion(generation: Generation, model: str, id: str) -> dict[str, Any]:
    """Wait for the whole answer and return a `text_completion` object; arguments as for `chat_completion`."""
    with generation:
        events = [event async for event in generation]
    return _Shape("text_completion", model, id).text_whole(events)


class _Shape:
    """The objects of one answer."""

    def __init__(self, kind: str, model: str, id: str, include_usage: bool = False) -> None:
        self._frame = {"id": id, "object": kind, "created": int(time.time()), "model": model}
        self._include_usage = include_usage
        self._opened = False

    def chat_chunks(self, event: GenerationEvent) -> Iterator[dict[str, Any]]:
        if not self._opened:
            # With the first token and not before: until then an error can still be an HTTP status.
            self._opened = True
            yield self._chunk({"index": 0, "delta": {"role": "assistant", "content": ""}}, None)
        if event.text:
            yield self._chunk({"index": 0, "delta": {"content": event.text}}, None)
        if event.finish_reason is not None:
            yield self._chunk({"index": 0, "delta": {}, "finish_reason": event.finish_reason}, event.usage)
            yield from self._usage_chunk(event)

    def text_chunks(self, event: GenerationEvent) -> Iterator[dict[str, Any]]:
        if event.text:
            yield self._chunk({"index": 0, "text": event.text}, None)
        if event.finish_reason is not None:
            yield self._chunk({"index": 0, "text": "", "finish_reason": event.finish_reason}, event.usage)
            yield from self._usage_chunk(event)

    def _chunk(self, choice: dict[str, Any], usage: Usage | None) -> dict[str, Any]:
        choice.setdefault("finish_reason", None)
        choice["logprobs"] = None
        chunk = {**self._frame, "choices": [choice]}
        if self._include_usage:
            chunk["usage"] = None
        if usage is not None:
            chunk["timings"] = _timings(usage)
        return chunk

    def _usage_chunk(self, event: GenerationEvent) -> Iterator[dict[str, Any]]:
        if self._include_usage and event.usage is not None:
            yield {
                **self._frame,
                "choices": [],
                "usage": _usage(event.usage),
                "timings": _timings(event.usage),
            }

    def chat_whole(self, events: list[GenerationEvent]) -> dict[str, Any]:
        text = "".join([event.text for event in events])
        message = {"role": "assistant", "content": text, "refusal": None}
        return self._whole({"index": 0, "message": message}, events)

    def text_whole(self, events: list[GenerationEvent]) -> dict[str, Any]:
        return self._whole({"index": 0, "text": "".join([event.text for event in events])}, events)

    def _whole(self, choice: dict[str, Any], events: list[GenerationEvent]) -> dict[str, Any]:
        usage = events[-1].usage if events else None
        if usage is None:
            raise TierUnreachableError(
                f"the generation {self._frame['id']} was cancelled before its end",
                hint="send the request again",
                retryable=True,
            )
        choice |= {"finish_reason": events[-1].finish_reason, "logprobs": None}
        return {**self._frame, "choices": [choice], "usage": _usage(usage), "timings": _timings(usage)}


def _usage(usage: Usage) -> dict[str, Any]:
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
    }


def _timings(usage: Usage) -> dict[str, float]:
    """llama-server's names. `predicted_per_second` is the rate after the first token, which is prefill's."""
    return {
        "prompt_n": usage.prompt_tokens - usage.cached_tokens,
        "prompt_ms": usage.prefill_ms,
        "prompt_per_second": usage.prefill_tokens_per_s,
        "predicted_n": usage.completion_tokens,
        "predicted_ms": usage.decode_ms,
        "predicted_per_second": usage.decode_tokens_per_s,
        "ttft_ms": usage.ttft_ms,
        "cache_n": usage.cached_tokens,
    }
