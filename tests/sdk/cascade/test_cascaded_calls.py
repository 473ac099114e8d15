"""Cascades against real servers: what is kept, what is escalated, what it costs, what no fault may break."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mecroute import AsyncClient, Client, Config
from mecroute.cascade.calibration import Pair
from mecroute.cascade.marks import Marks
from mecroute.config import (
    BudgetConfig,
    NodeConfig,
)
from mecroute.errors import AllTargetsFailedError, InvalidRequestError
from support.cascades import (
    FIRST,
    HELLO,
    LARGE,
    SECOND,
    SMALL,
    SURE,
    UNSURE,
    calibrated,
    judged,
    report,
    settings,
    text_of,
)
from support.upstream import WORDS, Upstream, upstream


@pytest.fixture
def small() -> Iterator[Upstream]:
    with upstream(report=report(), words=[FIRST], logprob=SURE) as up:
        yield up


@pytest.fixture
def large() -> Iterator[Upstream]:
    with upstream() as up:
        yield up


@pytest.fixture
def config(tmp_path: Path, small: Upstream, large: Upstream) -> Config:
    return calibrated(settings(tmp_path, small, large))


def test_an_answer_that_looks_good_is_kept(config: Config, small: Upstream, large: Upstream) -> None:
    with Client(config) as client:
        reply = client.chat.completions.create(messages=HELLO)
    assert text_of(reply) == FIRST
    told = reply.mecroute
    assert (told.tier, len(told.segments), large.requests) == ("mec", 1, [])
    plan, verdict = told.decision.cascade, told.outcome.cascade
    assert plan is not None
    assert (plan.first, plan.escalate_to) == (SMALL, LARGE)
    assert [c.target.id for c in told.decision.candidates] == [SMALL, LARGE]
    assert verdict is not None
    assert verdict.kept
    assert verdict.delivered
    assert verdict.score == pytest.approx(0.990, abs=1e-3)
    assert f"below {plan.threshold:.3f}" in told.decision.explain()
    assert f"{LARGE} is asked" in told.decision.explain()
    assert json.loads(json.dumps(told.to_dict()))["outcome"]["cascade"]["kept"] is True


def test_one_that_does_not_is_escalated_and_costs_both(
    config: Config, small: Upstream, large: Upstream
) -> None:
    small.logprob = UNSURE
    node = NodeConfig(
        name="n1", url=small.url, region="eu-1", input_usd_per_mtok=4.0, output_usd_per_mtok=8.0
    )
    with Client(config.model_copy(update={"nodes": (node,)})) as client:
        reply = client.chat.completions.create(messages=HELLO)
    assert text_of(reply) == SECOND
    told = reply.mecroute
    assert (told.tier, told.model) == ("cloud", "big")
    assert [(s.target_id, s.escalated_to, s.error) for s in told.segments] == [
        (SMALL, LARGE, None),
        (LARGE, None, None),
    ]
    verdict = told.outcome.cascade
    assert verdict is not None
    assert not verdict.kept
    assert not verdict.delivered
    assert (verdict.prompt_tokens, verdict.output_tokens) == (5, 1)
    assert verdict.cost_usd == pytest.approx((5 * 4 + 1 * 8) / 1e6)
    assert told.outcome.cost_usd == pytest.approx((5 * 4 + 1 * 8 + 5 * 10) / 1e6)
    assert told.outcome.latency_ms >= verdict.latency_ms > 0
    assert told.outcome.output_tokens == len(WORDS)


@pytest.mark.parametrize("logprob", [SURE, UNSURE])
def test_the_log_probabilities_are_seen_only_by_who_asked_for_them(
    config: Config, small: Upstream, large: Upstream, logprob: float
) -> None:
    small.logprob = logprob
    with Client(config) as client:
        plain = client.chat.completions.create(messages=HELLO)
        asked = client.chat.completions.create(messages=HELLO, logprobs=True, temperature=0.5)
    assert "logprobs" not in plain.to_dict()["choices"][0]
    assert ("logprobs" in asked.to_dict()["choices"][0]) == (logprob == SURE)
    assert all(request["logprobs"] is True for request in small.requests)
    assert [request.get("logprobs") for request in large.requests] in ([], [None, True])


def test_an_answer_without_log_probabilities_cannot_be_judged_and_is_escalated(
    config: Config, small: Upstream
) -> None:
    small.logprob = None
    with Client(config) as client:
        reply = client.chat.completions.create(messages=HELLO)
    assert text_of(reply) == SECOND
    verdict = reply.mecroute.outcome.cascade
    assert verdict is not None
    assert verdict.score is None
    assert "nothing that mean-logprob could judge" in verdict.reason


def test_a_plainly_bad_answer_is_escalated_however_sure_the_model_is(config: Config, small: Upstream) -> None:
    small.words = ["I'm sorry, but I cannot help with that."]
    with Client(config) as client:
        assert text_of(client.chat.completions.create(messages=HELLO)) == SECOND


def test_a_target_that_refuses_log_probabilities_is_passed_over(config: Config, small: Upstream) -> None:
    small.refuses_logprobs = True
    with Client(config) as client:
        reply = client.chat.completions.create(messages=HELLO)
    assert text_of(reply) == SECOND
    assert "logprobs" in (reply.mecroute.segments[0].error or "")


def test_a_first_target_that_fails_is_replaced(config: Config, small: Upstream) -> None:
    small.status = 500
    with Client(config) as client:
        reply = client.chat.completions.create(messages=HELLO)
    assert text_of(reply) == SECOND
    assert reply.mecroute.outcome.cascade is None


@pytest.mark.parametrize(("status", "code"), [(500, None), (429, None), (400, None), (401, None)])
@pytest.mark.parametrize("stream", [False, True])
def test_where_escalating_fails_the_first_answer_is_better_than_an_error(
    config: Config, small: Upstream, large: Upstream, status: int, code: str | None, stream: bool
) -> None:
    small.logprob, large.status, large.error_code = UNSURE, status, code
    with Client(config) as client:
        reply = client.chat.completions.create(messages=HELLO, stream=stream, requirements={"cascade": True})
        text = read(reply) if stream else text_of(reply)
        told = reply.mecroute
        assert text == FIRST
        assert (told.tier, told.outcome.error) == ("mec", None)
        assert told.outcome.cascade is not None
        assert (told.outcome.cascade.kept, told.outcome.cascade.delivered) == (False, True)
        assert [s.error is None for s in told.segments] == [True, False]
        # Nobody else is given an answer that was judged to be poor.
        large.status = None
        if not stream:
            assert text_of(client.chat.completions.create(messages=HELLO, requirements={"deadline_ms": 9e5}))


def read(stream: Any) -> str:
    return "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)


def test_both_failing_is_an_error(config: Config, small: Upstream, large: Upstream) -> None:
    small.status = large.status = 500
    with Client(config) as client, pytest.raises(AllTargetsFailedError):
        client.chat.completions.create(messages=HELLO)


def test_a_wrong_request_is_told_to_be_one(config: Config, small: Upstream, large: Upstream) -> None:
    small.status = large.status = 422
    with Client(config) as client, pytest.raises((InvalidRequestError, AllTargetsFailedError)):
        client.chat.completions.create(messages=HELLO)


@pytest.mark.parametrize("requirements", [{"privacy": "edge"}, {"residency": "eu"}])
@pytest.mark.parametrize("stream", [False, True])
def test_no_escalation_crosses_a_floor(
    config: Config, small: Upstream, large: Upstream, requirements: dict[str, Any], stream: bool
) -> None:
    small.logprob = UNSURE
    with Client(config) as client:
        reply = client.chat.completions.create(
            messages=HELLO, requirements={"cascade": True, **requirements}, stream=stream
        )
        assert (read(reply) if stream else text_of(reply)) == FIRST
        assert reply.mecroute.decision.cascade is None
        assert "no cascade: nothing that is left" in reply.mecroute.decision.explain()
    assert large.requests == []


def test_a_floor_is_checked_again_on_the_way_out(
    config: Config, small: Upstream, large: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if the decision had let a target through that it must not."""
    from dataclasses import replace

    from mecroute.pipeline import Pipeline
    from mecroute.requirements import Requirements

    small.logprob = UNSURE
    execution_of = Pipeline._execution

    def tightened(pipeline: Any, request: Any, decision: Any) -> Any:
        return execution_of(pipeline, replace(request, requirements=Requirements(privacy="edge")), decision)

    monkeypatch.setattr(Pipeline, "_execution", tightened)
    with Client(config) as client:
        reply = client.chat.completions.create(messages=HELLO)
    assert text_of(reply) == FIRST
    assert large.requests == []
    assert reply.mecroute.outcome.cascade is not None
    assert "outside the request's privacy" in reply.mecroute.outcome.cascade.reason


def test_a_first_stage_that_takes_too_long_leaves_time_for_the_second(
    config: Config, small: Upstream, large: Upstream
) -> None:
    small.delay_s = 30
    with Client(config) as client:
        client.route(messages=HELLO)  # the node is known from here on: no deadline is spent on that
        reply = client.chat.completions.create(messages=HELLO, requirements={"deadline_ms": 4000})
    assert text_of(reply) == SECOND
    first = reply.mecroute.segments[0]
    assert (first.overtaken_by, first.error) == (LARGE, None)
    assert reply.mecroute.outcome.latency_ms < 4000


@pytest.mark.parametrize("stream", [False, True])
def test_a_second_stage_that_takes_too_long_leaves_the_first_answer(
    config: Config, small: Upstream, large: Upstream, stream: bool
) -> None:
    small.logprob, large.delay_s = UNSURE, 30
    begun = time.monotonic()
    with Client(config) as client:
        client.route(messages=HELLO)  # as above
        reply = client.chat.completions.create(
            messages=HELLO, requirements={"deadline_ms": 4000, "cascade": True}, stream=stream
        )
        assert (read(reply) if stream else text_of(reply)) == FIRST
    assert time.monotonic() - begun < 20
    outcome = reply.mecroute.outcome
    assert "deadline" in outcome.cascade.reason
    assert outcome.error is None
    assert outcome.cost_usd > 0, "what was begun and given up is reckoned"


def test_a_deadline_without_room_for_both_stages_plans_none(config: Config, large: Upstream) -> None:
    with Client(config) as client:
        roomy = client.route(messages=HELLO, requirements={"cascade": True})
        assert roomy.cascade is not None
        times = [c.latency_ms_p50 for c in roomy.candidates]
        deadline_ms = round(max(times) + min(times) / 2)  # each would fit by itself
        tight = client.route(messages=HELLO, requirements={"deadline_ms": deadline_ms, "cascade": True})
    assert tight.cascade is None
    assert any(f"the deadline is {deadline_ms} ms" in note for note in tight.notes)


def test_both_stages_have_to_fit_the_most_that_an_answer_may_cost(
    tmp_path: Path, small: Upstream, large: Upstream
) -> None:
    config = calibrated(settings(tmp_path, small, large, node={"input_usd_per_mtok": 9.0}))
    with Client(config) as client:
        whole = client.route(messages=HELLO, requirements={"cascade": True})
        assert whole.cascade is not None
        costs = {c.target.id: c.cost_usd for c in whole.candidates}
        assert whole.cascade.cost_usd_most == pytest.approx(sum(costs.values()))
        assert costs[SMALL] < whole.cascade.cost_usd < whole.cascade.cost_usd_most
        # Each fits by itself.
        limit = max(costs.values()) * 1.01
        tight = client.route(messages=HELLO, requirements={"cascade": True, "max_cost_usd": limit})
    assert len(tight.candidates) == 2
    assert tight.cascade is None
    assert any("both stages may cost" in note for note in tight.notes)


def test_a_budget_has_to_have_room_for_both_stages(tmp_path: Path, small: Upstream, large: Upstream) -> None:
    """Worst cases here: 57 tokens of prompt, so $0.00051 and $0.00057."""
    prices = {"node": {"input_usd_per_mtok": 9.0}}
    for limit, planned, left in ((1.0, True, 2), (0.0010, False, 2), (0.0003, False, 0)):
        budgets = (BudgetConfig(name="all", limit_usd=limit),)
        folder = tmp_path / str(limit)
        config = calibrated(settings(folder, small, large, **prices, budgets=budgets))
        with Client(config) as client:
            decision = client.route(messages=HELLO, requirements={"cascade": True}, max_tokens=5)
        assert (decision.cascade is not None, len(decision.candidates)) == (planned, left), limit
        if left and not planned:
            assert any("no budget has room for both" in note for note in decision.notes)
            assert decision.primary is not None
            assert decision.primary.target.id == LARGE, "as if no cascade had been planned"


def test_every_call_of_a_cascade_is_charged(tmp_path: Path, small: Upstream, large: Upstream) -> None:
    from mecroute.budgets.gate import ledger_path
    from mecroute.budgets.ledger import Budget, Ledger

    small.logprob = UNSURE
    budgets = (BudgetConfig(name="all", limit_usd=1.0),)
    config = calibrated(settings(tmp_path, small, large, node={"input_usd_per_mtok": 4.0}, budgets=budgets))
    with Client(config) as client:
        told = client.chat.completions.create(messages=HELLO, max_tokens=20).mecroute
    ledger = Ledger(ledger_path(tmp_path / "state.sqlite3"))
    (balance,) = ledger.balances([Budget("all", 1.0, "day")])
    ledger.close()
    assert balance.spent_usd == pytest.approx(told.outcome.cost_usd)
    assert balance.spent_usd == pytest.approx((5 * 4 + 5 * 10) / 1e6)


def test_answers_are_compared_where_that_is_the_judge(
    tmp_path: Path, small: Upstream, large: Upstream
) -> None:
    config = calibrated(
        settings(tmp_path, small, large, cascade={"judge": "agreement"}, node={"input_usd_per_mtok": 4.0}),
        [Pair(Marks(agreement=float(right)), right) for right in [True] * 300 + [False] * 100],
    )
    small.words = ["Paris"]
    with Client(config) as client:
        small.others = ["Paris."]
        kept = client.chat.completions.create(messages=HELLO)
        assert [request.get("temperature") for request in small.requests] == [None, 0.7, 0.7]
        assert len({request.get("seed") for request in small.requests}) == 3
        small.requests.clear()
        small.others = ["London", "Rome"]
        escalated = client.chat.completions.create(messages=HELLO, requirements={"cache": "off"})
    assert text_of(kept) == "Paris"
    assert kept.mecroute.outcome.cascade is not None
    assert kept.mecroute.outcome.cascade.prompt_tokens == 15
    assert kept.mecroute.outcome.cost_usd == pytest.approx(15 * 4 / 1e6)
    assert text_of(escalated) == SECOND
    assert escalated.mecroute.outcome.cost_usd == pytest.approx((15 * 4 + 5 * 10) / 1e6)


def test_a_stream_is_cascaded_only_where_that_is_allowed_and_held_until_then(
    config: Config, small: Upstream, large: Upstream
) -> None:
    options = {"include_usage": True}
    with Client(config) as client:
        plain = client.chat.completions.create(messages=HELLO, stream=True)
        assert read(plain) == SECOND, "the better target, as streams are not cascaded by default"
        assert plain.mecroute is not None
        assert plain.mecroute.decision.cascade is None
        held = client.chat.completions.create(
            messages=HELLO, stream=True, requirements={"cascade": True}, stream_options=options
        )
        chunks = list(held)
        small.logprob = UNSURE
        other = client.chat.completions.create(messages=HELLO, stream=True, requirements={"cascade": True})
        assert read(other) == SECOND
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == FIRST
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 1
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert all("stream_options" not in request for request in small.requests)
    told = other.mecroute
    assert told is not None
    assert [s.target_id for s in told.segments] == [SMALL, LARGE]
    assert told.outcome.cascade is not None
    assert told.outcome.ttft_ms is not None
    assert told.outcome.ttft_ms > told.outcome.cascade.latency_ms


def test_an_escalated_stream_that_is_lost_goes_on_elsewhere(
    config: Config, small: Upstream, large: Upstream
) -> None:
    small.logprob, large.break_after = UNSURE, 4
    small.words = list(WORDS)
    with Client(config) as client:
        stream = client.chat.completions.create(messages=HELLO, stream=True, requirements={"cascade": True})
        assert read(stream) == SECOND
    told = stream.mecroute
    assert told is not None
    assert [(s.target_id, s.seam) for s in told.segments] == [(SMALL, None), (LARGE, None), (SMALL, "exact")]


@pytest.mark.parametrize(
    "options",
    [
        {"n": 2},
        {"tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}]},
        {"requirements": {"cascade": False}},
        {"requirements": {"policy": "latency-first"}},
    ],
)
def test_what_is_not_cascaded(config: Config, options: dict[str, Any]) -> None:
    with Client(config) as client:
        decision = client.route(messages=HELLO, **options)
        assert decision.cascade is None
        assert not any("cascade" in note for note in decision.notes)
        asked = client.route(messages=HELLO, requirements={"policy": "latency-first", "cascade": True})
        assert asked.cascade is not None


def test_it_is_off_by_default(tmp_path: Path, small: Upstream, large: Upstream) -> None:
    config = calibrated(settings(tmp_path, small, large, cascade={"enabled": False}))
    with Client(config) as client:
        assert client.route(messages=HELLO).cascade is None
        assert client.chat.completions.create(messages=HELLO).mecroute.outcome.cascade is None
        assert client.route(messages=HELLO, requirements={"cascade": True}).cascade is not None


def test_with_too_few_judged_answers_it_says_so_and_does_without(
    tmp_path: Path, small: Upstream, large: Upstream
) -> None:
    config = calibrated(settings(tmp_path, small, large), judged(30))
    with Client(config) as client:
        reply = client.chat.completions.create(messages=HELLO)
    assert reply.mecroute.decision.cascade is None
    assert "30 of its answers were judged, at least 80 are needed" in reply.mecroute.decision.explain()
    assert text_of(reply) == SECOND


def test_the_async_client_does_the_same(config: Config, small: Upstream, large: Upstream) -> None:
    async def ask() -> tuple[Any, Any]:
        async with AsyncClient(config) as client:
            kept = await client.chat.completions.create(messages=HELLO)
            small.logprob = UNSURE
            escalated = await client.chat.completions.create(messages=HELLO, temperature=0.9)
            return kept, escalated

    kept, escalated = asyncio.run(ask())
    assert (text_of(kept), text_of(escalated)) == (FIRST, SECOND)
    assert escalated.mecroute.outcome.cascade.delivered is False


def test_classes_are_judged_by_their_probability(tmp_path: Path) -> None:
    facts = {"tasks": ["classify"], "decode_tokens_per_s": None}
    with (
        upstream(report=report(**facts), classes=(0.97, 0.03)) as near,
        upstream(report=report(**facts, ref="large:1", accuracy=0.9), classes=(0.2, 0.8)) as far,
    ):
        config = settings(tmp_path, near, far)
        config = config.model_copy(
            update={"cloud": (), "nodes": (*config.nodes, NodeConfig(name="n2", url=far.url))}
        )
        pairs = [Pair(Marks(probability=p / 300), p > 200) for p in range(300)]
        calibrated(config, pairs)
        asked = {"cascade": True}
        with Client(config) as client:
            sure = client.classify(input="edge", requirements=asked)
            near.classes = (0.4, 0.6)
            unsure = client.classify(input=["edge", "cloud"], requirements=asked)
    assert (sure.data[0].label, sure.mecroute.node) == ("a", "n1")
    assert (unsure.data[0].label, unsure.mecroute.node) == ("b", "n2")
    assert sure.mecroute.outcome.cascade is not None
    assert sure.mecroute.outcome.cascade.judge == "probability"
    assert unsure.mecroute.outcome.cascade is not None
    assert unsure.mecroute.outcome.cascade.score == pytest.approx(0.6)
