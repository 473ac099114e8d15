"""Replays: the estimators against worlds whose truth is known, and what is said where they cannot know."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mecroute.agents.monitor import MonitorAgent
from mecroute.agents.router import RouterAgent
from mecroute.config import RouterConfig
from mecroute.context import Context, DeviceState, NetworkState, RequestFeatures
from mecroute.errors import InvalidRequestError
from mecroute.outcome import Outcome, Provenance
from mecroute.predict.latency import Correction
from mecroute.replay.estimate import Sample, effective_samples, estimate
from mecroute.replay.logged import LoggedCandidate, LoggedDecision
from mecroute.replay.replay import replay as run
from mecroute.replay.replay import report
from mecroute.replay.weighting import Weighting, weighting_of
from mecroute.request import ingest
from mecroute.state.history import Filter, History
from mecroute.state.store import StateStore
from mecroute.target import Target, TargetState

FAST = Weighting("fast", 1, 0, 0, 0, 0)
GOOD = Weighting("good", 0, 1, 0, 0, 0)
TRUE_MS = {"mec/fast": 200.0, "mec/good": 900.0}


def world(
    *, explore_rate: float, promised: dict[str, float] | None = None, count: int = 4000, seed: int = 1
) -> list[LoggedDecision]:
    """Requests routed to `mec/fast`, `explore_rate` of them to `mec/good`; both take what TRUE_MS says."""
    rng = random.Random(seed)
    promised = promised or TRUE_MS
    found = []
    for index in range(count):
        candidates = tuple(
            LoggedCandidate(name, "mec", promised[name], 0.0, quality, 1.0, utility, 1.0)
            for name, quality, utility in (("mec/fast", 0.5, 0.9), ("mec/good", 0.9, 0.5))
        )
        chosen = "mec/good" if rng.random() < explore_rate else "mec/fast"
        found.append(
            LoggedDecision(
                id=f"r{index}",
                at=float(index),
                candidates=candidates if chosen == "mec/fast" else candidates[::-1],
                chosen=chosen,
                propensity=explore_rate if chosen == "mec/good" else 1 - explore_rate,
                possible=frozenset(TRUE_MS) if explore_rate else frozenset({chosen}),
                latency_ms=TRUE_MS[chosen] * rng.lognormvariate(0, 0.3) / 1.046,
                cost_usd=0.0,
                answered=1.0,
                quality=None,
            )
        )
    return found


def test_explored_traffic_tells_what_the_other_policy_would_have_got() -> None:
    found = report(world(explore_rate=0.1), GOOD)
    latency = found.metrics["latency_ms"]
    for estimator in (latency.ips, latency.snips, latency.doubly_robust):
        assert estimator.low is not None
        assert estimator.high is not None
        assert estimator.low < 900 < estimator.high
    assert latency.logged.value == pytest.approx(270, rel=0.1)
    assert found.supported == 1
    assert found.agreement == pytest.approx(0.1, abs=0.02)
    assert found.effective_samples == pytest.approx(400, rel=0.2)
    assert found.chosen == {"mec/good": 1.0}


def test_a_wrong_prediction_is_put_right_by_the_doubly_robust_estimate() -> None:
    liar = report(world(explore_rate=0.1, promised={"mec/fast": 200.0, "mec/good": 300.0}), GOOD)
    latency = liar.metrics["latency_ms"]
    assert latency.direct.value == 300
    assert latency.doubly_robust.value == pytest.approx(900, rel=0.15)


def test_a_right_prediction_makes_it_surer_than_weighting_alone() -> None:
    latency = report(world(explore_rate=0.05), GOOD).metrics["latency_ms"]

    def width(found: Any) -> float:
        return found.high - found.low

    assert width(latency.doubly_robust) < width(latency.ips) / 2


def test_without_exploration_missing_support_is_said_plainly() -> None:
    found = report(world(explore_rate=0), GOOD)
    assert (found.agreement, found.supported, found.effective_samples) == (0, 0, 0)
    latency = found.metrics["latency_ms"]
    assert latency.ips.value is None
    assert latency.snips.value is None
    assert latency.direct.value == 900
    told = " ".join(found.warnings)
    assert "support is missing for 100.0%" in told
    assert "explore_rate" in told
    assert "no answer was judged" in told


def test_the_logged_policy_replayed_is_what_was_observed() -> None:
    decisions = world(explore_rate=0)
    found = report(decisions, FAST)
    latency = found.metrics["latency_ms"]
    mean = sum(d.latency_ms for d in decisions) / len(decisions)
    for estimator in (latency.logged, latency.ips, latency.snips, latency.doubly_robust):
        assert estimator.value == pytest.approx(mean)
    assert (found.agreement, found.supported) == (1, 1)
    assert found.effective_samples == pytest.approx(len(decisions))
    assert not any("support" in warning for warning in found.warnings)


def test_intervals_cover_the_truth_as_often_as_they_say() -> None:
    covered = 0
    for seed in range(40):
        samples = [
            Sample(float(d.chosen == "mec/good") / d.propensity, d.latency_ms, TRUE_MS[d.chosen], 900.0)
            for d in world(explore_rate=0.2, count=600, seed=seed)
        ]
        found = estimate(samples, seed=seed).snips
        assert found.low is not None
        assert found.high is not None
        covered += found.low <= 900 <= found.high
    assert covered >= 34  # 38 of 40 expected


def test_few_samples_are_said_to_be_few() -> None:
    found = report(world(explore_rate=0.1, count=60), GOOD)
    assert any("too few" in warning for warning in found.warnings)


def test_effective_samples_are_fewer_than_the_weights() -> None:
    assert effective_samples([1, 1, 1, 1]) == 4
    assert effective_samples([10, 1, 1, 1]) < 2
    assert effective_samples([0, 0]) == 0
    assert effective_samples([]) == 0


def test_what_only_some_requests_show_is_estimated_from_those() -> None:
    samples = [Sample(1.0, 0.5 if i % 2 else None, 0.7, 0.7) for i in range(1000)]
    found = estimate(samples)
    assert found.observations == 500
    assert found.logged.value == 0.5
    assert found.ips.value == 0.5
    assert found.doubly_robust.value == pytest.approx(0.5)
    assert found.direct.value == pytest.approx(0.7)


def test_weights_are_scaled_and_mistakes_are_named() -> None:
    found = weighting_of(RouterConfig(), weights="latency=3, quality=1")
    assert (found.latency, found.quality, found.cost) == (0.75, 0.25, 0)
    assert weighting_of(RouterConfig(), policy="balanced").latency == 0.4
    for mistake in ("speed=1", "latency=fast", "latency=-1", "latency=nan", "latency=0", "", "cost=1,cost=2"):
        with pytest.raises(InvalidRequestError):
            weighting_of(RouterConfig(), weights=mistake)
    with pytest.raises(InvalidRequestError, match="no policy 'best'"):
        weighting_of(RouterConfig(), policy="best")
    for both in ({}, {"policy": "balanced", "weights": "cost=1"}):
        with pytest.raises(InvalidRequestError, match="name a policy or give weights"):
            weighting_of(RouterConfig(), **both)


CHAT = frozenset({"chat"})
TARGETS = (
    TargetState(Target("device", "small:1"), CHAT, frozenset(), 4096, accuracy=0.5,
                prefill_tokens_per_s=400, decode_tokens_per_s=60),
    TargetState(Target("mec", "large:1", node="n1"), CHAT, frozenset(), 4096, accuracy=0.8,
                prefill_tokens_per_s=4000, decode_tokens_per_s=50, round_trip_ms=10),
    TargetState(Target("cloud", "big", node="c1"), CHAT, frozenset(), 4096, accuracy=0.95,
                prefill_tokens_per_s=4000, decode_tokens_per_s=70, round_trip_ms=80,
                input_usd_per_mtok=2, output_usd_per_mtok=8),
)  # fmt: skip


def recorded(path: Path, count: int) -> None:
    """Real decisions of the router, recorded as the pipeline records them."""
    router, rng = RouterAgent(RouterConfig()), random.Random(2)
    monitor = MonitorAgent(StateStore(path))
    for index in range(count):
        request = ingest("chat", model="auto", body={"messages": [{"role": "user", "content": "x"}]})
        features = RequestFeatures(rng.random(), (), rng.randint(5, 800), rng.randint(5, 300))
        context = Context(features, DeviceState("t"), NetworkState())
        decision = router.decide(
            request, context, TARGETS, battery_floor=0.1, correction=lambda _: Correction()
        )
        assert decision.primary is not None
        latency_ms = decision.primary.latency_ms_p50 * rng.lognormvariate(0, 0.2)
        target = decision.primary.target
        outcome = Outcome(target.id, 50.0, latency_ms, 10, 20, 20.0, decision.primary.cost_usd)
        told = Provenance(
            request.id, decision, outcome, (), target.tier, target.node, target.model,
            cache="exact" if index % 10 == 0 else None,
        )  # fmt: skip
        monitor.record(told, user=None)
        if index % 500 == 499:
            monitor.flush()
    monitor.close()


def test_what_the_router_recorded_can_be_replayed_and_its_own_weights_choose_alike(tmp_path: Path) -> None:
    recorded(tmp_path / "state.sqlite3", 300)
    history = History(tmp_path / "state.sqlite3")
    own = run(history, weighting_of(RouterConfig(), policy="balanced"), Filter())
    assert (own.decisions, own.skipped) == (270, 30)
    assert own.agreement == 1
    assert own.metrics["latency_ms"].ips.value == pytest.approx(own.metrics["latency_ms"].logged.value)
    other = run(history, weighting_of(RouterConfig(), weights="quality=1"), Filter())
    assert next(iter(other.chosen)) == "cloud/c1/big"
    assert other.chosen["cloud/c1/big"] > 0.8 > other.agreement
    assert json.loads(json.dumps(other.to_dict()))["metrics"]["quality"]["direct"]["value"] > 0.9
    (only,) = run(history, weighting_of(RouterConfig(), weights="cost=1"), Filter(target="device")).logged
    assert only == "device/small:1"


def test_an_empty_or_missing_history_says_that_there_is_nothing(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequestError, match="nothing to replay"):
        run(History(tmp_path / "none.sqlite3"), GOOD, Filter())


def test_decisions_over_more_targets_than_are_kept_are_named(tmp_path: Path) -> None:
    many = [replace(TARGETS[1], target=Target("mec", "large:1", node=f"n{number}")) for number in range(100)]
    request = ingest("chat", model="auto", body={"messages": [{"role": "user", "content": "x"}]})
    context = Context(RequestFeatures(0.5, (), 50, 50), DeviceState("t"), NetworkState())
    decision = RouterAgent(RouterConfig()).decide(
        request, context, many, battery_floor=0.1, correction=lambda _: Correction()
    )
    assert decision.primary is not None
    outcome = Outcome(decision.primary.target.id, 50.0, 500.0, 10, 20, 20.0, 0.0)
    monitor = MonitorAgent(StateStore(tmp_path / "state.sqlite3"))
    monitor.record(Provenance(request.id, decision, outcome, (), "mec", "n1", "large:1"), user=None)
    monitor.close()
    found = run(History(tmp_path / "state.sqlite3"), FAST, Filter())
    assert any("more candidates than are kept" in warning for warning in found.warnings)
