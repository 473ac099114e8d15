"""Exploration and shadow comparison: within every constraint, within their budgets, and off by default."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest

from mecroute import AsyncClient, Config
from mecroute.budgets.gate import BudgetGate
from mecroute.budgets.ledger import Budget, Ledger
from mecroute.config import (
    BudgetConfig,
    CloudConfig,
    DeviceConfig,
    MonitorConfig,
    NodeConfig,
    RegistryConfig,
    RouterConfig,
    StateConfig,
)
from mecroute.config.schema import Weighting
from mecroute.context import RequestFeatures
from mecroute.decision import Candidate, Decision, Scores
from mecroute.evidence.explore import Explorer
from mecroute.evidence.learning import Judgement
from mecroute.evidence.shadow import Shadow
from mecroute.evidence.signals import Answer
from mecroute.outcome import Outcome, Provenance
from mecroute.requirements import Requirements
from mecroute.state.history import Filter, History
from mecroute.target import Target
from support.upstream import Upstream, upstream

HELLO = [{"role": "user", "content": "What is six times seven?"}]


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[BudgetGate]:
    gate = BudgetGate((), Ledger(tmp_path / "budgets.sqlite3"))
    yield gate
    asyncio.run(gate.aclose())


def candidate(name: str, latency_ms: float = 1000, cost_usd: float = 0.0, cold: bool = False) -> Candidate:
    scores = Scores(0.5, 0.8, 1, 1, 0.7)
    target = Target("mec", name)
    return Candidate(target, 10, latency_ms, 2 * latency_ms, 0.8, cost_usd, 1.0, scores, cold=cold)


def decided(*candidates: Candidate, **asked: Any) -> Decision:
    return Decision("r", RequestFeatures(0.5, (), 1, 1), Requirements(**asked), {}, candidates, ())


def explored(gate: BudgetGate, decision: Decision, times: int = 1, **settings: Any) -> list[Decision]:
    explorer = Explorer(MonitorConfig(**settings), gate, random=Random(11))

    async def run() -> list[Decision]:
        return [await explorer.apply(decision) for _ in range(times)]

    return asyncio.run(run())


def test_nothing_is_explored_unless_it_is_switched_on(gate: BudgetGate) -> None:
    decision = decided(candidate("a"), candidate("b"))
    assert explored(gate, decision) == [decision]


def test_the_propensities_are_those_of_the_choices_made(gate: BudgetGate) -> None:
    decision = decided(candidate("a"), candidate("b"), candidate("c"))
    made = explored(gate, decision, 6000, explore_rate=0.3)
    chosen = Counter(d.candidates[0].target.id for d in made)
    for found in made:
        best = found.candidates[0].target.id == "mec/a"
        assert found.propensity == pytest.approx(0.7 if best else 0.15)
        assert found.explored is not best
        assert set(found.explorable) == {"mec/a", "mec/b", "mec/c"}
        assert {c.target.id for c in found.candidates} == {"mec/a", "mec/b", "mec/c"}
    for target, propensity in {"mec/a": 0.7, "mec/b": 0.15, "mec/c": 0.15}.items():
        assert chosen[target] / 6000 == pytest.approx(propensity, abs=0.02)


def test_what_is_slow_cold_or_past_a_wish_is_not_explored(gate: BudgetGate) -> None:
    decision = decided(
        candidate("a"), candidate("slow", 2500), candidate("cold", cold=True), candidate("late", 1500),
        max_latency_ms=1200,
    )  # fmt: skip
    made = explored(gate, decision, 50, explore_rate=0.5)
    assert made == [decision] * 50


def test_exploring_ends_with_its_budget_and_what_is_cheaper_goes_on(gate: BudgetGate, tmp_path: Path) -> None:
    decision = decided(candidate("a", cost_usd=0.001), candidate("dear", cost_usd=0.011), candidate("free"))
    made = explored(gate, decision, 2000, explore_rate=0.5, explore_budget_usd_per_day=0.1)
    chosen = Counter(d.candidates[0].target.id for d in made)
    assert chosen["mec/dear"] == 10
    assert chosen["mec/free"] > 300
    (turned,) = [d for d in made if d.propensity == pytest.approx(0.75)]
    assert not turned.explored  # the one at which the budget ran out
    assert set(turned.explorable) == {"mec/a", "mec/free"}
    assert set(made[-1].explorable) == {"mec/a", "mec/free"}
    ledger = Ledger(tmp_path / "budgets.sqlite3")
    (balance,) = ledger.balances([Budget("(explore)", 0.1, "day")])
    ledger.close()
    assert balance.spent_usd == pytest.approx(0.1)


def test_without_a_budget_nothing_dearer_is_explored(gate: BudgetGate) -> None:
    decision = decided(candidate("a", cost_usd=0.001), candidate("dear", cost_usd=0.0011))
    assert explored(gate, decision, 50, explore_rate=0.5) == [decision] * 50


def report(accuracy: float, ref: str) -> dict[str, Any]:
    model = {
        "ref": ref, "state": "ready", "context_length": 4096, "parallel": 4, "accuracy": accuracy,
        "prefill_tokens_per_s": 5000, "decode_tokens_per_s": 500,
    }  # fmt: skip
    return {"node": "n", "hardware": "test", "models": [model]}


@pytest.fixture
def places() -> Iterator[tuple[Upstream, Upstream, Upstream]]:
    with (
        upstream(words=["It is ", "41."], report=report(0.6, "small:1")) as small,
        upstream(words=["It is ", "42."], report=report(0.7, "large:1")) as large,
        upstream(words=["It is ", "42."]) as cloud,
    ):
        yield small, large, cloud


def config(tmp_path: Path, places: tuple[Upstream, Upstream, Upstream], **monitor: Any) -> Config:
    small, large, cloud = places
    return Config(
        registry=RegistryConfig(path=tmp_path / "registry"),
        device=DeviceConfig(enabled=False),
        state=StateConfig(path=tmp_path / "state.sqlite3"),
        nodes=(
            NodeConfig(name="n1", url=small.url, region="eu-1"),
            NodeConfig(name="n2", url=large.url, region="eu-2", input_usd_per_mtok=1, output_usd_per_mtok=1),
        ),
        cloud=(
            CloudConfig(
                name="c1", base_url=f"{cloud.url}/v1", model="big", region="us-1",
                input_usd_per_mtok=1, output_usd_per_mtok=1,
            ),
        ),
        monitor=MonitorConfig(**monitor),
        # The free target is always the best, however long this machine takes for an answer.
        router=RouterConfig(
            policy="free",
            policies={"free": Weighting(latency=0, quality=0, cost=1, availability=0)},
            tie_margin=0,
            sticky_margin=0,
        ),
    )  # fmt: skip


def ask(config: Config, times: int = 1, **asked: Any) -> None:
    async def run() -> None:
        async with AsyncClient(config) as client:
            for index in range(times):
                messages = [{"role": "user", "content": f"{HELLO[0]['content']} ({index})"}]
                if asked.get("stream"):
                    async for _ in await client.chat.completions.create(messages=messages, **asked):
                        pass
                else:
                    await client.chat.completions.create(messages=messages, **asked)
                await (await client._runtime()).pipeline.shadow.join()

    asyncio.run(run())


def judged(tmp_path: Path) -> list[dict[str, Any]]:
    found = History(tmp_path / "state.sqlite3").judgements(Filter())
    return [judgement for said in found.values() for judgement in said]


@pytest.mark.parametrize("stream", [False, True])
def test_a_second_answer_is_compared_and_only_the_agreement_is_kept(
    tmp_path: Path, places: tuple[Upstream, Upstream, Upstream], stream: bool
) -> None:
    small, large, cloud = places
    ask(
        config(tmp_path, places, shadow_rate=1, shadow_budget_usd_per_day=1),
        model="mec/auto", max_tokens=20, stream=stream,
    )  # fmt: skip
    assert (len(small.requests), len(large.requests), len(cloud.requests)) == (1, 1, 0)
    (judgement,) = judged(tmp_path)
    assert judgement["source"] == "shadow"
    assert judgement["target"] == "mec/n1/small:1"  # the one expected to be worse
    assert judgement["score"] == 0
    assert "number" in judgement["note"]
    for file in tmp_path.glob("*.sqlite3*"):
        assert b"It is 4" not in file.read_bytes()
        assert b"six times" not in file.read_bytes()


def test_whom_evidence_holds_for_the_better_one_is_the_reference(gate: BudgetGate) -> None:
    """Measured 0.8 against 0.7, but judged answers have turned them round."""
    told: list[Judgement] = []
    shadow = Shadow(MonitorConfig(shadow_rate=1), {}, gate, told.append)
    proud = replace(candidate("proud"), quality=0.8 - 0.2, quality_adjusted_by=-0.2)
    modest = replace(candidate("modest"), quality=0.7 + 0.1, quality_adjusted_by=0.1)
    decision = decided(proud, modest)
    outcome = Outcome(modest.target.id, None, 10, 1, 1, None, 0.0)
    provenance = Provenance("r", decision, outcome, (), "mec", None, "modest")
    shadow.escalated(provenance, Answer("4"), Answer("42"))
    (judgement,) = told
    assert judgement.target_id == proud.target.id
    assert modest.target.id in judgement.note
    assert judgement.predicted == pytest.approx(0.8)  # evidence is counted against the prediction alone


def test_no_comparison_leaves_the_privacy_or_the_region_of_its_request(
    tmp_path: Path, places: tuple[Upstream, Upstream, Upstream]
) -> None:
    small, large, cloud = places
    settings = config(tmp_path, places, shadow_rate=1, shadow_budget_usd_per_day=1, explore_rate=0.5)
    ask(settings, 10, max_tokens=20, requirements={"privacy": "edge", "residency": "eu-1"})
    assert len(small.requests) == 10
    assert not large.requests
    assert not cloud.requests
    assert judged(tmp_path) == []


def test_comparisons_end_with_their_budget_and_nobody_notices(
    tmp_path: Path, places: tuple[Upstream, Upstream, Upstream]
) -> None:
    small, large, _ = places
    # Each is reserved with 20 output tokens and a bound on the prompt, and costs 7 tokens in the end.
    settings = config(tmp_path, places, shadow_rate=1, shadow_budget_usd_per_day=100e-6)
    ask(settings, 12, model="mec/auto", max_tokens=20, requirements={"max_cost_usd": 1e-3})
    assert len(small.requests) == 12
    assert 0 < len(large.requests) < 12
    assert len(judged(tmp_path)) == len(large.requests)


def test_a_failing_second_target_is_not_held_against_it(
    tmp_path: Path, places: tuple[Upstream, Upstream, Upstream]
) -> None:
    _, large, _ = places
    large.status = 500

    async def run() -> float:
        settings = config(tmp_path, places, shadow_rate=1, shadow_budget_usd_per_day=1)
        async with AsyncClient(settings) as client:
            await client.chat.completions.create(messages=HELLO, model="mec/small", max_tokens=20)
            pipeline = (await client._runtime()).pipeline
            await pipeline.shadow.join()
            return pipeline.monitor.availability("mec/n2/large:1")

    assert asyncio.run(run()) == 1
    assert judged(tmp_path) == []


def test_exploring_through_a_client_is_recorded_with_its_propensity(
    tmp_path: Path, places: tuple[Upstream, Upstream, Upstream]
) -> None:
    settings = config(
        tmp_path, places, explore_rate=0.5, explore_budget_usd_per_day=1, explore_max_slowdown=1000
    )
    ask(settings, 30, model="mec/auto", max_tokens=20, temperature=1)
    rows = History(tmp_path / "state.sqlite3").rows(Filter(), 100)
    assert len(rows) == 30
    by_explored = {flag: {r["target"] for r in rows if r["explored"] is flag} for flag in (True, False)}
    assert by_explored[True]
    assert by_explored[True].isdisjoint(by_explored[False])
    assert {r["propensity"] for r in rows} == {0.5}


def test_budgets_bind_comparisons_as_well(
    tmp_path: Path, places: tuple[Upstream, Upstream, Upstream]
) -> None:
    _, large, _ = places
    settings = config(tmp_path, places, shadow_rate=1, shadow_budget_usd_per_day=1).model_copy(
        update={"budgets": (BudgetConfig(name="none", limit_usd=0),)}
    )
    ask(settings, 3, max_tokens=20)
    assert not large.requests
