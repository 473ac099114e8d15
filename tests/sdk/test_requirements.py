"""Requirements and requests: what is accepted, and how what is not is named."""

from __future__ import annotations

import math

import pytest

from mecroute.errors import InvalidRequestError
from mecroute.request import ModelSelector, ingest
from mecroute.requirements import Requirements

HELLO = [{"role": "user", "content": "Hello"}]


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"max_latency_ms": 0}, "max_latency_ms"),
        ({"max_latency_ms": math.nan}, "max_latency_ms"),
        ({"min_quality": 1.1}, "min_quality"),
        ({"max_cost_usd": -1}, "max_cost_usd"),
        ({"deadline_ms": "soon"}, "deadline_ms"),
        ({"deadline_ms": True}, "deadline_ms"),
        ({"privacy": "none"}, "privacy"),
        ({"residency": ""}, "residency"),
        ({"max_latency": 5}, "max_latency"),
    ],
)
def test_a_bad_requirement_is_named(given: dict[str, object], named: str) -> None:
    with pytest.raises(InvalidRequestError, match=f"requirements.{named}"):
        Requirements.parse(given)


def test_privacy_floors_admit_only_nearer_tiers() -> None:
    allowed = {
        floor: {tier for tier in ("device", "mec", "cloud") if Requirements(privacy=floor).allows_tier(tier)}
        for floor in ("device", "edge", "any")
    }
    assert allowed == {"device": {"device"}, "edge": {"device", "mec"}, "any": {"device", "mec", "cloud"}}


@pytest.mark.parametrize(
    ("tier", "region", "allowed"),
    [
        ("device", None, True),
        ("mec", "eu-central-1", True),
        ("mec", "eu", True),
        ("mec", "europa", False),
        ("cloud", "us-east-1", False),
        ("cloud", None, False),
    ],
)
def test_residency_admits_its_own_region_and_never_an_unknown_one(tier, region, allowed) -> None:
    assert Requirements(residency="eu").allows_region(tier, region) is allowed


@pytest.mark.parametrize(
    ("text", "tier", "ref", "admitted"),
    [
        ("auto", "cloud", "anything", True),
        ("smollm2", "device", "smollm2:q4_0", True),
        ("smollm2:q8_0", "device", "smollm2:q4_0", False),
        ("mec/smollm2", "device", "smollm2:q4_0", False),
        ("mec/smollm2", "mec", "smollm2:q4_0", True),
        ("mec/auto", "mec", "other:1", True),
        ("device", "device", "other:1", True),
        ("acme/smollm2:q8_0", "mec", "acme/smollm2:q8_0", True),
        ("cloud/GPT-5 (big)", "cloud", "GPT-5 (big)", True),
    ],
)
def test_model_selectors(text: str, tier, ref: str, admitted: bool) -> None:
    assert ModelSelector.parse(text).admits(tier, ref) is admitted


@pytest.mark.parametrize(
    ("body", "named"),
    [
        ({"messages": []}, "messages is empty"),
        ({"messages": None}, "messages must be a list"),
        ({"messages": "hello"}, "messages must be a list"),
        ({"messages": ["hello"]}, r"messages\[0\] must be an object"),
        ({"messages": [{"content": "x"}]}, r"messages\[0\].role"),
        ({"messages": [*HELLO, {"role": "user", "content": 5}]}, r"messages\[1\].content"),
        ({"messages": HELLO, "max_tokens": 0}, "max_tokens"),
        ({"messages": HELLO, "max_tokens": "many"}, "max_tokens"),
    ],
)
def test_a_malformed_chat_request_is_named(body: dict[str, object], named: str) -> None:
    with pytest.raises(InvalidRequestError, match=named):
        ingest("chat", model="auto", body=body)


@pytest.mark.parametrize("model", ["", None, 5])
def test_a_model_must_be_a_text(model: object) -> None:
    with pytest.raises(InvalidRequestError, match="model must be a text"):
        ingest("chat", model=model, body={"messages": HELLO})


@pytest.mark.parametrize("given", [[], "", [""], [5], None])
def test_embedding_input_must_be_texts(given: object) -> None:
    with pytest.raises(InvalidRequestError, match="input must be"):
        ingest("embed", model="auto", body={"input": given})
