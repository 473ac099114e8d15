"""Classes of texts: the shape of an answer, and how a chat model is asked for one.

A trained classifier answers by itself. A chat model is asked for each text in a conversation of its own, in
which it can answer one of the labels and nothing else: our own engines keep to a grammar of the bare labels,
a cloud to a JSON schema. The JSON around a label takes more tokens than most labels.
"""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from mecroute.errors import NoClassError, UnknownLabelError
from mecroute.numbers import finite

if TYPE_CHECKING:
    from mecroute.tiers.base import Call, Tier
    from mecroute_registry.facts import Tier as TierName

#: Chat calls of one request that are under way at the same time.
_AT_ONCE = 4
#: JSON around the label, as tokens; a token stands for at least one byte of the label.
_FRAME_TOKENS = 24
_INSTRUCTIONS = (
    "Which class does the text belong to? Answer with the name of the class and nothing else.\n\nClasses:\n"
)
_CLOUD_INSTRUCTIONS = (
    'Say which class the text of the user belongs to. Answer with JSON: {"label": CLASS}. The classes: '
)


def texts_of(body: Mapping[str, Any]) -> list[str]:
    """The texts of a checked request."""
    given = body["input"]
    return [given] if isinstance(given, str) else list(given)


def places_of(labels: Sequence[str], wanted: Sequence[str] | None, model: str) -> list[int] | None:
    """Where the wanted labels stand among those of a classifier; None where all are wanted.

    Raises:
        UnknownLabelError: it has no such class.
    """
    if wanted is None:
        return None
    places = {label: at for at, label in enumerate(labels)}
    unknown = [label for label in wanted if label not in places]
    if unknown:
        raise UnknownLabelError(
            f"{model} has no class '{unknown[0]}'",
            hint=f"its classes: {shortened(labels)}",
            model=model,
        )
    return [places[label] for label in wanted]


def shortened(labels: Sequence[str], shown: int = 8) -> str:
    """Labels as a message names them: the first few."""
    more = f" and {len(labels) - shown} more" if len(labels) > shown else ""
    return ", ".join(f"'{label[:40]}'" for label in labels[:shown]) + more


def classify_answer(
    rows: Sequence[Sequence[float]],
    labels: Sequence[str],
    *,
    id: str,
    model: str,
    tokens: int,
    top_k: int | None,
) -> dict[str, Any]:
    """The answer of `/v1/classify`: vLLM's, and with each text `scores`: the labels by falling probability.

    Args:
        rows: the probabilities, [texts, labels].
        labels: the classes.
        id: of the answer.
        model: the reference of the model.
        tokens: prompt tokens read.
        top_k: labels in `scores` at most; None for all.
    """
    data = []
    for index, probs in enumerate(rows):
        order = sorted(range(len(labels)), key=lambda at: -probs[at])
        data.append(
            {
                "index": index,
                "label": labels[order[0]],
                "probs": list(probs),
                "num_classes": len(labels),
                "scores": [{"label": labels[at], "score": probs[at]} for at in order[:top_k]],
            }
        )
    usage = {"prompt_tokens": tokens, "completion_tokens": 0, "total_tokens": tokens}
    return _answer(id, model, data, usage)


def chat_calls(call: Call) -> list[Call]:
    """A call for classes as calls of a chat model, one for each text."""
    labels: list[str] = list(call.body["labels"])
    texts = texts_of(call.body)
    shared = {
        # Our own engines tell how likely each token was; of a cloud nobody knows whether it would refuse.
        **(
            {"response_format": {"type": "json_schema", "json_schema": _schema(labels)}}
            if call.target.tier == "cloud"
            else {"grammar": "root ::= " + " | ".join(map(_literal, labels)), "logprobs": True}
        ),
        "temperature": 0,
        "max_tokens": _FRAME_TOKENS + max(len(json.dumps(label)) for label in labels),
        **({"user": call.body["user"]} if call.body.get("user") else {}),
    }
    system = chat_instructions(labels, call.target.tier)
    return [
        replace(
            call,
            task="chat",
            body={"messages": [system, {"role": "user", "content": text}], **shared},
            request_id=call.request_id if len(texts) == 1 else f"{call.request_id}-{number}",
        )
        for number, text in enumerate(texts, 1)
    ]


def chat_instructions(labels: Sequence[str], tier: TierName) -> dict[str, str]:
    """The message that a chat model of a tier is given before each text."""
    if tier == "cloud":
        told = _CLOUD_INSTRUCTIONS + json.dumps(list(labels), ensure_ascii=False)
    else:
        told = _INSTRUCTIONS + "\n".join(f"- {label}" for label in labels)
    return {"role": "system", "content": told}


async def classify_in_chat(tier: Tier, call: Call) -> dict[str, Any]:
    """Ask a chat model for the class of each text.

    Returns:
        The answer of `/v1/classify`, without `probs`: `scores` holds the label alone, where the target tells
        how likely it was, which is then the product of what the model gave its tokens.

    Raises:
        NoClassError: it named none of the classes.
        MecrouteError: as `Tier.complete`.
    """
    room = asyncio.Semaphore(_AT_ONCE)

    async def ask(one: Call) -> dict[str, Any]:
        async with room:
            return await tier.complete(one)

    asked = [asyncio.ensure_future(ask(one)) for one in chat_calls(call)]
    try:
        bodies = await asyncio.gather(*asked)
    finally:
        for one in asked:
            one.cancel()  # where another one failed
        await asyncio.gather(*asked, return_exceptions=True)
    labels: list[str] = list(call.body["labels"])
    usage = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}
    data = []
    for index, body in enumerate(bodies):
        for name, count in (body.get("usage") or {}).items():
            if name in usage and isinstance(count, int):
                usage[name] += count
        label, score = _read(body, labels, call)
        scores = [] if score is None else [{"label": label, "score": score}]
        data.append({"index": index, "label": label, "num_classes": len(labels), "scores": scores})
    return _answer(call.request_id, call.target.model, data, usage)


def _literal(label: str) -> str:
    """A label in GBNF."""
    escapes = {"\\": "\\\\", '"': '\\"', "\n": "\\n", "\r": "\\r"}
    return '"' + "".join(escapes.get(char, char) for char in label) + '"'


def _schema(labels: Sequence[str]) -> dict[str, Any]:
    return {
        "name": "classification",
        "strict": True,
        "schema": {
            "type": "object",
            "properties": {"label": {"type": "string", "enum": list(labels)}},
            "required": ["label"],
            "additionalProperties": False,
        },
    }


def _read(body: Mapping[str, Any], labels: Sequence[str], call: Call) -> tuple[str, float | None]:
    """The label that an answer names, and how likely its tokens were."""
    choices = body.get("choices") or [{}]
    text = (choices[0].get("message") or {}).get("content") or ""
    if text in labels:
        return text, _probability(choices[0].get("logprobs"), text, text)
    try:
        said = json.loads(text)
    except (ValueError, RecursionError):
        said = text.strip()
    if isinstance(said, dict):
        said = said.get("label")
    label = said if isinstance(said, str) and said in labels else None
    if label is None and isinstance(said, str):
        # Of a cloud that does not keep to schemas.
        alike = [one for one in labels if one.casefold() == said.strip(" .\"'\n").casefold()]
        label = alike[0] if len(alike) == 1 else None
    if label is None:
        raise NoClassError(
            f"{call.target.id} was asked for one of {len(labels)} classes and answered {text[:80]!r}",
            hint="name a model that keeps to JSON schemas",
            tier=call.target.tier,
            model=call.target.model,
        )
    written = json.dumps(label, ensure_ascii=False)[1:-1]
    return label, _probability(choices[0].get("logprobs"), text, written)


def _probability(logprobs: object, text: str, written: str) -> float | None:
    """The product of the probabilities of the tokens that a label is written in; None where they are not
    told, or do not make up the answer. A token may be a part of a character, so that bytes are counted."""
    tokens = logprobs.get("content") if isinstance(logprobs, Mapping) else None
    begin = text.rfind(written)
    if not isinstance(tokens, list) or begin < 0:
        return None
    begin = len(text[:begin].encode())
    end, at, total = begin + len(written.encode()), 0, 0.0
    for token in tokens:
        size = _size(token) if isinstance(token, Mapping) else None
        value = finite(token.get("logprob")) if size is not None else None
        if size is None or value is None:
            return None
        if at < end and at + size > begin:
            total += min(0.0, value)
        at += size
    return math.exp(max(-700.0, total)) if at >= end else None


def _size(token: Mapping[str, Any]) -> int | None:
    """The bytes of a token; None where they are not told."""
    spelled, written = token.get("bytes"), token.get("token")
    if isinstance(spelled, list):
        return len(spelled)
    return len(written.encode("utf-8", "replace")) if isinstance(written, str) else None


def _answer(id: str, model: str, data: list[dict[str, Any]], usage: dict[str, int]) -> dict[str, Any]:
    return {
        "id": id,
        "object": "list",
        "created": int(time.time()),
        "model": model,
        "data": data,
        "usage": usage,
    }
