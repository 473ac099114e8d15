"""From a generation to OpenAI's answers, whole or in chunks.

Each shape comes twice, for `async` and for plain callers, around the same functions. All cancel the
generation when their reader leaves early.
"""

from __future__ import annotations

import math
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

from mecroute.engines.llama.generation import (
    Answers,
    GenerationEvent,
    Usage,
)
from mecroute.engines.llama.openai.choice import ChatChoice, TextChoice
from mecroute.errors import TierUnreachableError


async def chat_chunks(
    generation: Answers, model: str, include_usage: bool, id: str
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
    answer = _Answer(ChatChoice, "chat.completion.chunk", generation, model, id, include_usage)
    with generation:
        async for event in generation:
            for chunk in answer.chunks(event):
                yield chunk


async def text_chunks(
    generation: Answers, model: str, include_usage: bool, id: str
) -> AsyncIterator[dict[str, Any]]:
    """Yield the chunks of a text completion; arguments as for `chat_chunks`."""
    answer = _Answer(TextChoice, "text_completion", generation, model, id, include_usage)
    with generation:
        async for event in generation:
            for chunk in answer.chunks(event):
                yield chunk


async def chat_completion(generation: Answers, model: str, id: str) -> dict[str, Any]:
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
    return _Answer(ChatChoice, "chat.completion", generation, model, id).whole(events)


async def text_completion(generation: Answers, model: str, id: str) -> dict[str, Any]:
    """Wait for the whole answer and return a `text_completion` object; arguments as for `chat_completion`."""
    with generation:
        events = [event async for event in generation]
    return _Answer(TextChoice, "text_completion", generation, model, id).whole(events)


class _Answer:
    """The objects of one answer, of which each choice is made by one `kind`."""

    def __init__(
        self,
        kind: type[ChatChoice | TextChoice],
        object: str,
        answers: Answers,
        model: str,
        id: str,
        include_usage: bool = False,
    ) -> None:
        self._frame = {"id": id, "object": object, "created": int(time.time()), "model": model}
        self._answers = answers
        self._kind = kind
        asked = [request for request in answers.requests for _ in range(request.n)]
        self._choices = [kind(index, request) for index, request in enumerate(asked)]
        self._unfinished = len(asked)
        self._include_usage = include_usage

    def chunks(self, event: GenerationEvent) -> Iterator[dict[str, Any]]:
        self._unfinished -= event.finish_reason is not None
        total = self._answers.usage if not self._unfinished else None
        for choice in self._choices[event.index].pieces(event):
            chunk = {**self._frame, "choices": [choice]}
            if self._include_usage:
                chunk["usage"] = None
            if total is not None and choice["finish_reason"] is not None:
                chunk["timings"] = _timings(total)
            yield chunk
        if self._include_usage and total is not None:
            yield {**self._frame, "choices": [], "usage": self._usage(total), "timings": _timings(total)}

    def whole(self, events: list[GenerationEvent]) -> dict[str, Any]:
        total = self._answers.usage
        if total is None:
            raise TierUnreachableError(
                f"the generation {self._frame['id']} was cancelled before its end",
                hint="send the request again",
                retryable=True,
            )
        choices: list[dict[str, Any]] = []
        start = 0
        for request in self._answers.requests:
            answers = [
                [event for event in events if event.index == index]
                for index in range(start, start + request.n)
            ]
            start += request.n
            if request.shown.keep is not None:
                answers = _most_likely(answers, request.shown.keep)
            choices += [
                self._kind(index, request).whole(answer) for index, answer in enumerate(answers, len(choices))
            ]
        return {**self._frame, "choices": choices, "usage": self._usage(total), "timings": _timings(total)}

    def _usage(self, total: Usage) -> dict[str, Any]:
        seen = all(request.shown.answer for request in self._answers.requests)
        completion_tokens = total.completion_tokens if seen else 0
        return {
            "prompt_tokens": total.prompt_tokens,
            "completion_tokens": completion_tokens,
            "total_tokens": total.prompt_tokens + completion_tokens,
            "prompt_tokens_details": {"cached_tokens": total.cached_tokens},
        }


def _most_likely(answers: list[list[GenerationEvent]], count: int) -> list[list[GenerationEvent]]:
    """Those whose tokens have the highest mean log-probability, the best first."""
    return sorted(answers, key=_mean_logprob, reverse=True)[:count]


def _mean_logprob(answer: list[GenerationEvent]) -> float:
    logprobs = [entry.logprob for event in answer for entry in event.logprobs]
    return sum(logprobs) / len(logprobs) if logprobs else -math.inf


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
