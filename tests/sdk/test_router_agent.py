"""The router agent: hard constraints before scores, ties to the nearer tier, the same answer every time."""

from __future__ import annotations

from dataclasses import replace

import pytest

from mecroute.agents.router import RouterAgent
from mecroute.config import RouterConfig
from mecroute.config.schema import Weighting
from mecroute.context import Context, DeviceState, NetworkState, RequestFeatures
from mecroute.decision import Decision
from mecroute.predict.residuals import Correction
from mecroute.request import ingest
from mecroute.target import Target, TargetState

CHAT = frozenset({"chat"})
DEVICE = TargetState(
    Target("device", "m:small"), CHAT, frozenset(), 2048, accuracy=0.6,
    prefill_tokens_per_s=400, decode_tokens_per_s=40, memory_needed_bytes=10**8,
)  # fmt: skip
MEC = TargetState(
    Target("mec", "m:large", node="n1", region="eu-1"), CHAT, frozenset(), 4096, accuracy=0.8,
    prefill_tokens_per_s=2000, decode_tokens_per_s=80, round_trip_ms=10, reached_over_network=True,
    input_usd_per_mtok=0.05, output_usd_per_mtok=0.1,
)  # fmt: skip
CLOUD = TargetState(
    Target("cloud", "big", node="c1", region="us-1"), CHAT, frozenset({"tools"}), 100_000, accuracy=0.97,
    prefill_tokens_per_s=5000, decode_tokens_per_s=80, round_trip_ms=80, reached_over_network=True,
    input_usd_per_mtok=2.5, output_usd_per_mtok=10,
)  # fmt: skip
ALL = (DEVICE, MEC, CLOUD)


def decide(
    targets=ALL, *, complexity=0.1, prompt=20, output=20, needs=frozenset(), device=None, offline=False,
    model="auto", config=None, correction=None, **requirements,
) -> Decision:  # fmt: skip
    request = ingest(
        "chat", model=model, body={"messages": [{"role": "user", "content": "x"}]}, requirements=requirements
    )
    context = Context(
        RequestFeatures(complexity, (), prompt, output, needs),
        device or DeviceState("test", memory_available_bytes=10**9),
        NetworkState(offline),
    )
    return RouterAgent(config or RouterConfig()).decide(
        request, context, targets, battery_floor=0.15, correction=correction or (lambda _: Correction())
    )


def primary(decision: Decision) -> str:
    assert decision.primary is not None
    return decision.primary.target.tier


def reasons(decision: Decision) -> dict[str, str]:
    return {r.target.tier: r.reason for r in decision.rejected}


def test_easy_short_requests_stay_on_the_device() -> None:
    assert primary(decide(complexity=0.05, output=8)) == "device"


def test_long_requests_go_to_the_faster_edge() -> None:
    assert primary(decide(complexity=0.3, prompt=800, output=150)) == "mec"


def test_the_hardest_requests_go_to_the_best_model() -> None:
    assert primary(decide(complexity=1.0, prompt=100, output=100, min_quality=0.9)) == "cloud"


def test_scores_are_the_weighted_sum_of_the_four_factors() -> None:
    own = Weighting(latency=0.1, quality=0.2, cost=0.3, availability=0.4)
    weights = RouterConfig(policy="own", policies={"own": own})
    for candidate in decide(config=weights).candidates:
        s = candidate.scores
        assert s.total == pytest.approx(
            0.1 * s.latency + 0.2 * s.quality + 0.3 * s.cost + 0.4 * s.availability
        )
        assert all(0 <= part <= 1 for part in (s.latency, s.quality, s.cost, s.availability))


def test_the_same_input_gives_the_same_decision_whatever_the_order_of_targets() -> None:
    one = decide(ALL, complexity=0.5)
    other = decide(tuple(reversed(ALL)), complexity=0.5)
    assert [c.target.id for c in one.candidates] == [c.target.id for c in other.candidates]


def test_a_tie_goes_to_the_nearer_tier_and_says_so() -> None:
    near = replace(DEVICE, accuracy=0.8, prefill_tokens_per_s=2000, decode_tokens_per_s=79)
    decision = decide((MEC, near))
    assert primary(decision) == "device"
    alone = decide((MEC, near), config=RouterConfig(tie_margin=0))
    assert {c.target.tier for c in alone.candidates} == {"device", "mec"}


@pytest.mark.parametrize(
    ("privacy", "left"),
    [("device", {"device"}), ("edge", {"device", "mec"}), ("any", {"device", "mec", "cloud"})],
)
def test_no_request_is_ranked_past_its_privacy_floor(privacy: str, left: set[str]) -> None:
    decision = decide(complexity=1.0, privacy=privacy)
    assert {c.target.tier for c in decision.candidates} == left
    assert set(reasons(decision).values()) <= {"privacy"}


def test_residency_excludes_other_and_unknown_regions_but_never_the_device() -> None:
    unknown = replace(MEC, target=replace(MEC.target, node="n2", region=None))
    decision = decide((*ALL, unknown), residency="eu")
    assert {c.target.id for c in decision.candidates} == {"device/m:small", "mec/n1/m:large"}
    assert [r.reason for r in decision.rejected] == ["residency", "residency"]


def test_offline_leaves_what_needs_no_network() -> None:
    local = replace(MEC, target=replace(MEC.target, node="local"), reached_over_network=False)
    decision = decide((*ALL, local), offline=True)
    assert {c.target.id for c in decision.candidates} == {"device/m:small", "mec/local/m:large"}


def test_memory_battery_context_and_ability_are_hard() -> None:
    assert reasons(decide(device=DeviceState("t", memory_available_bytes=10**7)))["device"] == "memory"
    low = DeviceState("t", battery=0.1, charging=False)
    assert reasons(decide(device=low))["device"] == "battery"
    assert "device" not in reasons(decide(device=replace(low, charging=True)))
    assert reasons(decide(prompt=3000))["device"] == "context_length"
    assert reasons(decide(needs=frozenset({"tools"}))) == {"device": "capability", "mec": "capability"}


def test_stated_limits_exclude_by_prediction() -> None:
    assert set(reasons(decide(complexity=1.0, min_quality=0.9))) == {"device", "mec"}
    assert reasons(decide(complexity=1.0, max_cost_usd=0))["cloud"] == "cost"
    assert set(reasons(decide(output=100, deadline_ms=2000))) == {"device"}


def test_an_assumed_speed_never_refuses_on_a_deadline() -> None:
    unprofiled = replace(DEVICE, prefill_tokens_per_s=None, decode_tokens_per_s=None)
    assert primary(decide((unprofiled,), output=400, deadline_ms=10)) == "device"


def test_a_late_target_is_still_better_than_none() -> None:
    assert primary(decide((DEVICE,), output=400, max_latency_ms=1)) == "device"


def test_an_unavailable_target_says_why() -> None:
    decision = decide((replace(MEC, unavailable="failed 3 times"),))
    assert decision.primary is None
    assert decision.rejected[0].detail == "failed 3 times"


def test_waiting_requests_ahead_push_a_request_elsewhere() -> None:
    idle = decide((DEVICE, MEC), prompt=800, output=150)
    busy = decide((DEVICE, replace(MEC, running=8, queued=40, parallel=8)), prompt=800, output=150)
    assert (primary(idle), primary(busy)) == ("mec", "device")


def test_what_was_observed_corrects_the_prediction() -> None:
    slow = {"mec/n1/m:large": Correction(ttft=10, decode=(10,) * 4, samples=9)}
    decision = decide(prompt=800, output=150, correction=lambda target: slow.get(target.id, Correction()))
    assert primary(decision) == "device"
    assert "corrected by 9 answers" in decision.explain()


def test_explain_shows_every_number_and_every_reason() -> None:
    decision = decide(privacy="edge", complexity=0.4)
    text = decision.explain()
    for candidate in decision.candidates:
        s = candidate.scores
        for number in (s.total, s.latency, s.quality, s.cost, s.availability):
            assert f"{number:.3f}" in text
        assert f"{candidate.latency_ms_p50:.0f} ms" in text
    assert "rejected cloud/c1/big: privacy" in text


def test_a_decision_is_json() -> None:
    import json

    data = json.loads(json.dumps(decide(needs=frozenset({"tools"}), privacy="any").to_dict()))
    assert data["candidates"][0]["target"]["id"] == "cloud/c1/big"
    assert data["rejected"][0]["reason"] == "capability"
