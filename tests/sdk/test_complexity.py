"""Request features: harder requests score higher, and sizes are estimated sensibly."""

from __future__ import annotations

import pytest

from mecroute.predict.complexity import estimate_tokens, request_features
from mecroute.predict.kind import request_kind
from mecroute.request import ingest


def features(text: str, **body):
    return request_features(
        ingest("chat", model="auto", body={"messages": [{"role": "user", "content": text}], **body})
    )


EASY = ["What is the capital of France?", "Hi!", "Is water wet? Answer yes or no."]
HARD = [
    "Prove step by step that the square root of 2 is irrational, and justify each deduction.",
    "Compare three database designs for this workload, analyse the trade-offs, and plan a migration:\n"
    "- zero downtime\n- under 5 ms p95\n- no data loss",
    "Implement the algorithm below in Rust, then derive its complexity.\n```python\ndef f(n): ...\n```",
]


@pytest.mark.parametrize("easy", EASY)
@pytest.mark.parametrize("hard", HARD)
def test_hard_requests_score_above_easy_ones(easy: str, hard: str) -> None:
    assert features(easy).complexity + 0.2 < features(hard).complexity
    assert features(hard).reasons


def test_requests_with_the_same_instructions_are_of_one_kind() -> None:
    def kind(*messages: tuple[str, str], **more: object) -> str | None:
        told = [{"role": role, "content": content} for role, content in messages]
        return request_kind(ingest("chat", model="auto", body={"messages": told, **more}))

    assert kind(("user", "What is tea?")) is None
    triage = kind(("system", "Sort this ticket."), ("user", "It is broken."))
    assert triage is not None
    assert triage == kind(("system", "Sort this ticket."), ("user", "Where is my parcel?"))
    assert triage != kind(("system", "Translate."), ("user", "It is broken."))
    assert "Sort" not in triage
    assert kind(("user", "What is tea?"), app="atlas") != kind(("user", "What is tea?"), app="other")


def test_classes_that_are_named_make_a_kind() -> None:
    def kind(**body: object) -> str | None:
        return request_kind(ingest("classify", model="auto", body={"input": "a text", **body}))

    assert kind(labels=["yes", "no"]) == kind(labels=["yes", "no"])
    assert kind(labels=["yes", "no"]) != kind(labels=["yes", "no", "perhaps"])
    assert kind() == "classify"
    assert request_kind(ingest("embed", model="auto", body={"input": "a text"})) is None


def test_complexity_stays_within_its_range() -> None:
    assert 0 <= features("x").complexity <= features("\n".join(HARD) * 50).complexity <= 1


def test_the_output_estimate_respects_the_callers_limit() -> None:
    assert features("Write a long report in detail.", max_tokens=7).output_tokens == 7
    assert features("What is the capital of France?").output_tokens < 40


def test_tokens_are_estimated_by_script() -> None:
    assert estimate_tokens("a" * 400) == 100
    assert estimate_tokens("漢字" * 50) == 100
    assert estimate_tokens("") == 1
    assert estimate_tokens("a" * 300, "de") == 100
    assert estimate_tokens("漢字" * 50, "zh") == 100
    english, german = (
        "The harbour bridge is closed because of wind.",
        "Die Brücke ist wegen des Windes gesperrt.",
    )
    assert features(english).prompt_tokens < features(german).prompt_tokens


def test_what_stands_after_a_gap_is_read_as_well() -> None:
    def tokens(**body: str) -> int:
        return request_features(ingest("completion", model="auto", body=body)).prompt_tokens

    code = "def f(x):\n"
    assert tokens(prompt=code, suffix="    return x\n" * 50) == tokens(prompt=code + "    return x\n" * 50)


def test_needs_are_read_from_the_body() -> None:
    image = [{"type": "image_url", "image_url": {"url": "data:"}}]
    body = {"tools": [{}], "n": 2, "logprobs": True, "response_format": {"type": "json_schema"}}
    got = request_features(
        ingest("chat", model="auto", body={"messages": [{"role": "user", "content": image}], **body})
    )
    assert got.needs == {"tools", "several_choices", "logprobs", "json_schema", "images"}
