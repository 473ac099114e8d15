"""An answer in the form of Anthropic's Messages, whole or as events."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

from mecroute.engines.llama.engine import GenerationEvent, Usage
from mecroute.engines.llama.generation import Answers
from mecroute.engines.llama.tool_calls import AnswerParts, ToolCall
from mecroute_server.formats.answers import read_whole
from mecroute_server.framing import Framing, encode_named_event, failure_in
from mecroute_server.generation import Reply


async def message(generation: Answers, reply: Reply) -> dict[str, Any]:
    """The whole answer."""
    answer = await read_whole(generation)
    blocks: list[dict[str, Any]] = []
    for part in answer.parts:
        if isinstance(part, ToolCall):
            blocks.append({**_tool_use(part), "input": json.loads(part.arguments)})
        else:
            blocks.append(_text_block(part))
    return {
        **_frame(reply),
        "content": blocks or [_text_block("")],
        **_stop(generation, answer.last, calls=bool(answer.calls)),
        "usage": _usage(answer.usage),
    }


async def events(generation: Answers, reply: Reply) -> AsyncIterator[dict[str, Any]]:
    """The answer as events. How much of the prompt was cached is known, and said, at the end."""
    parts = AnswerParts(generation.requests[0].functions)
    blocks = _Blocks()
    with generation:
        opened = False
        async for event in generation:
            if not opened:
                # With the first token and not before: until then an error can still be an HTTP status.
                opened = True
                yield _start(generation, reply)
                if not generation.requests[0].functions:
                    yield blocks.open(_text_block(""))
                yield {"type": "ping"}
            for part in parts.take(event):
                for told in blocks.add(part):
                    yield told
            if event.usage is not None:
                for told in blocks.end():
                    yield told
                yield {
                    "type": "message_delta",
                    "delta": _stop(generation, event, calls=blocks.calls > 0),
                    "usage": _usage(event.usage),
                }
                yield {"type": "message_stop"}


class _Blocks:
    """The content blocks of a streamed answer, one open at a time."""

    def __init__(self) -> None:
        self.calls = 0
        self._index = -1
        self._is_open = False

    def open(self, block: dict[str, Any]) -> dict[str, Any]:
        self._index += 1
        self._is_open = True
        return {"type": "content_block_start", "index": self._index, "content_block": block}

    def add(self, part: str | ToolCall) -> Iterator[dict[str, Any]]:
        if isinstance(part, str):
            if not self._is_open:
                yield self.open(_text_block(""))
            yield self._delta({"type": "text_delta", "text": part})
            return
        yield from self._close()
        self.calls += 1
        yield self.open({**_tool_use(part), "input": {}})
        yield self._delta({"type": "input_json_delta", "partial_json": part.arguments})
        yield from self._close()

    def end(self) -> Iterator[dict[str, Any]]:
        if self._index < 0:
            yield self.open(_text_block(""))
        yield from self._close()

    def _close(self) -> Iterator[dict[str, Any]]:
        if self._is_open:
            self._is_open = False
            yield {"type": "content_block_stop", "index": self._index}

    def _delta(self, delta: dict[str, Any]) -> dict[str, Any]:
        return {"type": "content_block_delta", "index": self._index, "delta": delta}


def _text_block(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


def _tool_use(call: ToolCall) -> dict[str, Any]:
    return {"type": "tool_use", "id": f"toolu_{call.id.removeprefix('call_')}", "name": call.name}


def _frame(reply: Reply) -> dict[str, Any]:
    return {"id": reply.id, "type": "message", "role": "assistant", "model": reply.model}


def _start(generation: Answers, reply: Reply) -> dict[str, Any]:
    usage = {
        "input_tokens": generation.requests[0].prompt_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": 0,
        "output_tokens": 0,
    }
    message = {**_frame(reply), "content": [], "stop_reason": None, "stop_sequence": None, "usage": usage}
    return {"type": "message_start", "message": message}


def _stop(generation: Answers, last: GenerationEvent, *, calls: bool) -> dict[str, str | None]:
    if last.stop_met is not None:
        reason = "stop_sequence"
    elif last.finish_reason == "stop":
        reason = "tool_use" if calls else "end_turn"
    elif generation.generations[0].max_tokens < generation.requests[0].max_tokens:
        reason = "model_context_window_exceeded"
    else:
        reason = "max_tokens"
    return {"stop_reason": reason, "stop_sequence": last.stop_met}


def _usage(usage: Usage) -> dict[str, int]:
    """Anthropic's three kinds of input tokens add up to the prompt."""
    return {
        "input_tokens": usage.prompt_tokens - usage.cached_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": usage.cached_tokens,
        "output_tokens": usage.completion_tokens,
    }


EVENTS = Framing(
    "text/event-stream",
    encode_named_event,
    failure=failure_in("anthropic"),
    heartbeat=encode_named_event({"type": "ping"}),
)
