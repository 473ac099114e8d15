"""When two requests are the same, and when they differ only in one text that may mean the same."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mecroute.request import Request

#: Longer texts are seldom asked in other words, and a similarity of theirs says little of their details.
MAX_SEMANTIC_CHARS = 2000
_NUMBER = re.compile(r"\d+(?:[.,:/-]\d+)*")
_QUOTED = re.compile(r"`([^`]*)`|\"([^\"]*)\"|“([^”]*)”")
#: In words whose similarity is high and whose meaning is opposite.
_NEGATION = re.compile(
    r"\b(?:not|no|never|without|cannot|none|nor|nicht|kein\w*|nie|ohne|ne|pas|jamais|sans|sin|nunca)\b|n['’]t\b",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class CacheKey:
    """What a request is remembered by.

    Args:
        exact: of the whole request and whose it is.
        frame: of everything but the text of the question; None where a similar question will not do.
        text: that text.
    """

    exact: str
    frame: str | None
    text: str


def cache_key(request: Request) -> CacheKey | None:
    """The key of a request; None where its answer must not be remembered.

    Only what would come out the same again is: embeddings, and requests at temperature 0. Where the caller
    states `cache` among the requirements, an answer that was sampled will do as well. Answers belong to one
    user, app and API key unless they are marked `shared`.
    """
    asked = request.requirements.cache
    if asked == "off" or (asked is None and not _is_deterministic(request)):
        return None
    body = {name: value for name, value in request.body.items() if name != "user"}
    whose: dict[str, Any] = {"shared": asked == "shared"}
    if asked != "shared":
        whose |= {"user": request.user, "app": request.app, "key": request.key}
    whole = {"task": request.task, "model": request.model.text, "body": body, **whose}
    exact = _digest(whole)
    without, text = _without_question(request.task, body)
    if without is None or not text.strip() or len(text) > MAX_SEMANTIC_CHARS:
        return CacheKey(exact, None, "")
    frame = _digest({**whole, "body": without, "signature": signature(text)})
    return CacheKey(exact, frame, text)


def signature(text: str) -> tuple[tuple[str, ...], ...]:
    """What two texts must have in common to mean the same, however similar they are: the numbers in them,
    what they quote, and how often they negate."""
    numbers = sorted(_NUMBER.findall(text))
    quoted = sorted(next(filter(None, groups), "") for groups in _QUOTED.findall(text))
    return tuple(numbers), tuple(quoted), ("not",) * len(_NEGATION.findall(text))


def _is_deterministic(request: Request) -> bool:
    if request.task in ("embed", "classify", "infer"):
        return True
    temperature = request.body.get("temperature")
    return isinstance(temperature, int | float) and temperature == 0


def _without_question(task: str, body: Mapping[str, Any]) -> tuple[dict[str, Any] | None, str]:
    """The body without the text that is asked, and that text; None where it is not one plain text."""
    if task == "completion":
        prompt = body.get("prompt")
        return ({**body, "prompt": None}, prompt) if isinstance(prompt, str) else (None, "")
    messages = body.get("messages")
    if task != "chat" or not isinstance(messages, Sequence) or not messages:
        return None, ""
    last = messages[-1]
    if last.get("role") != "user" or not isinstance(last.get("content"), str):
        return None, ""
    return {**body, "messages": [*messages[:-1], {**last, "content": None}]}, last["content"]


def _digest(value: Any) -> str:
    canonical = json.dumps(value, sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(canonical.encode()).hexdigest()
