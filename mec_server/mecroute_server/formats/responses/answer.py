"""An answer in the form of OpenAI's Responses, whole or as events. Nothing is stored."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any

from mecroute.engines.llama.engine import GenerationEvent, Usage
from mecroute.engines.llama.generation import Answers
from mecroute.engines.llama.logprobs import TokenLogprob
from mecroute.engines.llama.openai import token_logprobs
from mecroute.engines.llama.tool_calls import AnswerParts, ToolCall
from mecroute.errors import MecrouteError, TierUnreachableError
from mecroute_server.framing import COMMENT, Framing, encode_named_event
from mecroute_server.generation import Reply

_Event = dict[str, Any]


async def response(generation: Answers, reply: Reply) -> dict[str, Any]:
    """The whole answer."""
    whole: dict[str, Any] | None = None
    async for event in events(generation, reply):
        whole = event.get("response", whole)
    if whole is None or whole["status"] == "in_progress":
        raise TierUnreachableError(
            "the generation was cancelled before its end", hint="send the request again", retryable=True
        )
    return whole


async def events(generation: Answers, reply: Reply) -> AsyncIterator[_Event]:
    """The answer as events, numbered from 0."""
    number = 0
    with generation:
        async for event in _events(generation, reply):
            yield {**event, "sequence_number": number}
            number += 1


async def _events(generation: Answers, reply: Reply) -> AsyncIterator[_Event]:
    shape, output = _Shape(reply), _Output(reply.id)
    parts = AnswerParts(generation.requests[0].functions)
    opened = False
    async for event in generation:
        output.note(event.logprobs)
        if not opened:
            # With the first token and not before: until then an error can still be an HTTP status.
            opened = True
            yield {"type": "response.created", "response": shape.started()}
            yield {"type": "response.in_progress", "response": shape.started()}
            if not generation.requests[0].functions:
                for told in output.open_message():
                    yield told
        for part in parts.take(event):
            for told in output.add(part):
                yield told
        if event.usage is not None:
            for told in output.end(event):
                yield told
            whole = shape.ended(output.items, event, event.usage)
            yield {"type": f"response.{whole['status']}", "response": whole}


class _Output:
    """The items of an answer, messages and calls, in their order.

    Args:
        response_id: of the response.

    Attributes:
        items: those that are complete.
    """

    def __init__(self, response_id: str) -> None:
        self.items: list[dict[str, Any]] = []
        self._id = response_id.removeprefix("resp_")
        self._texts: list[str] | None = None
        #: Of the open message's tokens, and of those whose text is still to come.
        self._logprobs: list[dict[str, Any]] = []
        self._pending: list[dict[str, Any]] = []

    def note(self, logprobs: Sequence[TokenLogprob]) -> None:
        """Keep the probabilities of tokens for the text that they make."""
        if logprobs:
            self._pending += token_logprobs(logprobs)

    def add(self, part: str | ToolCall) -> Iterator[_Event]:
        """Add text or a call; what is to be told of it."""
        if isinstance(part, ToolCall):
            self._pending = []  # an item for a call has no place for them
            yield from self._close_message("completed")
            yield from self._add_call(part)
            return
        yield from self.open_message()
        assert self._texts is not None
        self._texts.append(part)
        delta = {"delta": part, "logprobs": self._take_pending()}
        yield {"type": "response.output_text.delta", **self._where(), **delta}

    def end(self, last: GenerationEvent) -> Iterator[_Event]:
        """The answer is complete, or cut off."""
        if not self.items:
            yield from self.open_message()
        self._take_pending()  # of tokens without text
        yield from self._close_message("incomplete" if last.finish_reason == "length" else "completed")

    def open_message(self) -> Iterator[_Event]:
        """Begin a message, unless one is open."""
        if self._texts is None:
            self._texts = []
            item = {**self._message("in_progress"), "content": []}
            yield {"type": "response.output_item.added", "output_index": len(self.items), "item": item}
            yield {"type": "response.content_part.added", **self._where(), "part": _part("")}

    def _close_message(self, status: str) -> Iterator[_Event]:
        if self._texts is None:
            return
        content, logprobs = "".join(self._texts), self._logprobs
        yield {"type": "response.output_text.done", **self._where(), "text": content, "logprobs": logprobs}
        yield {"type": "response.content_part.done", **self._where(), "part": _part(content, logprobs)}
        item = {**self._message(status), "content": [_part(content, logprobs)]}
        yield from self._done(item)
        self._texts, self._logprobs = None, []

    def _take_pending(self) -> list[dict[str, Any]]:
        taken, self._pending = self._pending, []
        self._logprobs += taken
        return taken

    def _add_call(self, call: ToolCall) -> Iterator[_Event]:
        item_id = self._item_id("fc")
        item = {"id": item_id, "type": "function_call", "call_id": call.id, "name": call.name}
        started = {**item, "arguments": "", "status": "in_progress"}
        index = len(self.items)
        where = {"item_id": item_id, "output_index": index}
        yield {"type": "response.output_item.added", "output_index": index, "item": started}
        yield {"type": "response.function_call_arguments.delta", **where, "delta": call.arguments}
        told = {"name": call.name, "arguments": call.arguments}
        yield {"type": "response.function_call_arguments.done", **where, **told}
        yield from self._done({**item, "arguments": call.arguments, "status": "completed"})

    def _done(self, item: dict[str, Any]) -> Iterator[_Event]:
        yield {"type": "response.output_item.done", "output_index": len(self.items), "item": item}
        self.items.append(item)

    def _message(self, status: str) -> dict[str, Any]:
        return {"id": self._item_id("msg"), "type": "message", "role": "assistant", "status": status}

    def _where(self) -> dict[str, Any]:
        return {"item_id": self._item_id("msg"), "output_index": len(self.items), "content_index": 0}

    def _item_id(self, kind: str) -> str:
        at = len(self.items)
        return f"{kind}_{self._id}_{at}" if at else f"{kind}_{self._id}"


class _Shape:
    """The response around the items."""

    def __init__(self, reply: Reply) -> None:
        body = reply.body
        text = body.get("text") or {}
        parallel = body.get("parallel_tool_calls")
        self._frame: dict[str, Any] = {
            "id": reply.id,
            "object": "response",
            "created_at": int(time.time()),
            "model": reply.model,
            "error": None,
            "instructions": body.get("instructions"),
            "max_output_tokens": body.get("max_output_tokens"),
            "metadata": body.get("metadata") or {},
            "parallel_tool_calls": True if parallel is None else parallel,
            "previous_response_id": None,
            "reasoning": {"effort": None, "summary": None},
            "store": False,
            "temperature": body.get("temperature"),
            "text": {"format": text.get("format") or {"type": "text"}},
            "tool_choice": body.get("tool_choice") or "auto",
            "tools": body.get("tools") or [],
            "top_logprobs": body.get("top_logprobs") or 0,
            "top_p": body.get("top_p"),
            "truncation": "disabled",
            "user": body.get("user"),
        }

    def started(self) -> dict[str, Any]:
        """The response while it is being made."""
        unknown = {"incomplete_details": None, "usage": None}
        return {**self._frame, "status": "in_progress", "output": [], **unknown}

    def ended(self, items: list[dict[str, Any]], last: GenerationEvent, usage: Usage) -> dict[str, Any]:
        """The response once its answer is complete, or as complete as it may be."""
        is_cut = last.finish_reason == "length"
        return {
            **self._frame,
            "status": "incomplete" if is_cut else "completed",
            "incomplete_details": {"reason": "max_output_tokens"} if is_cut else None,
            "output": items,
            "usage": {
                "input_tokens": usage.prompt_tokens,
                "input_tokens_details": {"cached_tokens": usage.cached_tokens},
                "output_tokens": usage.completion_tokens,
                "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": usage.prompt_tokens + usage.completion_tokens,
            },
        }


def _part(content: str, logprobs: Sequence[dict[str, Any]] = ()) -> dict[str, Any]:
    return {"type": "output_text", "text": content, "annotations": [], "logprobs": list(logprobs)}


def _failure(error: MecrouteError, number: int) -> _Event:
    return {
        "type": "error",
        "code": error.code,
        "message": error.message,
        "param": None,
        "sequence_number": number,
    }


EVENTS = Framing("text/event-stream", encode_named_event, failure=_failure, heartbeat=COMMENT)
