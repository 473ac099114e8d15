"""Cheap signs that an answer is no good: refusals, broken JSON, repetition, nothing at all.

They are read from the text once it has been delivered, and the text is then forgotten.
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mecroute.numbers import finite

#: Openings of a refusal. Only the beginning of an answer is looked at: a text may quote such a phrase.
_CANNOT = r"(?:can['’]?t|cannot|am unable|am not able|unable|not able|won['’]?t|will not)"
_REFUSAL = re.compile(
    rf"^\W*(?:(?:i['’]?m|i am) (?:very |so |really |truly )?(?:sorry|afraid)\b[^.!?]{{0,80}}\b{_CANNOT}"
    rf"|(?:sorry|unfortunately|apologies|my apologies)\b[^.!?]{{0,60}}\bi {_CANNOT}"
    rf"|i(?:['’]m)? {_CANNOT} (?:to )?"
    r"(?:help|assist|provide|answer|comply|fulfil|do that|discuss|create|generate|engage|continue)"
    rf"|as an ai\b[^.!?]{{0,80}}\b(?:{_CANNOT}|don['’]?t))",
    re.I,
)
_OPENING_CHARS = 300
#: A text that deflate shrinks to less than this share repeats itself; English prose reaches 0.35 to 0.6.
_REPEATS_BELOW = 0.15
_REPEATS_FROM_CHARS = 400
_LOGPROBS_READ = 512


@dataclass(frozen=True, slots=True)
class Answer:
    """What there is to judge: an answer's text and how it ended. Kept in memory for a moment, never stored.

    Args:
        finish_reason: OpenAI's, of the first choice; None where unknown.
        logprobs: mean log-probability of the tokens; None where the request asked for none.
        response_format: as in the request.
        has_calls: whether it calls tools, and may then have no text.
    """

    text: str
    finish_reason: str | None = None
    logprobs: float | None = None
    response_format: Mapping[str, Any] | None = None
    has_calls: bool = False


@dataclass(frozen=True, slots=True)
class Signals:
    """What was found in one answer.

    Args:
        empty: no text and no tool call.
        truncated: it ran into `max_tokens` or the context's end.
        refused: it opens as refusals do.
        repetitive: it says the same over and over.
        invalid_json: JSON was asked for and this is none, or lacks what the schema requires.
        mean_logprob: mean natural log-probability per token; None where unknown.
    """

    empty: bool = False
    truncated: bool = False
    refused: bool = False
    repetitive: bool = False
    invalid_json: bool = False
    mean_logprob: float | None = None

    @property
    def bad(self) -> tuple[str, ...]:
        """The names of the bad signs. Being cut off is the caller's `max_tokens` and no fault."""
        names = ("empty", "refused", "repetitive", "invalid_json")
        return tuple(name for name in names if getattr(self, name))


def answer_of(body: Mapping[str, Any], request: Mapping[str, Any]) -> Answer | None:
    """The answer in a whole response of OpenAI's shape; None where there is none to judge (embeddings)."""
    choices = body.get("choices")
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], Mapping):
        return None
    choice = choices[0]
    message = choice.get("message")
    if isinstance(message, Mapping):
        text, calls = message.get("content"), bool(message.get("tool_calls") or message.get("function_call"))
    else:
        text, calls = choice.get("text"), False
    return Answer(
        text=text if isinstance(text, str) else "",
        finish_reason=choice.get("finish_reason"),
        logprobs=_mean_logprob(choice.get("logprobs")),
        response_format=request.get("response_format"),
        has_calls=calls,
    )


def signals(answer: Answer) -> Signals:
    """Look for bad signs. Takes tens of microseconds; never raises."""
    text = answer.text.strip()
    truncated = answer.finish_reason == "length"
    return Signals(
        empty=not text and not answer.has_calls,
        truncated=truncated,
        refused=_REFUSAL.match(text[:_OPENING_CHARS]) is not None,
        repetitive=_is_repetitive(text),
        # A JSON text that was cut off is broken for want of room, which `truncated` says already.
        invalid_json=not truncated and not answer.has_calls and _violates(text, answer.response_format),
        mean_logprob=answer.logprobs,
    )


def _is_repetitive(text: str) -> bool:
    if len(text) < _REPEATS_FROM_CHARS:
        return False
    raw = text[-4 * _REPEATS_FROM_CHARS :].encode()
    return len(zlib.compress(raw, 1)) < _REPEATS_BELOW * len(raw)


def _violates(text: str, response_format: Mapping[str, Any] | None) -> bool:
    """Whether a text is not what `response_format` asks for: JSON, of the schema's type and with its keys.

    Types and required members are checked to the bottom; value constraints (`pattern`, `minimum`) are not.
    """
    kind = response_format.get("type") if isinstance(response_format, Mapping) else None
    if response_format is None or kind not in ("json_object", "json_schema"):
        return False
    try:
        value = json.loads(text)
    except ValueError:
        return True
    if kind == "json_object":
        return not isinstance(value, dict)
    named = response_format.get("json_schema")
    schema = named.get("schema") if isinstance(named, Mapping) else None
    return isinstance(schema, Mapping) and not _conforms(value, schema, 0)


_TYPES: Mapping[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "number": (int, float),
    "integer": (int,),
    "boolean": (bool,),
    "null": (type(None),),
}
_DEEPEST = 32


def _conforms(value: Any, schema: Any, depth: int) -> bool:
    if not isinstance(schema, Mapping) or depth > _DEEPEST:
        return True
    if "enum" in schema and isinstance(schema["enum"], list) and value not in schema["enum"]:
        return False
    kinds = schema.get("type")
    if kinds is not None:
        names = kinds if isinstance(kinds, list) else [kinds]
        allowed = tuple(t for name in names for t in _TYPES.get(str(name), (object,)))
        # In Python a truth value is an integer as well; in JSON it is not.
        if not isinstance(value, allowed) or (isinstance(value, bool) and not {bool, object} & {*allowed}):
            return False
    if isinstance(value, dict):
        required, properties = schema.get("required"), schema.get("properties")
        if isinstance(required, list) and any(name not in value for name in required):
            return False
        properties = properties if isinstance(properties, Mapping) else {}
        if schema.get("additionalProperties") is False and not set(value) <= set(properties):
            return False
        return all(_conforms(item, properties.get(name), depth + 1) for name, item in value.items())
    if isinstance(value, list):
        return all(_conforms(item, schema.get("items"), depth + 1) for item in value)
    return True


def token_logprobs(logprobs: Any) -> list[float]:
    """The natural log-probability of each token, at most of the first 512, from a choice's `logprobs`."""
    if not isinstance(logprobs, Mapping):
        return []
    content = logprobs.get("content")
    if isinstance(content, list):  # chat
        found = [item.get("logprob") for item in content[:_LOGPROBS_READ] if isinstance(item, Mapping)]
    else:  # completions
        given = logprobs.get("token_logprobs")
        found = list(given[:_LOGPROBS_READ]) if isinstance(given, list) else []
    return [number for value in found if (number := finite(value)) is not None]


def _mean_logprob(logprobs: Any) -> float | None:
    values = token_logprobs(logprobs)
    return sum(values) / len(values) if values else None
