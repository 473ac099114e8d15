"""From a generation to OpenAI's answers, whole or in chunks.

Each shape comes twice, for `async` and for plain callers, around the same functions. All cancel the
generation when their reader leaves early.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any

from mecroute.engines.llama.generation import Generation, GenerationEvent, GenerationRequest, Usage
from mecroute.engines.llama.logprobs import TokenLogprob
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
    shape = _Shape("chat.completion.chunk", generation.request, model, id, include_usage)
    with generation:
        async for event in generation:
            for chunk in shape.chat_chunks(event):
                yield chunk


async def text_chunks(
    generation: Generation, model: str, include_usage: bool, id: str
) -> AsyncIterator[dict[str, Any]]:
    """Yield the chunks of a text completion; arguments as for `chat_chunks`."""
    shape = _Shape("text_completion", generation.request, model, id, include_usage)
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
    return _Shape("chat.completion", generation.request, model, id).chat_whole(events)


async def text_completion(generation: Generation, model: str, id: str) -> dict[str, Any]:
    """Wait for the whole answer and return a `text_completion` object; arguments as for `chat_completion`."""
    with generation:
        events = [event async for event in generation]
    return _Shape("text_completion", generation.request, model, id).text_whole(events)


class _Shape:
    """The objects of one answer."""

    def __init__(
        self, kind: str, request: GenerationRequest, model: str, id: str, include_usage: bool = False
    ) -> None:
        self._frame = {"id": id, "object": kind, "created": int(time.time()), "model": model}
        self._include_usage = include_usage
        self._logprobs = request.top_logprobs is not None
        self._opened = False
        self._spelled = b""

    def chat_chunks(self, event: GenerationEvent) -> Iterator[dict[str, Any]]:
        if not self._opened:
            # With the first token and not before: until then an error can still be an HTTP status.
            self._opened = True
            yield self._chunk({"index": 0, "delta": {"role": "assistant", "content": ""}}, None)
        if event.text:
            logprobs = self._chat_logprobs(event.logprobs)
            yield self._chunk({"index": 0, "delta": {"content": event.text}, "logprobs": logprobs}, None)
        if event.finish_reason is not None:
            # Tokens without text: the first bytes of a character whose end never came.
            logprobs = None if event.text else self._chat_logprobs(event.logprobs)
            choice = {"index": 0, "delta": {}, "finish_reason": event.finish_reason, "logprobs": logprobs}
            yield self._chunk(choice, event.usage)
            yield from self._usage_chunk(event)

    def text_chunks(self, event: GenerationEvent) -> Iterator[dict[str, Any]]:
        if event.text:
            logprobs = self._text_logprobs(event.logprobs)
            yield self._chunk({"index": 0, "text": event.text, "logprobs": logprobs}, None)
        if event.finish_reason is not None:
            logprobs = None if event.text else self._text_logprobs(event.logprobs)
            choice = {"index": 0, "text": "", "finish_reason": event.finish_reason, "logprobs": logprobs}
            yield self._chunk(choice, event.usage)
            yield from self._usage_chunk(event)

    def _chunk(self, choice: dict[str, Any], usage: Usage | None) -> dict[str, Any]:
        choice.setdefault("finish_reason", None)
        choice.setdefault("logprobs", None)
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
        logprobs = self._chat_logprobs([entry for event in events for entry in event.logprobs])
        return self._whole({"index": 0, "message": message, "logprobs": logprobs}, events)

    def text_whole(self, events: list[GenerationEvent]) -> dict[str, Any]:
        text = "".join([event.text for event in events])
        logprobs = self._text_logprobs([entry for event in events for entry in event.logprobs])
        return self._whole({"index": 0, "text": text, "logprobs": logprobs}, events)

    def _chat_logprobs(self, entries: Sequence[TokenLogprob]) -> dict[str, Any] | None:
        if not self._logprobs or not entries:
            return None
        return {
            "content": [
                {**_token(entry), "top_logprobs": [_token(candidate) for candidate in entry.top]}
                for entry in entries
            ],
            "refusal": None,
        }

    def _text_logprobs(self, entries: Sequence[TokenLogprob]) -> dict[str, Any] | None:
        """The shape of OpenAI's first API; offsets are those of the tokens in this answer's text."""
        if not self._logprobs or not entries:
            return None
        offsets = []
        for entry in entries:
            offsets.append(len(self._spelled.decode("utf-8", "replace")))
            self._spelled += entry.piece
        return {
            "tokens": [_spelling(entry) for entry in entries],
            "token_logprobs": [entry.logprob for entry in entries],
            "top_logprobs": [
                {_spelling(candidate): candidate.logprob for candidate in entry.top} for entry in entries
            ],
            "text_offset": offsets,
        }

    def _whole(self, choice: dict[str, Any], events: list[GenerationEvent]) -> dict[str, Any]:
        usage = events[-1].usage if events else None
        if usage is None:
            raise TierUnreachableError(
                f"the generation {self._frame['id']} was cancelled before its end",
                hint="send the request again",
                retryable=True,
            )
        choice |= {"finish_reason": events[-1].finish_reason}
        return {**self._frame, "choices": [choice], "usage": _usage(usage), "timings": _timings(usage)}


def _spelling(entry: TokenLogprob) -> str:
    return entry.piece.decode("utf-8", "replace")


def _token(entry: TokenLogprob) -> dict[str, Any]:
    # Part of a character has no spelling of its own; its bytes say what it is.
    return {"token": _spelling(entry), "logprob": entry.logprob, "bytes": list(entry.piece)}


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
