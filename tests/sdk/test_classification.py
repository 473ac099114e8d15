"""How likely a label was, from the tokens that a chat model wrote; and what a classifier's answer shows."""

from __future__ import annotations

import asyncio
import math
from typing import Any

import pytest

from mecroute.cascade.marks import marks_of_classes
from mecroute.classification import classify_in_chat
from mecroute.target import Target
from mecroute.tiers.base import Call


class Chat:
    """A tier whose model always says the same."""

    def __init__(self, text: str, logprobs: Any) -> None:
        self._choice = {"message": {"content": text}, "logprobs": logprobs}

    async def complete(self, call: Call) -> dict[str, Any]:  # noqa: ARG002 - whatever is asked
        return {"choices": [self._choice]}


def score(text: str, logprobs: Any) -> float | None:
    body = {"input": "x", "labels": ["größer", "blue", "a/b"]}
    call = Call("classify", Target("mec", "m", node="n"), body, request_id="r")
    tier: Any = Chat(text, logprobs)
    (item,) = asyncio.run(classify_in_chat(tier, call))["data"]
    return item["scores"][0]["score"] if item["scores"] else None


def token(piece: bytes, logprob: Any) -> dict[str, Any]:
    return {"token": piece.decode("utf-8", "replace"), "bytes": list(piece), "logprob": logprob}


def told(*tokens: dict[str, Any]) -> dict[str, Any]:
    return {"content": list(tokens)}


def test_tokens_that_are_parts_of_a_character_are_counted_by_their_bytes() -> None:
    encoded = "größer".encode()
    one_by_one = told(*(token(encoded[at : at + 1], -0.1) for at in range(len(encoded))))
    assert score("größer", one_by_one) == pytest.approx(math.exp(-0.8))


def test_only_the_tokens_of_the_label_count_and_they_must_make_it_up() -> None:
    tokens = [token(b'{"label": "', -5.0), token(b"bl", -0.2), token(b'ue"', -0.3), token(b"}", -7.0)]
    assert score('{"label": "blue"}', told(*tokens)) == pytest.approx(math.exp(-0.5))
    assert score('{"label": "blue"}', told(*tokens[:2])) is None
    without_bytes = [{name: one[name] for name in ("token", "logprob")} for one in tokens]
    assert score('{"label": "blue"}', told(*without_bytes)) == pytest.approx(math.exp(-0.5))


def test_an_odd_probability_is_none() -> None:
    for odd in (None, "x", math.nan, math.inf, -math.inf, -(10**400), True, [], {}):
        assert score("blue", told(token(b"blue", odd))) is None, odd


def test_an_answer_of_another_shape_cannot_be_judged() -> None:
    for odd in (None, 5, "x", {}, [], [None], [{}], 10**400, [10**400], [math.nan], ["x"]):
        for item in ({"probs": odd}, {"scores": odd}, {"scores": [{"score": odd}]}, odd):
            assert marks_of_classes({"data": [item]}).bad, item
    sound = [{"probs": [0.2, 0.8]}, {"scores": [{"score": 0.7}]}]
    assert marks_of_classes({"data": sound}).probability == 0.7
