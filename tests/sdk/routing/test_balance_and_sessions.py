"""Equal targets share the load, conversations stay where their tokens are, no constraint is broken."""

from __future__ import annotations

import copy
import math
import pickle
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from mecroute.agents.router import RouterAgent
from mecroute.config import RouterConfig
from mecroute.context import Context, DeviceState, NetworkState, RequestFeatures
from mecroute.decision import Decision
from mecroute.errors import MecrouteError
from mecroute.predict.line import Pace, Place
from mecroute.predict.residuals import Correction
from mecroute.prefix_keys import prefix_keys
from mecroute.request import Request, ingest
from mecroute.requirements import TIERS_WITHIN
from mecroute.routing.dispatch import Dispatch, UnderWay
from mecroute.routing.sessions import session_name
from mecroute.target import Target, TargetState

FIRST = [{"role": "system", "content": "Be brief. " * 40}, {"role": "user", "content": "What is tea?"}]
SECOND = [*FIRST, {"role": "assistant", "content": "A drink."}, {"role": "user", "content": "And coffee?"}]


def node(name: str, **facts: Any) -> TargetState:
    usual: dict[str, Any] = {
        "accuracy": 0.8, "prefill_tokens_per_s": 1000, "decode_tokens_per_s": 60, "parallel": 4
    }  # fmt: skip
    chat = frozenset({"chat"})
    return TargetState(Target("mec", "m:1", node=name), chat, frozenset(), 4096, **(usual | facts))


NODES = tuple(node(f"n{i}") for i in range(5))


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def ask(messages: Sequence[Any] = FIRST, *, user: str | None = None, **requirements: Any) -> Request:
    body = {"messages": messages, "user": user}
    return ingest("chat", model="auto", body=body, requirements=requirements)


def decide(
    targets: Sequence[TargetState] = NODES, request: Request | None = None, *,
    dispatch: Dispatch | None = None, prompt: int = 300, **config: Any,
) -> Decision:  # fmt: skip
    context = Context(RequestFeatures(0.2, (), prompt, 40), DeviceState("t"), NetworkState())
    return RouterAgent(RouterConfig(**config)).decide(
        request or ask(),
        context,
        targets,
        battery_floor=0,
        correction=lambda _: Correction(),
        dispatch=dispatch,
    )


def chosen(decision: Decision) -> str:
    assert decision.primary is not None
    return decision.primary.target.node or decision.primary.target.tier


def test_equal_nodes_share_the_load_and_one_request_always_goes_the_same_way() -> None:
    counts = Counter(chosen(decide()) for _ in range(1000))
    assert len(counts) == 5
    assert max(counts.values()) < 2 * min(counts.values())
    request = ask()
    assert len({chosen(decide(order, request)) for order in (NODES, NODES[::-1], NODES[2:] + NODES[:2])}) == 1


def test_of_two_drawn_the_less_loaded_is_taken() -> None:
    busy = (node("n0", running=3), *NODES[1:])
    fair = [replace(state, decode_slowdown=0.0) for state in busy]  # equally fast, though one has company
    counts = Counter(chosen(decide(fair)) for _ in range(500))
    assert counts["n0"] == 0


def test_a_slower_node_is_no_equal() -> None:
    slow = (*NODES[:2], node("slow", decode_tokens_per_s=40))
    assert "slow" not in Counter(chosen(decide(slow, tie_margin=0.2)) for _ in range(200))


def test_what_is_under_way_keeps_the_next_from_the_same_node() -> None:
    dispatch = Dispatch()
    sent = [dispatch.begin(f"mec/{chosen(decide(dispatch=dispatch))}/m:1") for _ in range(40)]
    assert min(there.count for there in dispatch.under_way.values()) >= 6
    for one in sent:
        one.end()
    assert not any(there.count for there in dispatch.under_way.values())


def test_prompts_under_way_take_their_time_until_their_first_token() -> None:
    now = 100.0
    dispatch = Dispatch(clock=lambda: now)
    pace = Pace(4, 20.0, 0.5, 1000)

    def begin(prefill_ms: float) -> UnderWay:
        return dispatch.begin("mec/n1/m:1", prefill_ms=prefill_ms, output_tokens=1, pace=pace, streams=True)

    def waits_ms() -> float:
        return there.line.foresee(now * 1000, Place(500, 0), pace)[0] - 500

    first, second = begin(400), begin(300)
    there = dispatch.under_way["mec/n1/m:1"]
    assert waits_ms() == pytest.approx(700)
    assert not first.alone
    now = 100.3
    assert waits_ms() == pytest.approx(400)
    first.first_token()  # sooner than predicted
    first.first_token()
    assert waits_ms() == pytest.approx(320)  # its answer goes on meanwhile
    now = 105.0
    assert waits_ms() == pytest.approx(0, abs=0.1)  # later than predicted: at any moment
    second.end()
    first.end()
    assert there.count == len(there.line) == 0
    now = 106.0
    assert begin(50).alone
    assert waits_ms() == pytest.approx(50)


def test_targets_with_nothing_under_way_are_forgotten() -> None:
    dispatch = Dispatch()
    kept = dispatch.begin("mec/kept/m:1")
    for number in range(5000):
        dispatch.begin(f"mec/n{number}/m:1").end()
    assert len(dispatch.under_way) <= 300
    assert dispatch.under_way["mec/kept/m:1"].count == 1
    kept.end()


def test_round_robin_goes_by_capacity() -> None:
    dispatch = Dispatch()
    targets = (node("small", parallel=2), node("large", parallel=6))
    for _ in range(80):
        name = chosen(decide(targets, dispatch=dispatch, balance="round-robin"))
        dispatch.begin(f"mec/{name}/m:1").end()
    assert dispatch.served("mec/large/m:1") == pytest.approx(60, abs=1)


def test_a_node_that_joins_is_not_flooded_by_round_robin() -> None:
    dispatch = Dispatch()
    for index in range(100_000):
        dispatch.begin(f"mec/n{index % 4}/m:1").end()
    names = []
    for _ in range(100):
        names.append(chosen(decide(NODES, dispatch=dispatch, balance="round-robin")))
        dispatch.begin(f"mec/{names[-1]}/m:1").end()
    assert 20 <= names.count("n4") < 75


def test_the_users_zone_the_price_and_the_prefix_can_come_first() -> None:
    zones = tuple(replace(state, zone=f"z{i}") for i, state in enumerate(NODES))
    for _ in range(20):
        assert chosen(decide(zones, ask(zone="z3"), balance="zone")) == "n3"
    assert chosen(decide(zones, balance="zone", zone="z1")) == "n1"
    prices = (*NODES, node("dear", input_usd_per_mtok=0.01, output_usd_per_mtok=0.01))
    assert "dear" not in {chosen(decide(prices, balance="cost")) for _ in range(60)}
    key = prefix_keys(FIRST)[-1]
    holder = replace(NODES[2], prefixes=frozenset({key}), prefill_tokens_per_s=995)
    held = (*NODES[:2], holder, *NODES[3:])
    assert {chosen(decide(held, balance="prefix")) for _ in range(20)} == {"n2"}


def test_tokens_that_a_node_holds_make_it_the_faster_one() -> None:
    key = prefix_keys(FIRST)[0]  # the system message alone
    targets = (NODES[0], replace(NODES[1], prefixes=frozenset({key})), NODES[2])
    decision = decide(targets, prompt=150)
    assert chosen(decision) == "n1"
    best = decision.candidates[0]
    assert 90 <= best.cached_prompt_tokens <= 130
    assert best.parts is not None
    assert best.parts.prefill_ms == pytest.approx(150 - best.cached_prompt_tokens)
    other = ask([{"role": "system", "content": "Other"}, *FIRST[1:]])
    assert decide(targets, other).candidates[0].cached_prompt_tokens == 0


def test_a_conversation_stays_at_its_node() -> None:
    dispatch = Dispatch()
    for index in range(40):
        user = f"user-{index}"
        where = chosen(decide(NODES, ask(user=user), dispatch=dispatch))
        dispatch.keep(session_name(ask(user=user)), f"mec/{where}/m:1", None)
        decision = decide(NODES, ask(SECOND, user=user), dispatch=dispatch)
        assert chosen(decision) == where
        assert "stays at its node" in decision.choice


def test_a_conversation_may_be_named_by_its_key() -> None:
    request = ingest("chat", model="auto", body={"messages": FIRST, "prompt_cache_key": "c-7"})
    dispatch = Dispatch()
    dispatch.keep(session_name(request), "mec/n4/m:1", None)
    assert chosen(decide(NODES, request, dispatch=dispatch)) == "n4"
    assert session_name(ingest("embed", model="auto", body={"input": "x"})) is None


def test_a_conversation_is_handed_over_when_its_user_moves() -> None:
    zones = tuple(replace(state, zone=f"z{i}") for i, state in enumerate(NODES))
    dispatch = Dispatch()
    dispatch.keep(session_name(ask()), "mec/n1/m:1", "z1")
    assert chosen(decide(zones, ask(SECOND, zone="z1"), dispatch=dispatch)) == "n1"
    moved = decide(zones, ask(SECOND, zone="z4"), dispatch=dispatch)
    assert chosen(moved) == "n4"
    assert "moved from 'z1' to 'z4'" in moved.notes[0]


@pytest.mark.parametrize(
    ("facts", "told"),
    [
        ({"unavailable": "failed 3 times"}, "can no longer serve"),
        ({"running": 4, "queued": 60}, "below the best score"),
        ({"decode_tokens_per_s": 3.0}, "n1"),
    ],
)
def test_a_conversation_leaves_a_node_that_degrades(facts: dict[str, Any], told: str) -> None:
    dispatch = Dispatch()
    dispatch.keep(session_name(ask()), "mec/n1/m:1", None)
    worse = tuple(replace(s, **facts) if s.target.node == "n1" else s for s in NODES)
    decision = decide(worse, ask(SECOND), dispatch=dispatch)
    assert chosen(decision) != "n1"
    assert told in decision.notes[0]


def test_sessions_end_and_a_clock_that_jumps_back_loses_none() -> None:
    clock = Clock()
    dispatch = Dispatch(clock=clock)
    dispatch.keep("a", "mec/n1/m:1", None)
    clock.now -= 10_000
    assert dispatch.session("a") is not None
    clock.now += 20_000
    assert dispatch.session("a") is None


def test_sessions_are_bounded() -> None:
    dispatch = Dispatch()
    for index in range(10_050):
        dispatch.keep(str(index), "t", None)
    assert dispatch.session("0") is None
    assert dispatch.session("10049") is not None


def test_hedges_are_bounded_by_their_share() -> None:
    dispatch = Dispatch(hedge_budget=0.1)
    taken = 0
    for _ in range(1000):
        sent = dispatch.begin("a")
        taken += dispatch.take_hedge()
        sent.end()
    assert 90 <= taken <= 106
    assert not dispatch.take_hedge(weight=50)


@pytest.mark.parametrize(
    ("fallback", "asked", "config", "planned"),
    [
        ({}, {}, {}, True),
        ({}, {}, {"hedge": "never"}, False),
        ({}, {}, {"hedge_budget": 0}, False),
        ({"output_usd_per_mtok": 1}, {}, {}, False),
        ({"output_usd_per_mtok": 1}, {}, {"hedge": "always"}, True),
        ({"output_usd_per_mtok": 1}, {"max_cost_usd": 0.00001}, {"hedge": "always"}, False),
        ({"ready_in_ms": 100}, {}, {}, False),
        ({}, {"deadline_ms": 1200}, {}, False),
    ],
)
def test_a_hedge_is_planned_where_it_is_allowed(fallback, asked, config, planned) -> None:
    targets = (node("a", accuracy=0.9), node("b", accuracy=0.8, **fallback))
    decision = decide(targets, ask(**asked), tie_margin=0, **config)
    assert (decision.hedge_after_ms is not None) is planned
    if planned:
        assert decision.candidates[0].latency_ms_p95 == decision.hedge_after_ms
        assert decision.hedge_to == "mec/b/m:1"


def test_a_guess_or_the_same_machine_is_no_ground_for_a_hedge() -> None:
    assumed = node("a", prefill_tokens_per_s=None, decode_tokens_per_s=None, accuracy=0.99)
    assert decide((assumed, node("b", accuracy=0.1))).hedge_after_ms is None
    twin = replace(node("a", accuracy=0.8), target=Target("mec", "m:2", node="a"))
    assert decide((node("a", accuracy=0.9), twin)).hedge_after_ms is None


def garbage(dice: random.Random) -> TargetState:
    numbers = [math.nan, math.inf, -math.inf, -1, 0, 1e308, 1e-320, 3.5, 10**12, 50]
    tier = dice.choice(["device", "mec", "cloud"])
    target = Target(
        tier,
        f"m:{dice.randint(0, 2)}",
        node=f"n{dice.randint(0, 3)}",
        region=dice.choice([None, "eu", "us-1"]),
    )
    fields = (
        *(
            "accuracy",
            "prefill_tokens_per_s",
            "decode_tokens_per_s",
            "round_trip_ms",
            "ready_in_ms",
            "running",
        ),
        *("queued", "parallel", "input_usd_per_mtok", "output_usd_per_mtok", "availability"),
    )
    state = TargetState(
        target, frozenset({"chat"}), frozenset(), 4096, memory_needed_bytes=dice.choice([0, 10**6]),
        reached_over_network=tier != "device", zone=dice.choice([None, "z"]),
    )  # fmt: skip
    return replace(state, **{name: dice.choice(numbers) for name in fields if dice.random() < 0.4})


def test_whatever_telemetry_says_there_is_a_decision_or_a_clear_error() -> None:
    dice = random.Random(2026)
    clock = Clock()
    dispatch = Dispatch(clock=clock)
    decided = 0
    for _ in range(2500):
        clock.now += dice.choice([0.1, -5000, 5000, 0])
        targets = [garbage(dice) for _ in range(dice.randint(0, 6))]
        asked = {
            "privacy": dice.choice(["device", "edge", "any"]),
            "residency": dice.choice([None, "eu"]),
            "policy": dice.choice([None, "private", "cheap", "latency-first"]),
            "max_cost_usd": dice.choice([None, 0, 1e-5]),
            "zone": dice.choice([None, "z", "y"]),
        }
        ttft, decode, length = (dice.choice([0.1, 1, 10]) for _ in range(3))
        odd = Correction(ttft, (decode,) * 4, length, samples=dice.randint(0, 9))
        request = ask(dice.choice([FIRST, SECOND]), **{k: v for k, v in asked.items() if v is not None})
        context = Context(
            RequestFeatures(dice.random(), (), dice.randint(1, 5000), dice.randint(0, 500)),
            DeviceState("t", memory_available_bytes=10**5), NetworkState(),
        )  # fmt: skip
        config = RouterConfig(
            balance=dice.choice(["least-latency", "round-robin", "zone", "cost", "prefix"]), hedge="always"
        )
        try:
            decision = RouterAgent(config).decide(
                request,
                context,
                targets,
                battery_floor=0,
                correction=lambda _, odd=odd: odd,
                dispatch=dispatch,
            )
        except MecrouteError:
            continue
        assert decision.explain()
        assert len(decision.candidates) + len(decision.rejected) == len(targets)
        floor = "edge" if asked["policy"] == "private" and asked["privacy"] == "any" else asked["privacy"]
        for candidate in decision.candidates:
            decided += 1
            numbers = (
                *(candidate.ttft_ms, candidate.latency_ms_p50, candidate.latency_ms_p95, candidate.quality),
                *(candidate.cost_usd, candidate.availability, candidate.scores.total),
            )
            assert all(math.isfinite(number) and number >= 0 for number in numbers)
            assert candidate.target.tier in TIERS_WITHIN[floor]
            assert request.requirements.allows_region(candidate.target.tier, candidate.target.region)
            assert asked["max_cost_usd"] is None or candidate.cost_usd <= asked["max_cost_usd"]
        totals = [c.scores.total for c in decision.candidates]
        assert totals[1:] == sorted(totals[1:], reverse=True)
        if decision.primary is not None:
            dispatch.keep(session_name(request), decision.primary.target.id, asked["zone"])
    assert decided > 1000


def test_a_decision_can_be_copied_and_pickled_and_carries_no_prompt() -> None:
    decision = decide((*NODES, node("gone", unavailable="it is down")))
    pickled = pickle.dumps(decision)
    assert b"What is tea?" not in pickled
    for other in (pickle.loads(pickled), copy.deepcopy(decision)):
        assert other.explain() == decision.explain()
        assert other.to_dict() == decision.to_dict()
        assert isinstance(other.candidates, tuple)


def test_the_numbers_of_the_ranking_are_those_of_the_candidates() -> None:
    dice = random.Random(4)
    targets = [
        node(
            f"n{i}",
            decode_tokens_per_s=dice.uniform(5, 90),
            running=dice.randint(0, 9),
            accuracy=dice.random(),
        )
        for i in range(300)
    ]
    decision = decide(targets)
    scores = [
        0.4 * c.scores.latency + 0.3 * c.scores.quality + 0.2 * c.scores.cost + 0.1 * c.scores.availability
        for c in decision.candidates
    ]
    assert scores == pytest.approx([c.scores.total for c in decision.candidates])
    assert decision.candidates[-1] == decision.candidates[len(targets) - 1]
    assert len(decision.candidates[10:20]) == 10
