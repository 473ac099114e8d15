"""What an answer needs before it can be shaped: all of it, and what it took."""

from __future__ import annotations

from dataclasses import dataclass

from mecroute.engines.llama.engine import GenerationEvent, Usage
from mecroute.engines.llama.generation import Answers
from mecroute.engines.llama.logprobs import TokenLogprob
from mecroute.engines.llama.tool_calls import AnswerParts, ToolCall
from mecroute.errors import TierUnreachableError


@dataclass(frozen=True, slots=True)
class WholeAnswer:
    """An answer at its end.

    Attributes:
        parts: texts and calls in their order; neighbouring texts are one.
        last: its last event.
        usage: what it took.
        logprobs: of its tokens, where they were asked for.
    """

    parts: tuple[str | ToolCall, ...]
    last: GenerationEvent
    usage: Usage
    logprobs: tuple[TokenLogprob, ...] = ()

    @property
    def calls(self) -> tuple[ToolCall, ...]:
        """The functions it calls."""
        return tuple(part for part in self.parts if isinstance(part, ToolCall))

    @property
    def text(self) -> str:
        """All its text; without the white space around, where there are calls beside it."""
        text = "".join([part for part in self.parts if isinstance(part, str)])
        return text.strip() if self.calls else text


async def read_whole(generation: Answers) -> WholeAnswer:
    """Wait for a generation's end; cancels it when the waiting is.

    Raises:
        TierUnreachableError: the engine was closed, or the generation cancelled, before the end.
    """
    with generation:
        events = [event async for event in generation]
    if not events or events[-1].usage is None:
        raise TierUnreachableError(
            "the generation was cancelled before its end", hint="send the request again", retryable=True
        )
    reader = AnswerParts(generation.requests[0].functions)
    parts: list[str | ToolCall] = []
    texts: list[str] = []
    for event in events:
        for part in reader.take(event):
            if isinstance(part, str):
                texts.append(part)
                continue
            if texts:
                parts.append("".join(texts))
                texts = []
            parts.append(part)
    if texts:
        parts.append("".join(texts))
    logprobs = tuple(entry for event in events for entry in event.logprobs)
    return WholeAnswer(tuple(parts), events[-1], events[-1].usage, logprobs)
