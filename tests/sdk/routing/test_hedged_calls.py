"""Hedges against real servers that are late: the faster answers, the other stops, and no floor is passed."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mecroute import Client, Config
from mecroute.config import CloudConfig, DeviceConfig, NodeConfig, RegistryConfig, RouterConfig, StateConfig
from mecroute.errors import AllTargetsFailedError, DeadlineExceededError
from support.upstream import WORDS, Upstream, upstream

HELLO = [{"role": "user", "content": "Tell me about the fox."}]
SENTENCE = "".join(WORDS)


def report(accuracy: float) -> dict[str, Any]:
    model = {
        "ref": "fox:1", "state": "ready", "context_length": 4096, "parallel": 4, "accuracy": accuracy,
        "prefill_tokens_per_s": 50_000, "decode_tokens_per_s": 50_000,
    }  # fmt: skip
    return {"node": "n", "hardware": "test", "models": [model]}


@pytest.fixture
def first() -> Iterator[Upstream]:
    with upstream(report=report(0.95)) as up:
        yield up


@pytest.fixture
def second() -> Iterator[Upstream]:
    with upstream(report=report(0.2)) as up:
        yield up


def config(tmp_path: Path, *ups: Upstream, cloud: Upstream | None = None, **router: Any) -> Config:
    return Config(
        registry=RegistryConfig(path=tmp_path / "registry"),
        device=DeviceConfig(enabled=False),
        state=StateConfig(path=tmp_path / "state.sqlite3"),
        router=RouterConfig(**{"hedge_budget": 1, "tie_margin": 0, "policy": "quality-first"} | router),
        nodes=tuple(NodeConfig(name=f"n{i}", url=up.url, region="eu-1") for i, up in enumerate(ups, 1)),
        cloud=(CloudConfig(name="c1", base_url=f"{cloud.url}/v1", model="big", region="us-1"),)
        if cloud
        else (),
    )


@pytest.fixture
def client(tmp_path: Path, first: Upstream, second: Upstream) -> Iterator[Client]:
    with Client(config(tmp_path, first, second)) as client:
        client.chat.completions.create(messages=HELLO)  # connections are open from here on
        first.requests.clear()
        second.requests.clear()
        yield client


def read(stream: Any) -> str:
    return "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)


def ask(client: Client, *, stream: bool = False, **options: Any) -> tuple[str, Any]:
    answer = client.chat.completions.create(messages=HELLO, stream=stream, **options)
    text = read(answer) if stream else answer.choices[0].message.content
    assert answer.mecroute is not None
    return text, answer.mecroute


@pytest.mark.parametrize("stream", [False, True])
def test_a_late_primary_is_overtaken_and_told_to_stop(
    client: Client, first: Upstream, second: Upstream, stream: bool
) -> None:
    first.delay_s = 20
    begun = time.monotonic()
    text, told = ask(client, stream=stream)
    assert text == SENTENCE
    assert time.monotonic() - begun < 10
    late, hedge = told.segments
    assert (late.target_id, late.overtaken_by, late.error) == ("mec/n1/fox:1", "mec/n2/fox:1", None)
    assert (hedge.target_id, hedge.hedge, hedge.error) == ("mec/n2/fox:1", True, None)
    assert hedge.begun_ms >= told.decision.hedge_after_ms > 0
    assert told.node == "n2"
    assert told.outcome.target_id == "mec/n2/fox:1"
    # Being late is no failure: the target does not rest.
    assert client.route(messages=HELLO).primary.target.node in ("n1", "n2")
    assert not client.route(messages=HELLO).rejected


@pytest.mark.parametrize("stream", [False, True])
def test_a_primary_in_time_is_not_hedged(
    client: Client, first: Upstream, second: Upstream, stream: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mecroute.routing.hedging._LEAST_DELAY_MS", 30_000)
    text, told = ask(client, stream=stream)
    assert text == SENTENCE
    assert told.decision.hedge_after_ms == 30_000
    assert [s.target_id for s in told.segments] == ["mec/n1/fox:1"]
    assert second.requests == []


@pytest.mark.parametrize("stream", [False, True])
def test_a_hedge_that_fails_leaves_the_primary_alone(
    client: Client, first: Upstream, second: Upstream, stream: bool
) -> None:
    for status in (500, 400):
        first.delay_s, second.status = 1.0, status
        text, told = ask(client, stream=stream)
        assert text == SENTENCE
        assert told.node == "n1"
        assert [s.target_id for s in told.segments if s.overtaken_by is None and s.error is None] == [
            "mec/n1/fox:1"
        ]


@pytest.mark.parametrize("stream", [False, True])
def test_when_both_fail_both_are_named_once(
    client: Client, first: Upstream, second: Upstream, stream: bool
) -> None:
    first.delay_s, first.status, second.status = 0.5, 500, 500
    with pytest.raises(AllTargetsFailedError) as caught:
        ask(client, stream=stream)
    assert sorted(target for target, _ in caught.value.attempts) == ["mec/n1/fox:1", "mec/n2/fox:1"]


def test_a_stream_whose_hedge_won_and_broke_goes_on_at_the_first(
    client: Client, first: Upstream, second: Upstream
) -> None:
    first.delay_s, second.break_after = 2.5, 4
    text, told = ask(client, stream=True, max_tokens=50)
    assert text == SENTENCE
    assert [s.target_id for s in told.segments] == ["mec/n1/fox:1", "mec/n2/fox:1", "mec/n1/fox:1"]
    assert told.segments[2].seam == "exact"


@pytest.mark.parametrize("requirements", [{"privacy": "edge"}, {"residency": "eu"}, {"policy": "private"}])
@pytest.mark.parametrize("stream", [False, True])
def test_no_hedge_passes_a_privacy_floor_or_leaves_the_region(
    tmp_path: Path, first: Upstream, second: Upstream, stream: bool, requirements: dict[str, str]
) -> None:
    first.delay_s = 0.4
    with Client(config(tmp_path, first, cloud=second, hedge="always")) as client:
        _, told = ask(client, stream=stream, requirements=requirements)
        assert told.decision.hedge_after_ms is None
        assert [s.tier for s in told.segments] == ["mec"]
    assert second.requests == []


def test_a_paid_answer_that_was_given_up_is_in_the_cost(
    tmp_path: Path, first: Upstream, second: Upstream
) -> None:
    settings = config(tmp_path, first, second, hedge="always")
    dear = settings.nodes[0].model_copy(update={"input_usd_per_mtok": 5, "output_usd_per_mtok": 5})
    with Client(settings.model_copy(update={"nodes": (dear, settings.nodes[1])})) as client:
        first.delay_s = 20
        _, told = ask(client)
    assert told.node == "n2"
    assert told.outcome.cost_usd == pytest.approx(told.decision.candidates[0].cost_usd)
    assert told.outcome.cost_usd > 0


def test_hedges_stay_within_their_budget(tmp_path: Path, first: Upstream, second: Upstream) -> None:
    first.delay_s = 0.3
    with Client(config(tmp_path, first, second, hedge_budget=0.05, sticky_margin=0)) as client:
        for _ in range(12):
            ask(client)
    assert len(second.requests) <= 1


def test_the_deadline_ends_both(client: Client, first: Upstream, second: Upstream) -> None:
    first.delay_s = second.delay_s = 20
    for stream in (False, True):
        with pytest.raises(DeadlineExceededError):
            ask(client, stream=stream, requirements={"deadline_ms": 1500})
    assert client.route(messages=HELLO).primary is not None


def test_leaving_a_hedged_stream_stops_the_winner_too(
    client: Client, first: Upstream, second: Upstream
) -> None:
    first.delay_s, second.words = 20, ["word "] * 2000
    stream = client.chat.completions.create(messages=HELLO, stream=True)
    next(stream)
    stream.close()
    for _ in range(200):
        if second.cancelled:
            break
        client.route(messages=HELLO)
    assert second.cancelled == 1
    assert stream.mecroute is not None
    assert stream.mecroute.outcome.error == "the caller stopped reading"
