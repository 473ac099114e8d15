"""The cache agent: whose answer may be given to whom, when, and what means the same."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mecroute import Client, Config
from mecroute.agents.cache import CacheAgent, open_similar
from mecroute.caching.answers import Answers, Remembered
from mecroute.caching.calibration import Calibration, save_calibration
from mecroute.caching.disk import AnswerDisk
from mecroute.caching.keys import cache_key
from mecroute.caching.similar import SimilarQuestions
from mecroute.config import CacheConfig, CloudConfig, DeviceConfig, NodeConfig, RegistryConfig, StateConfig
from mecroute.errors import InvalidRequestError
from mecroute.request import Request, ingest
from mecroute.requirements import Requirements
from support.answered import answered_by
from support.upstream import Upstream, upstream

BODY = {"object": "chat.completion", "choices": [{"message": {"content": "four"}}]}
QUESTION = "What is the capital of France?"


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def ask(
    text: str = QUESTION, *, system: str | None = None, temperature: float | None = 0, **facts: Any
) -> Request:
    requirements = facts.pop("requirements", None)
    messages = [{"role": "system", "content": system}] if system else []
    body = {"messages": [*messages, {"role": "user", "content": text}], "temperature": temperature, **facts}
    return ingest("chat", model="auto", body=body, requirements=requirements)


def remember(agent: CacheAgent, request: Request, **facts: Any) -> None:
    agent.remember(request, BODY, answered_by(request, **facts))


@pytest.mark.parametrize(
    ("first", "second", "hit"),
    [
        (ask(), ask(), True),
        (ask(user="a"), ask(user="a"), True),
        (ask(user="a"), ask(user="b"), False),
        (ask(user="a"), ask(), False),
        (ask(), ask("What is the capital of Spain?"), False),
        (ask(), ask(system="Answer in verse."), False),
        (ask(), ask(max_tokens=5), False),
        (ask(key="k1"), ask(key="k1"), True),
        (ask(key="k1"), ask(key="k2"), False),
        (ask(app="a"), ask(app="b"), False),
        (ask(key="k1", requirements={"cache": "shared"}), ask(requirements={"cache": "shared"}), True),
        (ask(temperature=0.7), ask(temperature=0.7), False),
        (ask(temperature=None), ask(temperature=None), False),
        (ask(temperature=0.7, requirements={"cache": "private"}), ask(temperature=0.7), False),
        (ask(), ask(requirements={"cache": "off"}), False),
        (ask(requirements={"cache": "off"}), ask(), False),
        (ask(), ask(requirements={"deadline_ms": 5}), True),
    ],
)
def test_who_is_given_what(first: Request, second: Request, hit: bool) -> None:
    agent = CacheAgent()
    remember(agent, first)
    assert (agent.lookup(second) is not None) is hit


def test_a_sampled_answer_is_given_again_only_to_who_asked_for_that() -> None:
    agent = CacheAgent()
    asked = {"temperature": 0.7, "requirements": {"cache": "private"}}
    remember(agent, ask(**asked, user="a"))
    assert agent.lookup(ask(**asked, user="a")) is not None
    assert agent.lookup(ask(**asked, user="b")) is None
    shared = {"temperature": 0.7, "requirements": {"cache": "shared"}}
    remember(agent, ask(**shared, user="a"))
    assert agent.lookup(ask(**shared, user="b")) is not None
    assert agent.lookup(ask(**shared)) is not None


@pytest.mark.parametrize(
    ("tier", "region", "requirements", "given"),
    [
        ("cloud", "us-1", {"privacy": "any"}, True),
        ("cloud", "us-1", {"privacy": "edge"}, False),
        ("mec", "eu-1", {"privacy": "edge", "residency": "eu"}, True),
        ("mec", "us-1", {"residency": "eu"}, False),
        ("mec", None, {"residency": "eu"}, False),
        ("mec", "eu-1", {"privacy": "device"}, False),
        ("device", None, {"privacy": "device", "residency": "eu"}, True),
        ("cloud", "eu-1", {"min_quality": 0.5}, True),
        ("cloud", "eu-1", {"min_quality": 0.51}, False),
    ],
)
def test_an_answer_is_given_only_where_its_target_would_have_been_allowed(
    tier: str, region: str | None, requirements: dict[str, Any], given: bool
) -> None:
    agent = CacheAgent()
    remember(agent, ask(), tier=tier, region=region)
    assert (agent.lookup(ask(requirements=requirements)) is not None) is given


def test_what_failed_or_was_pieced_together_is_not_remembered() -> None:
    agent, request = CacheAgent(), ask()
    whole = answered_by(request)
    agent.remember(request, BODY, replace(whole, outcome=replace(whole.outcome, error="no")))
    agent.remember(request, BODY, replace(whole, segments=(*whole.segments, *whole.segments)))
    agent.remember(request, BODY, replace(whole, segments=()))
    assert agent.lookup(ask()) is None


def test_answers_are_bounded_by_age_and_by_bytes() -> None:
    clock = Clock()
    answers = Answers(ttl_s=60, max_bytes=100_000, clock=clock, wall_clock=lambda: 0.0)
    one = Remembered(BODY, answered_by(ask()))
    for number in range(50):
        assert answers.put(str(number), one, 1000)
        assert answers.size_bytes <= 100_000
    assert answers.get("0") is None
    assert answers.get("49") is not None
    assert not answers.put("big", one, 20_000), "one answer may not push out all others"
    clock.now += 61
    assert answers.get("49") is None
    assert not answers.put("old", one, 10, age_s=61)


def test_an_answer_is_as_old_as_the_older_clock_says() -> None:
    """The monotonic one stands still while a machine sleeps, the other one may be set back."""
    awake, wall = Clock(), Clock()
    answers = Answers(ttl_s=60, max_bytes=100_000, clock=awake, wall_clock=wall)
    one = Remembered(BODY, answered_by(ask()))
    answers.put("slept", one, 10)
    wall.now += 3600
    assert answers.get("slept") is None
    answers.put("set back", one, 10)
    awake.now += 59
    wall.now -= 1e6
    assert answers.get("set back") is not None
    awake.now += 2
    assert answers.get("set back") is None


def test_an_answer_on_disk_from_the_future_is_not_given_and_goes_first(tmp_path: Path) -> None:
    wall = Clock()
    disk = AnswerDisk(tmp_path / "answers.sqlite3", ttl_s=3600, max_bytes=1_000, clock=wall)
    key = cache_key(ask())
    assert key is not None
    one = Remembered(BODY, answered_by(ask()))
    wall.now += 1e7
    disk.put(replace(key, exact="ahead"), one, 900)
    wall.now -= 1e7
    assert disk.get("ahead") is None
    assert disk.questions(key.frame or "") == []
    for number in range(51):
        disk.put(replace(key, exact=f"now-{number}"), one, 10)
    assert disk.get("now-50") is not None
    assert disk.count()[0] < 52, "what is from the future made room"
    disk.close()


def test_a_cache_that_is_switched_off_remembers_nothing() -> None:
    agent = CacheAgent(CacheConfig(enabled=False, semantic=True))
    remember(agent, ask())
    assert agent.lookup(ask()) is None
    assert asyncio.run(agent.lookup_similar(ask())) is None


@pytest.mark.parametrize("value", ["yes", 5, True])
def test_a_wish_that_is_none_is_refused(value: Any) -> None:
    with pytest.raises(InvalidRequestError, match=r"requirements\.cache"):
        Requirements.parse({"cache": value})


# What means the same


def calibrated(threshold: float | None = 0.6, **facts: Any) -> None:
    told = Calibration("hashed-ngrams-1", threshold, 0.01, 0.95, 1000, 500, 0, 0.006, 1000, 500, 1)
    save_calibration(replace(told, **facts))


def semantic(first: Request, second: Request, config: CacheConfig | None = None) -> Remembered | None:
    async def run() -> Remembered | None:
        agent = CacheAgent(config or CacheConfig(semantic=True))
        assert await agent.lookup_similar(first) is None
        remember(agent, first)
        return await agent.lookup_similar(second)

    return asyncio.run(run())


def test_an_encoder_that_is_slow_to_open_is_opened_once_whoever_stops_waiting(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calibrated()
    opened: list[CacheConfig] = []
    go = threading.Event()

    def slow(config: CacheConfig) -> SimilarQuestions | None:
        opened.append(config)
        assert go.wait(30)
        return open_similar(config)

    monkeypatch.setattr("mecroute.agents.cache.open_similar", slow)

    async def run() -> Remembered | None:
        agent = CacheAgent(CacheConfig(semantic=True))
        for _ in range(3):
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(agent.lookup_similar(ask()), 0.01)
        go.set()
        first = ask()
        assert await agent.lookup_similar(first) is None
        remember(agent, first)
        found = await agent.lookup_similar(ask("what's the capital of france"))
        agent.close()
        return found

    assert asyncio.run(run()) is not None
    assert len(opened) == 1


@pytest.mark.parametrize(
    ("first", "second", "hit"),
    [
        (ask(), ask("what's the capital of france"), True),
        (ask(), ask("Tell me the capital of France, please."), True),
        (ask(), ask("What is the capital of Spain?"), False),
        (ask("Convert 5 dollars to euros"), ask("convert 6 dollars to euros"), False),
        (ask("Is it safe to eat raw eggs?"), ask("Is it not safe to eat raw eggs?"), False),
        (ask("Is it safe to eat raw eggs?"), ask("Isn't it safe to eat raw eggs?"), False),
        (ask('Translate "yes" into German'), ask('Translate "no way" into German'), False),
        (ask(system="Answer in French."), ask("what's the capital of france"), False),
        (ask(user="a"), ask("what's the capital of france", user="b"), False),
        (ask(key="a"), ask("what's the capital of france", key="b"), False),
        (ask(), ask("what's the capital of france", tools=[{"type": "function"}]), False),
        (ask(), ask("what's the capital of france", temperature=1), False),
        (ask(), ask("what's the capital of france", requirements={"privacy": "device"}), True),
    ],
)
def test_what_means_the_same(first: Request, second: Request, hit: bool) -> None:
    calibrated()
    found = semantic(first, second)
    assert (found is not None) is hit
    assert found is None or found.kind == "semantic"


def test_an_earlier_turn_belongs_to_what_must_be_equal() -> None:
    calibrated()

    def turn(before: str, text: str) -> Request:
        messages = [{"role": "user", "content": before}, {"role": "assistant", "content": "Yes."}]
        body = {"messages": [*messages, {"role": "user", "content": text}], "temperature": 0}
        return ingest("chat", model="auto", body=body)

    assert semantic(
        turn("I am in Paris.", "Where is the station?"), turn("I am in Paris.", "where's the station")
    )
    assert not semantic(
        turn("I am in Paris.", "Where is the station?"), turn("I am in Rome.", "where's the station")
    )


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        (None, "never calibrated"),
        ({"threshold": None}, "no threshold"),
        ({"embedder": "another"}, "calibrated for the embedder another"),
        ({"rate": 0.05}, "wrong_hit_rate is 0.01"),
    ],
)
def test_without_a_calibration_for_it_nothing_similar_is_given(
    facts: dict[str, Any] | None, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    if facts is not None:
        calibrated(**facts)
    assert semantic(ask(), ask("what's the capital of france")) is None
    assert said in caplog.text


def test_a_calibration_that_cannot_be_read_switches_it_off(caplog: pytest.LogCaptureFixture) -> None:
    calibrated()
    save_calibration(Calibration("hashed-ngrams-1", 7.0, 0.01, 0.95, 1, 1, 0, 0.1, 1, 1, 0))
    assert open_similar(CacheConfig(semantic=True)) is None
    assert "is not a calibration" in caplog.text


def test_a_text_that_is_not_one_plain_question_has_no_frame() -> None:
    parts = [{"type": "text", "text": "hello"}]
    assert cache_key(ask(parts)).frame is None  # type: ignore[arg-type, union-attr]
    assert cache_key(ask("x" * 3000)).frame is None  # type: ignore[union-attr]
    assert cache_key(ingest("embed", model="auto", body={"input": "a"})).frame is None  # type: ignore[union-attr]


# Between runs


def test_answers_survive_a_restart_only_where_that_is_switched_on(tmp_path: Path) -> None:
    calibrated()
    path = tmp_path / "answers.sqlite3"
    for persist in (False, True):
        first = CacheAgent(CacheConfig(persist=persist, path=path))
        remember(first, ask(), tier="mec", region="eu-1")
        first.close()
        assert path.exists() is persist
        second = CacheAgent(CacheConfig(persist=persist, path=path))
        found = second.lookup(ask(requirements={"residency": "eu"}))
        assert (found is not None) is persist
        second.close()
    assert path.stat().st_mode & 0o077 == 0, "it holds what was asked and answered"
    third = CacheAgent(CacheConfig(persist=True, semantic=True, path=path))
    found = asyncio.run(third.lookup_similar(ask("what's the capital of france")))
    assert found is not None
    assert found.body == BODY
    assert found.provenance.decision.candidates[0].target.region == "eu-1"
    assert third.lookup(ask(requirements={"privacy": "device"})) is None
    third.close()


def test_a_database_that_is_damaged_only_costs_the_answers_in_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "answers.sqlite3"
    path.write_bytes(b"no database " * 1000)
    agent = CacheAgent(CacheConfig(persist=True, path=path))
    assert agent.lookup(ask()) is None
    remember(agent, ask())
    assert agent.lookup(ask()) is not None
    assert caplog.text.count("cannot be used") == 1
    agent.close()


# In a client


@pytest.fixture
def mec() -> Iterator[Upstream]:
    model = {"ref": "fox:1", "state": "ready", "context_length": 4096, "parallel": 4, "accuracy": 0.8,
             "prefill_tokens_per_s": 5000, "decode_tokens_per_s": 500}  # fmt: skip
    with upstream(report={"node": "n", "models": [model]}) as up:
        yield up


def test_a_client_gives_a_similar_question_s_answer_and_says_so(tmp_path: Path, mec: Upstream) -> None:
    calibrated()
    config = Config(
        registry=RegistryConfig(path=tmp_path / "registry"),
        device=DeviceConfig(enabled=False),
        state=StateConfig(path=tmp_path / "state.sqlite3"),
        nodes=(NodeConfig(name="n", url=mec.url),),
        cloud=(CloudConfig(name="c", base_url="http://127.0.0.1:9/v1", model="big"),),
        cache=CacheConfig(semantic=True),
    )

    def create(client: Client, text: str, **options: Any) -> Any:
        return client.chat.completions.create(
            messages=[{"role": "user", "content": text}], temperature=0, **options
        )

    with Client(config) as client:
        assert create(client, QUESTION).mecroute.cache is None
        assert create(client, QUESTION).mecroute.cache == "exact"
        similar = create(client, "what's the capital of france")
        assert similar.mecroute.cache == "semantic"
        assert similar.mecroute.outcome.cost_usd == 0
        assert create(client, "what's the capital of spain").mecroute.cache is None
        assert len(mec.requests) == 2
    with Client(config) as client:
        assert create(client, QUESTION).mecroute.cache is None, "nothing was kept on disk"
        runtime = client._async._made
        assert runtime is not None
        assert runtime.pipeline.cache.demand.recent("fox:1") > 2, "demand was"
