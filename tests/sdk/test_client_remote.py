"""The client against real HTTP servers that fail: failover, continuation, privacy, deadlines."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mecroute import AsyncClient, Client, Config
from mecroute.config import CloudConfig, DeviceConfig, NodeConfig, RegistryConfig, StateConfig
from mecroute.errors import (
    AllTargetsFailedError,
    DeadlineExceededError,
    InvalidRequestError,
    NoEligibleTargetError,
    OverloadedError,
    TierResponseError,
)
from support.upstream import WORDS, Upstream, upstream

HELLO = [{"role": "user", "content": "Tell me about the fox."}]
SENTENCE = "".join(WORDS)


def report(*models: dict[str, Any], **facts: Any) -> dict[str, Any]:
    ready = {
        "ref": "fox:1", "state": "ready", "context_length": 4096, "parallel": 4, "accuracy": 0.8,
        "prefill_tokens_per_s": 5000, "decode_tokens_per_s": 500,
    }  # fmt: skip
    return {"node": "n", "hardware": "test", "models": [ready | m for m in (models or ({},))], **facts}


@pytest.fixture
def mec() -> Iterator[Upstream]:
    with upstream(report=report()) as up:
        yield up


@pytest.fixture
def cloud() -> Iterator[Upstream]:
    with upstream() as up:
        yield up


def config(tmp_path: Path, mec: Upstream | None, cloud: Upstream | None, **cloud_facts: Any) -> Config:
    nodes = (NodeConfig(name="n1", url=mec.url, region="eu-1"),) if mec else ()
    facts = {"continues_prefix": True, "region": "us-1", "quality": 0.9, **cloud_facts}
    clouds = (CloudConfig(name="c1", base_url=f"{cloud.url}/v1", model="big", **facts),) if cloud else ()
    return Config(
        registry=RegistryConfig(path=tmp_path / "registry"),
        device=DeviceConfig(enabled=False),
        state=StateConfig(path=tmp_path / "state.sqlite3"),
        nodes=nodes,
        cloud=clouds,
    )


@pytest.fixture
def client(tmp_path: Path, mec: Upstream, cloud: Upstream) -> Iterator[Client]:
    with Client(config(tmp_path, mec, cloud)) as client:
        yield client


def read(stream: Any) -> str:
    return "".join(chunk.choices[0].delta.content or "" for chunk in stream)


def test_an_answer_says_where_it_came_from(client: Client) -> None:
    reply = client.chat.completions.create(model="auto", messages=HELLO)
    assert reply.choices[0].message.content == SENTENCE
    told = reply.mecroute
    assert (told.tier, told.node, told.model) == ("mec", "n1", "fox:1")
    assert told.outcome.output_tokens == len(WORDS)
    assert told.outcome.latency_ms > 0
    assert told.decision.primary is not None
    assert reply.id == told.request_id
    assert json.loads(json.dumps(told.to_dict()))["outcome"]["target_id"] == "mec/n1/fox:1"


def test_an_answers_message_goes_back_into_the_conversation_as_it_is(client: Client, mec: Upstream) -> None:
    first = client.chat.completions.create(model="auto", messages=HELLO)
    talk = [*HELLO, first.choices[0].message, {"role": "user", "content": "And then?"}]
    client.chat.completions.create(model="auto", messages=talk)
    assert mec.requests[-1]["messages"][1] == {"role": "assistant", "content": SENTENCE}


def test_a_stream_gives_openai_chunks_and_then_its_provenance(client: Client) -> None:
    stream = client.chat.completions.create(messages=HELLO, stream=True)
    chunks = list(stream)
    assert "".join(c.choices[0].delta.content or "" for c in chunks) == SENTENCE
    assert len({c.id for c in chunks}) == 1
    assert stream.mecroute is not None
    assert stream.mecroute.outcome.ttft_ms is not None
    assert stream.mecroute.segments[0].error is None


def test_a_dead_node_is_replaced_before_anything_was_said(
    client: Client, mec: Upstream, cloud: Upstream
) -> None:
    mec.status = 500
    reply = client.chat.completions.create(messages=HELLO)
    assert reply.mecroute.tier == "cloud"
    assert [s.tier for s in reply.mecroute.segments] == ["mec", "cloud"]
    assert "500" in (reply.mecroute.segments[0].error or "")


def test_a_stream_that_lost_its_tier_goes_on_from_what_was_delivered(
    client: Client, mec: Upstream, cloud: Upstream
) -> None:
    mec.break_after = 4
    stream = client.chat.completions.create(messages=HELLO, stream=True, max_tokens=50)
    assert read(stream) == SENTENCE
    told = stream.mecroute
    assert told is not None
    assert [(s.tier, s.seam) for s in told.segments] == [("mec", None), ("cloud", "exact")]
    assert told.segments[0].text_chars == len("".join(WORDS[:4]))
    asked = cloud.requests[0]
    assert asked["messages"][-1] == {"role": "assistant", "content": "".join(WORDS[:4])}
    assert asked["max_tokens"] == 46


def test_a_cloud_that_must_be_told_in_words_repeats_nothing(
    tmp_path: Path, mec: Upstream, cloud: Upstream
) -> None:
    mec.break_after = 4
    cloud.repeats = "brown fox "
    with Client(config(tmp_path, mec, cloud, continues_prefix=False)) as client:
        stream = client.chat.completions.create(messages=HELLO, stream=True)
        assert read(stream) == SENTENCE
    assert stream.mecroute is not None
    assert stream.mecroute.segments[1].seam == "instructed"
    assert cloud.requests[0]["messages"][-1]["role"] == "user"


@pytest.mark.parametrize("break_after", [4, len(WORDS), len(WORDS) + 2])
def test_several_answers_that_were_cut_off_are_an_error_and_not_mixed_up(
    client: Client, mec: Upstream, cloud: Upstream, break_after: int
) -> None:
    mec.break_after = break_after
    with pytest.raises(AllTargetsFailedError, match="mec/n1/fox:1"):
        list(client.chat.completions.create(messages=HELLO, stream=True, n=2))
    assert not cloud.requests


def test_several_answers_are_read_to_the_end_of_the_last(client: Client) -> None:
    found = ["", ""]
    for chunk in client.chat.completions.create(messages=HELLO, stream=True, n=2):
        found[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert found == [SENTENCE] * 2


def test_a_tool_call_that_was_cut_off_is_not_made_twice(
    client: Client, mec: Upstream, cloud: Upstream
) -> None:
    mec.calls, mec.break_after = True, 0
    tools = [{"type": "function", "function": {"name": "f"}}]
    with pytest.raises(AllTargetsFailedError, match="mec/n1/fox:1"):
        list(client.chat.completions.create(messages=HELLO, stream=True, tools=tools))
    assert not cloud.requests


def test_a_model_on_a_node_out_of_reach_is_out_of_reach(tmp_path: Path, cloud: Upstream) -> None:
    """And not a model or a task that the node would not have: what it has is not known."""
    with socket.create_server(("127.0.0.1", 0)) as held:
        port = held.getsockname()[1]
    gone = NodeConfig(name="gone", url=f"http://127.0.0.1:{port}")
    settings = config(tmp_path, None, cloud).model_copy(update={"nodes": (gone,)})
    with Client(settings) as client:
        for call in (
            lambda model: client.route(messages=HELLO, model=model),
            lambda model: client.route(input="x", labels=["a", "b"], model=model),
        ):
            for model in ("fox", "mec/fox:1", "mec"):
                told = {r.target.id: (r.reason, r.detail) for r in call(model).rejected}
                reason, detail = told["mec/gone/*"]
                assert reason == "unavailable"
                assert "cannot be reached (connection refused)" in detail
            assert {r.target.id: r.reason for r in call("cloud/big").rejected}["mec/gone/*"] == "model"
        with pytest.raises(NoEligibleTargetError, match="cannot be reached"):
            client.infer(model="fox", inputs=[{"name": "x", "shape": [1], "datatype": "FP32", "data": [1.0]}])


def test_losing_every_tier_names_each_of_them(client: Client, mec: Upstream, cloud: Upstream) -> None:
    mec.break_after, cloud.status = 2, 503
    stream = client.chat.completions.create(messages=HELLO, stream=True)
    with pytest.raises(AllTargetsFailedError, match=r"mec/n1/fox:1: .*cloud/c1/big: "):
        read(stream)


@pytest.mark.parametrize("privacy", ["edge", "device"])
def test_no_failure_carries_a_request_past_its_privacy_floor(
    client: Client, mec: Upstream, cloud: Upstream, privacy: str
) -> None:
    mec.break_after = 2
    with pytest.raises((AllTargetsFailedError, NoEligibleTargetError)):
        read(client.chat.completions.create(messages=HELLO, requirements={"privacy": privacy}, stream=True))
    mec.break_after, mec.status = None, 500
    with pytest.raises((AllTargetsFailedError, NoEligibleTargetError)):
        client.chat.completions.create(messages=HELLO, requirements={"privacy": privacy})
    assert cloud.requests == []


def test_no_failure_carries_a_request_out_of_its_region(
    client: Client, mec: Upstream, cloud: Upstream
) -> None:
    mec.status = 500
    with pytest.raises(AllTargetsFailedError):
        client.chat.completions.create(messages=HELLO, requirements={"residency": "eu"})
    assert cloud.requests == []


def test_a_remembered_answer_crosses_neither_users_nor_floors(
    client: Client, mec: Upstream, cloud: Upstream
) -> None:
    def ask(**options: Any) -> Any:
        return client.chat.completions.create(messages=HELLO, temperature=0, **options).mecroute.cache

    assert [ask(user="a"), ask(user="a"), ask(user="b")] == [None, "exact", None]
    assert ask(user="a", requirements={"privacy": "edge"}) == "exact"  # a node in eu-1 had answered
    assert ask(user="a", requirements={"residency": "eu"}) == "exact"
    for floor in ({"residency": "us"}, {"min_quality": 1.0}):
        with pytest.raises(NoEligibleTargetError):
            ask(user="a", model="mec/auto", requirements=floor)
    assert client.chat.completions.create(messages=HELLO).mecroute.cache is None  # it samples
    assert len(mec.requests) == 3

    assert ask(user="a", model="cloud/big") is None
    assert ask(user="a", model="cloud/big") == "exact"
    with pytest.raises(NoEligibleTargetError):
        ask(user="a", model="cloud/big", requirements={"residency": "eu"})
    for floor in ("edge", "device"):
        with pytest.raises(InvalidRequestError, match="contradict"):
            ask(user="a", model="cloud/big", requirements={"privacy": floor})
        with pytest.raises(NoEligibleTargetError):
            ask(user="a", model="big", requirements={"privacy": floor})
    assert len(cloud.requests) == 1


def test_the_deadline_holds_for_a_whole_answer_and_for_a_stream(
    client: Client, mec: Upstream, cloud: Upstream
) -> None:
    mec.delay_s = cloud.delay_s = 5  # a node whose report is late is passed over
    for stream in (False, True):
        with pytest.raises(DeadlineExceededError, match="400 ms"):
            client.chat.completions.create(messages=HELLO, stream=stream, requirements={"deadline_ms": 400})


def test_a_request_every_target_would_refuse_is_not_passed_round(
    client: Client, mec: Upstream, cloud: Upstream
) -> None:
    mec.status = 400
    with pytest.raises(InvalidRequestError, match="the fault a test asked for"):
        client.chat.completions.create(messages=HELLO)
    assert cloud.requests == []


def test_a_prompt_too_long_for_one_target_goes_to_the_next(client: Client, mec: Upstream) -> None:
    mec.status, mec.error_code = 400, "context_length_exceeded"
    assert client.chat.completions.create(messages=HELLO).mecroute.tier == "cloud"


def test_an_overloaded_node_and_nothing_else_says_when_to_come_back(tmp_path: Path, mec: Upstream) -> None:
    mec.status = 429
    with Client(config(tmp_path, mec, None)) as client, pytest.raises(AllTargetsFailedError) as caught:
        client.chat.completions.create(messages=HELLO)
    ((_, error),) = caught.value.attempts
    assert isinstance(error, OverloadedError)
    assert error.retry_after_s == 2
    assert caught.value.retryable


@pytest.mark.parametrize("garbage", [b"<html>", b"[]", b"\xff\xfe"])
def test_an_answer_that_is_no_answer_is_named(tmp_path: Path, mec: Upstream, garbage: bytes) -> None:
    mec.garbage = garbage
    with Client(config(tmp_path, mec, None)) as client, pytest.raises(AllTargetsFailedError) as caught:
        client.chat.completions.create(messages=HELLO)
    assert isinstance(caught.value.attempts[0][1], TierResponseError)


def test_an_answer_of_another_shape_is_named(tmp_path: Path, mec: Upstream) -> None:
    mec.garbage = b'{"choices": [{"index": 0}]}'
    with Client(config(tmp_path, mec, None)) as client, pytest.raises(TierResponseError, match="promises"):
        client.chat.completions.create(messages=HELLO)


def test_a_target_that_answers_in_another_shape_is_replaced(client: Client, mec: Upstream) -> None:
    mec.garbage = b'{"choices": 5}'
    reply = client.chat.completions.create(messages=HELLO)
    assert reply.mecroute.tier == "cloud"
    assert "'choices' is no list" in (reply.mecroute.segments[0].error or "")


def test_a_failing_target_rests_and_the_reason_is_shown(
    client: Client, mec: Upstream, cloud: Upstream
) -> None:
    mec.status = 500
    client.chat.completions.create(messages=HELLO)
    decision = client.route(messages=HELLO)
    assert [c.target.tier for c in decision.candidates] == ["cloud"]
    assert "next try in" in decision.rejected[0].detail


def test_a_report_that_lies_or_is_broken_takes_the_node_out_and_says_why(
    tmp_path: Path, mec: Upstream, cloud: Upstream
) -> None:
    mec.report = report({"decode_tokens_per_s": -5})
    with Client(config(tmp_path, mec, cloud)) as client:
        decision = client.route(messages=HELLO)
    assert decision.primary is not None
    assert decision.primary.target.tier == "cloud"
    assert "decode_tokens_per_s" in decision.rejected[0].detail


def test_without_any_target_the_error_says_what_to_configure(tmp_path: Path) -> None:
    with (
        Client(config(tmp_path, None, None)) as client,
        pytest.raises(NoEligibleTargetError, match="register"),
    ):
        client.chat.completions.create(messages=HELLO)


def test_an_unknown_model_lists_what_was_refused(client: Client) -> None:
    with pytest.raises(NoEligibleTargetError, match="models list"):
        client.chat.completions.create(model="llama-900b", messages=HELLO)


def test_leaving_a_stream_early_stops_the_upstream(client: Client, mec: Upstream) -> None:
    mec.words = ["word "] * 2000
    stream = client.chat.completions.create(messages=HELLO, stream=True)
    next(stream)
    stream.close()
    for _ in range(200):
        if mec.cancelled:
            break
        client.route(messages=HELLO)  # gives both event loops time
    assert mec.cancelled == 1
    assert stream.mecroute is not None
    assert stream.mecroute.outcome.error == "the caller stopped reading"


def test_embeddings_and_models(client: Client) -> None:
    vectors = client.embeddings.create(model="mec/fox", input=["a", "b"])
    assert [v.embedding for v in vectors.data] == [[0.6, 0.8], [0.6, 0.8]]
    assert vectors.mecroute.tier == "mec"
    models = {m.id: (m.tiers, m.heat) for m in client.models.list().data}
    assert models == {"fox:1": (("mec",), "hot"), "big": (("cloud",), "cold")}


def test_feedback_is_kept_for_answers_that_were_given(client: Client, tmp_path: Path) -> None:
    reply = client.chat.completions.create(messages=HELLO)
    client.feedback(reply.id, score=1.0)
    with pytest.raises(InvalidRequestError, match="no answer with the id"):
        client.feedback("req-unknown", score=1.0)
    with pytest.raises(InvalidRequestError, match="from 0 to 1"):
        client.feedback(reply.id, score=2)


def test_api_key_and_request_id_are_sent(tmp_path: Path, mec: Upstream, monkeypatch) -> None:
    monkeypatch.setenv("NODE_KEY", "secret-key")
    settings = config(tmp_path, mec, None)
    node = NodeConfig(name="n1", url=mec.url, api_key_env="NODE_KEY")
    with Client(settings.model_copy(update={"nodes": (node,)})) as client:
        reply = client.chat.completions.create(messages=HELLO)
    assert mec.headers[0]["authorization"] == "Bearer secret-key"
    assert mec.headers[0]["x-request-id"] == reply.id


def test_the_async_client_is_the_same_with_await(tmp_path: Path, mec: Upstream, cloud: Upstream) -> None:
    async def run() -> None:
        async with AsyncClient(config(tmp_path, mec, cloud)) as client:
            replies = await asyncio.gather(
                *(client.chat.completions.create(messages=HELLO) for _ in range(20))
            )
            assert {r.choices[0].message.content for r in replies} == {SENTENCE}
            stream = await client.chat.completions.create(messages=HELLO, stream=True)
            text = [c.choices[0].delta.content or "" async for c in stream]
            assert "".join(text) == SENTENCE
            assert stream.mecroute is not None

    asyncio.run(run())
