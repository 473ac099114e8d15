"""Finds calls of functions in what a model writes, whole or piece by piece."""

from __future__ import annotations

import json
import secrets
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mecroute.engines.llama.tool_prompt import CALL_BEGIN, CALL_END

if TYPE_CHECKING:
    from mecroute.engines.llama.generation import GenerationEvent


def _new_id() -> str:
    return f"call_{secrets.token_hex(12)}"


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A function that the model wants to be called.

    Attributes:
        name: of a function it was told of.
        arguments: a JSON object as text.
        id: names the call in the message that brings its result.
    """

    name: str
    arguments: str
    id: str = field(default_factory=_new_id)


class ToolCallParser:
    """Tells text from calls. Both notations of small models are read: `<tool_call>{…}</tool_call>` anywhere,
    and an answer that is nothing but `{"name": …, "arguments": {…}}` or a list of these.

    What looks like a call and is none (another function's name, broken JSON) is text. Text that may yet
    become a call is held back.

    Args:
        names: the functions there are.

    Not thread-safe.
    """

    def __init__(self, names: Collection[str]) -> None:
        self._names = names
        self._held = ""
        self._state = "start"

    def feed(self, text: str) -> list[str | ToolCall]:
        """Add text.

        Returns:
            Texts and calls that are certain now, in their order.
        """
        self._held += text
        found: list[str | ToolCall] = []
        while self._advance(found):
            pass
        return found

    def _advance(self, found: list[str | ToolCall]) -> bool:
        """Decide about the beginning of what is held; False if more is needed."""
        if self._state == "start":
            begun = self._held.lstrip()
            if not begun:
                return False
            self._state = "json" if begun[0] in "{[" else "text"
            return True
        if self._state == "text":
            return self._advance_text(found)
        if self._state == "call":
            inner, end, rest = self._held.partition(CALL_END)
            if not end:
                return False
            found += _calls(inner, self._names) or [CALL_BEGIN + inner + CALL_END]
            self._held, self._state = rest, "text"
            return bool(rest)
        return False

    def _advance_text(self, found: list[str | ToolCall]) -> bool:
        text, begin, rest = self._held.partition(CALL_BEGIN)
        if begin:
            # Line breaks around calls are part of the notation.
            if text.strip():
                found.append(text)
            self._held, self._state = rest, "call"
            return True
        certain = len(text) - _overlap(text, CALL_BEGIN)
        certain = len(text[:certain].rstrip())  # white space may be the line break before a call
        if certain:
            found.append(text[:certain])
            self._held = text[certain:]
        return False

    def finish(self) -> list[str | ToolCall]:
        """End the answer; what was held back."""
        held, self._held = self._held, ""
        if self._state == "json":
            return [*_calls(held, self._names)] or [held]
        if self._state == "call":
            # The model may end its turn right after the JSON.
            return [*_calls(held, self._names)] or [CALL_BEGIN + held]
        return [held] if held.strip() else []


class AnswerParts:
    """The texts of an answer and the calls in it, event by event.

    Args:
        functions: what may be called; none of them: everything is text.

    Not thread-safe.
    """

    def __init__(self, functions: Collection[str]) -> None:
        self._parser = ToolCallParser(functions) if functions else None

    def take(self, event: GenerationEvent) -> list[str | ToolCall]:
        """What is certain with this event, in its order; no text is empty."""
        if self._parser is None:
            return [event.text] if event.text else []
        parts = self._parser.feed(event.text)
        if event.finish_reason is not None:
            parts += self._parser.finish()
        return [part for part in parts if part]


def _overlap(text: str, marker: str) -> int:
    """How many characters at the end of a text may be the beginning of a marker."""
    for length in range(min(len(marker) - 1, len(text)), 0, -1):
        if text.endswith(marker[:length]):
            return length
    return 0


def _calls(text: str, names: Collection[str]) -> list[ToolCall]:
    """The calls a JSON text consists of; none if any of it is something else."""
    try:
        value = json.loads(text)
        calls = [_call(item, names) for item in (value if isinstance(value, list) else [value])]
    except (ValueError, RecursionError):
        return []
    return [call for call in calls if call is not None] if None not in calls else []


def _call(value: Any, names: Collection[str]) -> ToolCall | None:
    if not isinstance(value, Mapping) or value.get("name") not in names:
        return None
    # Llama 3 calls them parameters.
    arguments = value.get("arguments", value.get("parameters", {}))
    if not isinstance(arguments, Mapping):
        return None
    spelled = json.dumps(arguments, ensure_ascii=False)
    try:
        spelled.encode()
    except UnicodeEncodeError:  # half a character, which only an escape can write
        spelled = json.dumps(arguments)
    return ToolCall(value["name"], spelled)
