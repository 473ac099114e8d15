"""An answer in the form of Ollama's chat or generate, whole or in pieces."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Sequence
from datetime import UTC, datetime
from typing import Any

from mecroute.engines.llama.engine import Usage
from mecroute.engines.llama.generation import Answers
from mecroute.engines.llama.logprobs import TokenLogprob
from mecroute.engines.llama.openai import token_logprobs
from mecroute.engines.llama.tool_calls import AnswerParts, ToolCall
from mecroute_server.formats.answers import read_whole
from mecroute_server.framing import Framing, encode_json, failure_in
from mecroute_server.generation import Reply

#: How one endpoint of the two puts text and calls into its answer.
_Put = Callable[[str, list[dict[str, Any]]], dict[str, Any]]


def _chat(content: str, calls: list[dict[str, Any]]) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": content}
    return {"message": message | {"tool_calls": calls} if calls else message}


def _generate(content: str, calls: list[dict[str, Any]]) -> dict[str, Any]:
    del calls  # /api/generate has no tools
    return {"response": content}


async def chat_whole(generation: Answers, reply: Reply) -> dict[str, Any]:
    """The whole answer of `/api/chat`."""
    return await _whole(generation, reply, _chat)


async def generate_whole(generation: Answers, reply: Reply) -> dict[str, Any]:
    """The whole answer of `/api/generate`."""
    return await _whole(generation, reply, _generate)


def chat_pieces(generation: Answers, reply: Reply) -> AsyncIterator[dict[str, Any]]:
    """The answer of `/api/chat` in pieces; the last one has no text and says what it took."""
    return _pieces(generation, reply, _chat)


def generate_pieces(generation: Answers, reply: Reply) -> AsyncIterator[dict[str, Any]]:
    """The same for `/api/generate`."""
    return _pieces(generation, reply, _generate)


def loaded_chat(model: str, reason: str) -> dict[str, Any]:
    """The answer of `/api/chat` to a request that asks nothing; `reason` is `load` or `unload`."""
    return _loaded(model, _chat, reason)


def loaded_generate(model: str, reason: str) -> dict[str, Any]:
    """The same for `/api/generate`."""
    return _loaded(model, _generate, reason)


def _loaded(model: str, put: _Put, reason: str) -> dict[str, Any]:
    return {**_frame(model), **put("", []), "done": True, "done_reason": reason}


async def _whole(generation: Answers, reply: Reply, put: _Put) -> dict[str, Any]:
    answer = await read_whole(generation)
    return {
        **_frame(reply.model),
        **put(answer.text, [_call(at, call) for at, call in enumerate(answer.calls)]),
        **_logprobs(answer.logprobs),
        "done": True,
        "done_reason": answer.last.finish_reason,
        **_durations(answer.usage, reply),
    }


async def _pieces(generation: Answers, reply: Reply, put: _Put) -> AsyncIterator[dict[str, Any]]:
    parts = AnswerParts(generation.requests[0].functions)
    calls = 0
    pending: list[TokenLogprob] = []
    with generation:
        async for event in generation:
            pending += event.logprobs
            for part in parts.take(event):
                if isinstance(part, ToolCall):
                    told = put("", [_call(calls, part)])
                    calls += 1
                else:
                    told = put(part, [])
                yield {**_frame(reply.model), **told, **_logprobs(pending), "done": False}
                pending = []
            if event.usage is not None:
                yield {
                    **_frame(reply.model),
                    **put("", []),
                    **_logprobs(pending),
                    "done": True,
                    "done_reason": event.finish_reason,
                    **_durations(event.usage, reply),
                }


def _logprobs(entries: Sequence[TokenLogprob]) -> dict[str, Any]:
    return {"logprobs": token_logprobs(entries)} if entries else {}


def _call(index: int, call: ToolCall) -> dict[str, Any]:
    function = {"index": index, "name": call.name, "arguments": json.loads(call.arguments)}
    return {"id": call.id, "function": function}


def timestamp(at: datetime) -> str:
    """RFC 3339, as Go writes it."""
    return at.astimezone(UTC).isoformat().replace("+00:00", "Z")


def _frame(model: str) -> dict[str, Any]:
    return {"model": model, "created_at": timestamp(datetime.now(UTC))}


def _durations(usage: Usage, reply: Reply) -> dict[str, int]:
    """Nanoseconds. The total includes what the request waited for a sequence, which no other field does."""
    return {
        "total_duration": int(reply.load_s * 1e9 + (usage.ttft_ms + usage.decode_ms) * 1e6),
        "load_duration": int(reply.load_s * 1e9),
        "prompt_eval_count": usage.prompt_tokens,
        "prompt_eval_duration": int(usage.prefill_ms * 1e6),
        "eval_count": usage.completion_tokens,
        "eval_duration": int(usage.decode_ms * 1e6),
    }


def _line(value: dict[str, Any]) -> bytes:
    return encode_json(value) + b"\n"


def _lines(put: _Put) -> Framing:
    # A line is never blank or a comment: a piece without text is what changes nothing.
    heartbeat = _line({**put("", []), "done": False})
    return Framing("application/x-ndjson", _line, failure=failure_in("ollama"), heartbeat=heartbeat)


CHAT_LINES = _lines(_chat)
GENERATE_LINES = _lines(_generate)
