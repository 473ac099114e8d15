"""One of an answer's choices, whole or in pieces."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from mecroute.engines.llama.generation import GenerationEvent, GenerationRequest
from mecroute.engines.llama.logprobs import TokenLogprob
from mecroute.engines.llama.tool_calls import AnswerParts, ToolCall


class ChatChoice:
    """A chat answer, with the tool calls in it.

    Args:
        index: of the choice.
        request: what was asked for.

    Not thread-safe.
    """

    def __init__(self, index: int, request: GenerationRequest) -> None:
        self._index = index
        self._parts = AnswerParts(request.functions)
        self._pending: list[TokenLogprob] = []
        self._calls = 0
        self._opened = False

    def pieces(self, event: GenerationEvent) -> Iterator[dict[str, Any]]:
        """The choices of the chunks that an event makes."""
        if not self._opened:
            # With the first token and not before: until then an error can still be an HTTP status.
            self._opened = True
            yield self._piece({"role": "assistant", "content": ""})
        self._pending += event.logprobs
        for part in self._parts.take(event):
            if isinstance(part, ToolCall):
                yield from self._call_pieces(part)
            else:
                yield self._piece({"content": part}, self._take_logprobs())
        if event.finish_reason is not None:
            # What is left are tokens without text of their own.
            piece = self._piece({}, self._take_logprobs())
            yield {**piece, "finish_reason": self._finish_reason(event)}

    def whole(self, events: Sequence[GenerationEvent]) -> dict[str, Any]:
        """The choice of a whole answer."""
        texts: list[str] = []
        calls: list[dict[str, Any]] = []
        for event in events:
            self._pending += event.logprobs
            for part in self._parts.take(event):
                if isinstance(part, ToolCall):
                    calls.append(self._call(part))
                else:
                    texts.append(part)
        text = "".join(texts)
        message: dict[str, Any] = {"role": "assistant", "content": text, "refusal": None}
        if calls:
            message |= {"content": text.strip() or None, "tool_calls": calls}
        return {
            "index": self._index,
            "message": message,
            "logprobs": self._take_logprobs(),
            "finish_reason": self._finish_reason(events[-1]),
        }

    def _piece(self, delta: dict[str, Any], logprobs: dict[str, Any] | None = None) -> dict[str, Any]:
        return {"index": self._index, "delta": delta, "logprobs": logprobs, "finish_reason": None}

    def _call_pieces(self, call: ToolCall) -> Iterator[dict[str, Any]]:
        index, whole = self._calls, self._call(call)
        named = {**whole, "index": index, "function": {"name": call.name, "arguments": ""}}
        yield self._piece({"tool_calls": [named]}, self._take_logprobs())
        yield self._piece({"tool_calls": [{"index": index, "function": {"arguments": call.arguments}}]})

    def _call(self, call: ToolCall) -> dict[str, Any]:
        self._calls += 1
        function = {"name": call.name, "arguments": call.arguments}
        return {"id": call.id, "type": "function", "function": function}

    def _finish_reason(self, event: GenerationEvent) -> str | None:
        return "tool_calls" if self._calls and event.finish_reason == "stop" else event.finish_reason

    def _take_logprobs(self) -> dict[str, Any] | None:
        entries, self._pending = self._pending, []
        return {"content": token_logprobs(entries), "refusal": None} if entries else None


class TextChoice:
    """The continuation of a text.

    Args:
        index: of the choice.
        request: what was asked for.

    Not thread-safe.
    """

    def __init__(self, index: int, request: GenerationRequest) -> None:
        self._index = index
        self._shown = request.shown
        self._echo = request.shown.echo
        self._spelled = b""

    def pieces(self, event: GenerationEvent) -> Iterator[dict[str, Any]]:
        """The choices of the chunks that an event makes."""
        event = self._seen(event)
        logprobs = self._logprobs(event.logprobs, event.prompt)
        text, self._echo = self._echo + event.text, ""
        if text:
            yield self._piece(text, logprobs)
            logprobs = None
        if event.finish_reason is not None:
            yield {**self._piece("", logprobs), "finish_reason": event.finish_reason}

    def whole(self, events: Sequence[GenerationEvent]) -> dict[str, Any]:
        """The choice of a whole answer."""
        events = [self._seen(event) for event in events]
        text = self._echo + "".join([event.text for event in events])
        entries = [entry for event in events for entry in event.logprobs]
        piece = self._piece(text, self._logprobs(entries, events[0].prompt))
        return {**piece, "finish_reason": events[-1].finish_reason}

    def _seen(self, event: GenerationEvent) -> GenerationEvent:
        """What its caller sees of an event."""
        if self._shown.answer:
            return event
        return replace(event, text="", logprobs=(), finish_reason=event.finish_reason and "length")

    def _piece(self, text: str, logprobs: dict[str, Any] | None) -> dict[str, Any]:
        return {"index": self._index, "text": text, "logprobs": logprobs, "finish_reason": None}

    def _logprobs(
        self, answer: Sequence[TokenLogprob], prompt: Sequence[TokenLogprob] = ()
    ) -> dict[str, Any] | None:
        """The shape of OpenAI's first API; offsets are those of the tokens in this answer's text."""
        entries = [*prompt, *answer]
        if not entries or not self._shown.logprobs:
            return None
        offsets = self._offsets_in_prompt(prompt) if prompt else []
        for entry in answer:
            offsets.append(len(self._spelled.decode("utf-8", "replace")))
            self._spelled += entry.piece
        likely: list[float | None] = [entry.logprob for entry in entries]
        top: list[dict[str, float] | None] = [
            {_spelling(top): top.logprob for top in entry.top} for entry in entries
        ]
        if prompt:  # nothing stands before its first token
            likely[0] = top[0] = None
        return {
            "tokens": [_spelling(entry) for entry in entries],
            "token_logprobs": likely,
            "top_logprobs": top,
            "text_offset": offsets,
        }

    def _offsets_in_prompt(self, prompt: Sequence[TokenLogprob]) -> list[int]:
        """Where its tokens are in what is echoed, which has neither control tokens nor an added space."""
        shown = self._shown.echo.encode()
        starts = []
        at = 0
        for entry in prompt:
            piece = entry.piece
            if at == 0 and not shown.startswith(piece):
                piece = piece.removeprefix(b" ")
            starts.append(len(shown[:at].decode("utf-8", "replace")))
            if shown.startswith(piece, at):
                at += len(piece)
        self._spelled = shown
        return starts


def token_logprobs(entries: Sequence[TokenLogprob]) -> list[dict[str, Any]]:
    """Tokens with their probabilities and candidates, as chat completions and responses have them."""
    return [{**_token(entry), "top_logprobs": [_token(top) for top in entry.top]} for entry in entries]


def _spelling(entry: TokenLogprob) -> str:
    return entry.piece.decode("utf-8", "replace")


def _token(entry: TokenLogprob) -> dict[str, Any]:
    # Part of a character has no spelling of its own; its bytes say what it is.
    return {"token": _spelling(entry), "logprob": entry.logprob, "bytes": list(entry.piece)}
