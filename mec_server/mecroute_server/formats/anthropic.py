"""Anthropic's Messages: the request, translated, and the answer, whole or as events."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from datetime import UTC, datetime
from typing import Any

from mecroute.engines.llama import openai
from mecroute.engines.llama.engine import (
    Generation,
    GenerationEvent,
    GenerationRequest,
    LlamaEngine,
    Usage,
)
from mecroute.errors import InvalidRequestError
from mecroute_server.formats.answers import read_whole
from mecroute_server.formats.fields import joined_text, known_fields, messages_in, role_of, whole_number
from mecroute_server.framing import Framing, encode_named_event, failure_in
from mecroute_server.generation import Reply
from mecroute_server.slot import ModelSlot

#: Fields that do not change what the answer says; the prefix cache is always on.
_NEUTRAL = frozenset({"model", "stream", "metadata", "service_tier", "cache_control"})
_SAMPLING = frozenset({"temperature", "top_p", "top_k"})
_PROMPT = frozenset({"messages", "system"})
_KNOWN = _NEUTRAL | _SAMPLING | _PROMPT | {"max_tokens", "stop_sequences"}
_EMPTY: dict[str, tuple[Any, ...]] = {
    "tools": ([],),
    "tool_choice": ({"type": "auto"}, {"type": "none"}),
    "thinking": ({"type": "disabled"},),
    "mcp_servers": ([],),
    "speed": ("standard",),
}
_TEXT = ("text",)


def parse_messages(body: Mapping[str, Any], engine: LlamaEngine) -> GenerationRequest:
    """Read the body of `/v1/messages`. A last message of the assistant is continued.

    Raises:
        InvalidRequestError: names the field that is missing, wrong or not supported.
    """
    fields = known_fields(body, _KNOWN, _EMPTY)
    max_tokens = whole_number(fields, "max_tokens", 1)
    if max_tokens is None:
        raise InvalidRequestError(
            "max_tokens is missing", hint="say how many tokens the answer may have at most"
        )
    stops = fields.get("stop_sequences", [])
    if not isinstance(stops, list) or not all(isinstance(stop, str) and stop for stop in stops):
        raise InvalidRequestError("stop_sequences is not a list of texts, none of them empty")
    sampling = {name: fields[name] for name in _SAMPLING if name in fields}
    chat = {"messages": _messages(fields), "max_tokens": max_tokens, "stop": stops, **sampling}
    return openai.parse_chat(chat, engine)


def parse_count(body: Mapping[str, Any], engine: LlamaEngine) -> GenerationRequest:
    """Read the body of `/v1/messages/count_tokens`: the prompt, and no request to run.

    Raises:
        InvalidRequestError: names the field that is missing, wrong or not supported.
    """
    fields = known_fields(body, _NEUTRAL | _PROMPT, _EMPTY)
    return openai.parse_chat({"messages": _messages(fields)}, engine)


def _messages(fields: Mapping[str, Any]) -> list[dict[str, str]]:
    given = messages_in(fields)
    if not given:
        raise InvalidRequestError("messages is missing or empty", hint="send at least one message")
    turns: list[dict[str, str]] = []
    if (system := fields.get("system")) is not None:
        turns.append({"role": "system", "content": joined_text(system, _TEXT, "system", "\n\n")})
    for at, message in enumerate(given):
        where = f"messages[{at}]"
        role = role_of(message, ("user", "assistant"), where)
        content = joined_text(message.get("content"), _TEXT, f"{where}.content")
        if turns and turns[-1]["role"] == role:
            # Anthropic takes messages of the same role in a row for one; many templates refuse them.
            turns[-1]["content"] += f"\n\n{content}"
        else:
            turns.append({"role": role, "content": content})
    return turns


async def message(generation: Generation, reply: Reply) -> dict[str, Any]:
    """The whole answer."""
    text, last, usage = await read_whole(generation)
    return {
        **_frame(reply),
        "content": [{"type": "text", "text": text}],
        **_stop(generation, last),
        "usage": _usage(usage),
    }


async def events(generation: Generation, reply: Reply) -> AsyncIterator[dict[str, Any]]:
    """The answer as events. How much of the prompt was cached is known, and said, at the end."""
    with generation:
        opened = False
        async for event in generation:
            if not opened:
                # With the first token and not before: until then an error can still be an HTTP status.
                opened = True
                yield _start(generation, reply)
                yield {
                    "type": "content_block_start",
                    "index": 0,
                    "content_block": {"type": "text", "text": ""},
                }
                yield {"type": "ping"}
            if event.text:
                delta = {"type": "text_delta", "text": event.text}
                yield {"type": "content_block_delta", "index": 0, "delta": delta}
            if event.usage is not None:
                yield {"type": "content_block_stop", "index": 0}
                yield {
                    "type": "message_delta",
                    "delta": _stop(generation, event),
                    "usage": _usage(event.usage),
                }
                yield {"type": "message_stop"}


def model_info(slot: ModelSlot) -> dict[str, Any]:
    """A model as Anthropic's `/v1/models` describes it."""
    loaded, model = slot.loaded, slot.model
    n_ctx = loaded.engine.n_ctx if loaded is not None else None
    since = datetime.fromtimestamp(0, UTC) if model is None else model.created
    if loaded is not None:
        since = loaded.since
    return {
        "type": "model",
        "id": slot.ref,
        "display_name": slot.ref,
        "created_at": since.astimezone(UTC).isoformat().replace("+00:00", "Z"),
        "lifecycle": "active",
        "max_input_tokens": n_ctx,
        "max_tokens": n_ctx,
    }


def model_page(slots: list[ModelSlot]) -> dict[str, Any]:
    """All models, which are always one page."""
    models = [model_info(slot) for slot in slots]
    return {
        "data": models,
        "has_more": False,
        "first_id": models[0]["id"] if models else None,
        "last_id": models[-1]["id"] if models else None,
    }


def _frame(reply: Reply) -> dict[str, Any]:
    return {"id": reply.id, "type": "message", "role": "assistant", "model": reply.model}


def _start(generation: Generation, reply: Reply) -> dict[str, Any]:
    usage = {
        "input_tokens": len(generation.request.prompt),
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": 0,
        "output_tokens": 0,
    }
    message = {**_frame(reply), "content": [], "stop_reason": None, "stop_sequence": None, "usage": usage}
    return {"type": "message_start", "message": message}


def _stop(generation: Generation, last: GenerationEvent) -> dict[str, str | None]:
    if last.stop_met is not None:
        reason = "stop_sequence"
    elif last.finish_reason == "stop":
        reason = "end_turn"
    elif generation.max_tokens < generation.request.max_tokens:
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
