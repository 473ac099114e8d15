"""OpenAI's Responses: the request, translated, and the answer, whole or as events. Nothing is stored."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Mapping
from typing import Any

from mecroute.engines.llama import openai
from mecroute.engines.llama.engine import Generation, GenerationEvent, GenerationRequest, LlamaEngine, Usage
from mecroute.errors import InvalidRequestError, MecrouteError
from mecroute_server.formats.answers import read_whole
from mecroute_server.formats.fields import (
    joined_text,
    known_fields,
    messages_in,
    role_of,
    text,
    unsupported,
    whole_number,
)
from mecroute_server.framing import COMMENT, Framing, encode_named_event
from mecroute_server.generation import Reply

#: Fields that do not change what the answer says. `store` is one: the answer says that it was not stored.
_NEUTRAL = frozenset(
    {
        *("model", "stream", "stream_options", "store", "metadata", "user", "service_tier"),
        *("safety_identifier", "prompt_cache_key", "prompt_cache_retention", "max_tool_calls"),
    }
)
_SAMPLING = frozenset({"temperature", "top_p"})
_KNOWN = _NEUTRAL | _SAMPLING | {"input", "instructions", "max_output_tokens"}
_EMPTY: dict[str, tuple[Any, ...]] = {
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "parallel_tool_calls": (True, False),
    "include": ([],),
    "background": (False,),
    "truncation": ("disabled",),
    "top_logprobs": (0,),
    "reasoning": ({},),
    "text": ({}, {"format": {"type": "text"}}),
}
_STATEFUL = ("previous_response_id", "conversation")
_ROLES = ("system", "developer", "user", "assistant")
_TEXT = ("input_text", "output_text", "text")


def parse_response(body: Mapping[str, Any], engine: LlamaEngine) -> GenerationRequest:
    """Read the body of `/v1/responses`. A last message of the assistant is continued.

    Raises:
        InvalidRequestError: names the field that is missing, wrong or not supported.
    """
    for name in _STATEFUL:
        if body.get(name) is not None:
            raise InvalidRequestError(
                f"'{name}' is not supported: this server stores no responses",
                hint="send the whole conversation as 'input'",
            )
    fields = known_fields(body, _KNOWN, _EMPTY)
    messages = _messages(fields)
    limit = whole_number(fields, "max_output_tokens", 1)
    sampling = {name: fields[name] for name in _SAMPLING if name in fields}
    return openai.parse_chat({"messages": messages, "max_tokens": limit, **sampling}, engine)


def _messages(fields: Mapping[str, Any]) -> list[dict[str, str]]:
    messages: list[dict[str, str]] = []
    if instructions := text(fields, "instructions"):
        messages.append({"role": "system", "content": instructions})
    given = fields.get("input")
    if isinstance(given, str):
        return [*messages, {"role": "user", "content": given}]
    if not given:
        raise InvalidRequestError("input is missing or empty", hint="send a text or a list of messages")
    for at, item in enumerate(messages_in(fields, "input")):
        where = f"input[{at}]"
        if item.get("type", "message") != "message":
            raise unsupported(f"{where} of type {item.get('type')!r}")
        role = role_of(item, _ROLES, where)
        messages.append(
            {"role": role, "content": joined_text(item.get("content"), _TEXT, f"{where}.content")}
        )
    return messages


async def response(generation: Generation, reply: Reply) -> dict[str, Any]:
    """The whole answer."""
    content, last, usage = await read_whole(generation)
    return _Shape(reply).ended(content, last, usage)


async def events(generation: Generation, reply: Reply) -> AsyncIterator[dict[str, Any]]:
    """The answer as events, numbered from 0."""
    number = 0
    shape = _Shape(reply)
    with generation:
        async for event in shape.events(generation):
            yield {**event, "sequence_number": number}
            number += 1


class _Shape:
    """The objects of one answer."""

    def __init__(self, reply: Reply) -> None:
        body = reply.body
        self._item_id = f"msg_{reply.id.removeprefix('resp_')}"
        self._frame: dict[str, Any] = {
            "id": reply.id,
            "object": "response",
            "created_at": int(time.time()),
            "model": reply.model,
            "error": None,
            "instructions": body.get("instructions"),
            "max_output_tokens": body.get("max_output_tokens"),
            "metadata": body.get("metadata") or {},
            "parallel_tool_calls": True,
            "previous_response_id": None,
            "reasoning": {"effort": None, "summary": None},
            "store": False,
            "temperature": body.get("temperature"),
            "text": {"format": {"type": "text"}},
            "tool_choice": "auto",
            "tools": [],
            "top_p": body.get("top_p"),
            "truncation": "disabled",
            "user": body.get("user"),
        }

    async def events(self, generation: Generation) -> AsyncIterator[dict[str, Any]]:
        where = {"item_id": self._item_id, "output_index": 0, "content_index": 0}
        started = {**self._frame, "status": "in_progress", "incomplete_details": None}
        started |= {"output": [], "usage": None}
        texts: list[str] = []
        opened = False
        async for event in generation:
            if not opened:
                # With the first token and not before: until then an error can still be an HTTP status.
                opened = True
                yield {"type": "response.created", "response": started}
                yield {"type": "response.in_progress", "response": started}
                item = {**self._item("in_progress"), "content": []}
                yield {"type": "response.output_item.added", "output_index": 0, "item": item}
                yield {"type": "response.content_part.added", **where, "part": _part("")}
            if event.text:
                texts.append(event.text)
                delta = {"delta": event.text, "logprobs": []}
                yield {"type": "response.output_text.delta", **where, **delta}
            if event.usage is not None:
                content = "".join(texts)
                whole = self.ended(content, event, event.usage)
                done = {"text": content, "logprobs": []}
                yield {"type": "response.output_text.done", **where, **done}
                yield {"type": "response.content_part.done", **where, "part": _part(content)}
                item = whole["output"][0]
                yield {"type": "response.output_item.done", "output_index": 0, "item": item}
                yield {"type": f"response.{whole['status']}", "response": whole}

    def ended(self, content: str, last: GenerationEvent, usage: Usage) -> dict[str, Any]:
        """The response once its answer is complete, or as complete as it may be."""
        is_cut = last.finish_reason == "length"
        status = "incomplete" if is_cut else "completed"
        return {
            **self._frame,
            "status": status,
            "incomplete_details": {"reason": "max_output_tokens"} if is_cut else None,
            "output": [{**self._item(status), "content": [_part(content)]}],
            "usage": {
                "input_tokens": usage.prompt_tokens,
                "input_tokens_details": {"cached_tokens": usage.cached_tokens},
                "output_tokens": usage.completion_tokens,
                "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": usage.prompt_tokens + usage.completion_tokens,
            },
        }

    def _item(self, status: str) -> dict[str, Any]:
        return {"id": self._item_id, "type": "message", "role": "assistant", "status": status}


def _part(content: str) -> dict[str, Any]:
    return {"type": "output_text", "text": content, "annotations": [], "logprobs": []}


def _failure(error: MecrouteError, number: int) -> dict[str, Any]:
    return {
        "type": "error",
        "code": error.code,
        "message": error.message,
        "param": None,
        "sequence_number": number,
    }


EVENTS = Framing("text/event-stream", encode_named_event, failure=_failure, heartbeat=COMMENT)
