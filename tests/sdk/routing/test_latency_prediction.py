"""Latency as a distribution: parts that add up, percentiles that hold, loads that are lied about."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from statistics import median

import pytest

from mecroute.context import RequestFeatures
from mecroute.decision import Candidate, Scores
from mecroute.outcome import Segment
from mecroute.predict.latency import Ahead, Workload, latency_notes, predict_latency
from mecroute.predict.line import Line, Pace, Place
from mecroute.predict.residuals import NO_CORRECTION, Correction, Residuals
from mecroute.target import Target, TargetState

NODE = TargetState(
    Target("mec", "m:1", node="n1"), frozenset({"chat"}), frozenset(), 4096,
    prefill_tokens_per_s=1000, decode_tokens_per_s=50, round_trip_ms=20, parallel=4,
)  # fmt: skip
WORK = Workload(500, 100)
PACE = Pace(4, 20.0, 0.58, 1000)


def candidate(state: TargetState, work: Workload, correction: Correction, *, cached: int = 0) -> Candidate:
    p = predict_latency(state, work, correction, cached_tokens=cached)
    return Candidate(
        state.target, p.ttft_ms, p.p50_ms, p.p95_ms, 0.8, 0.0, 1.0, Scores(1, 1, 1, 1, 1),
        ttft_ms_p95=p.ttft_p95_ms, parts=p.parts, output_tokens=p.output_tokens,
        claimed_ttft_ms=p.claimed_ttft_ms, claimed_wait_ms=p.claimed_wait_ms,
        crowd=p.crowd,
    )  # fmt: skip


def test_the_parts_add_up_to_the_median() -> None:
    p = predict_latency(
        replace(NODE, ready_in_ms=300, running=6), WORK, Correction(ttft=1.3, decode=(1.1,) * 4)
    )
    parts = p.parts
    assert p.p50_ms == pytest.approx(
        parts.network_ms + parts.load_ms + parts.queue_ms + parts.prefill_ms + parts.decode_ms
    )
    assert p.ttft_ms < p.ttft_p95_ms
    assert p.p50_ms < p.p95_ms
    alone = predict_latency(NODE, WORK, NO_CORRECTION)
    assert alone.parts.prefill_ms == pytest.approx(500)
    assert alone.parts.decode_ms == pytest.approx(2000)
    assert alone.parts.queue_ms == 0


def test_company_slows_decoding_and_a_full_node_makes_wait() -> None:
    shares, waits = [], []
    for running in (0, 2, 3, 4, 12):
        p = predict_latency(replace(NODE, running=running), WORK, NO_CORRECTION)
        shares.append(p.parts.decode_ms)
        waits.append(p.parts.queue_ms)
    assert shares == sorted(shares)
    assert shares[0] < shares[1]
    assert shares[2] == shares[4]  # never more than `parallel` at once
    assert waits[:3] == [0, 0, 0]
    assert 0 < waits[3] < waits[4]
    told = predict_latency(replace(NODE, running=3, decode_slowdown=0.1), WORK, NO_CORRECTION)
    assert told.parts.decode_ms == pytest.approx(2600)  # as much as the node measured


def test_requests_of_ones_own_count_before_a_report_does() -> None:
    assert predict_latency(NODE, WORK, NO_CORRECTION, ahead=Ahead(8)).parts.queue_ms > 0


def test_prompts_that_stand_before_it_are_waited_for() -> None:
    line = Line()
    line.join(0.0, Place(400, 100), PACE)
    own = predict_latency(NODE, WORK, NO_CORRECTION, ahead=Ahead(1, 100.0, line=line))
    assert own.parts.queue_ms == pytest.approx(400 + 20)  # its prompt, and a token of its answer
    assert own.ttft_ms == pytest.approx(20 + 420 + 500)
    assert own.pace == PACE
    assert own.parts.decode_ms == pytest.approx(99 * 20 * 1.58, rel=0.01)  # beside the other's answer
    # 600 tokens were left 0.4 s ago, by the node's word; of this client's some may be among them.
    told = replace(NODE, running=2, prefill_left_tokens=600, told_at_s=10.0)
    assert predict_latency(told, WORK, NO_CORRECTION, ahead=Ahead(now_s=10.4)).parts.queue_ms == (
        pytest.approx(200)
    )
    behind = Ahead(1, 100.0, now_s=0.1, line=line)
    assert predict_latency(
        replace(told, told_at_s=0.1), WORK, NO_CORRECTION, ahead=behind
    ).parts.queue_ms == pytest.approx(600)
    # It told of no more requests than this client has there, of which that knows better.
    alone = replace(told, running=1, told_at_s=0.1)
    assert predict_latency(alone, WORK, NO_CORRECTION, ahead=behind).parts.queue_ms == pytest.approx(320)
    assert predict_latency(told, WORK, NO_CORRECTION, ahead=Ahead(now_s=99.0)).parts.queue_ms == 0


def test_what_every_request_takes_on_top_is_told_from_what_a_token_takes() -> None:
    residuals, dice = Residuals(), random.Random(4)

    def truth(tokens: int) -> float:
        return 20 + 150 + 2.5 * max(0, tokens - 40)  # 40 tokens are in a cache, one takes 2.5 ms and not 1

    for _ in range(60):
        work = Workload(dice.choice([60, 100, 400, 1500]), 20, 20)
        told = candidate(NODE, work, residuals.correction(NODE.target.id))
        ttft = truth(work.prompt_tokens) * dice.lognormvariate(0, 0.05)
        segment = Segment(NODE.target.id, "mec", output_tokens=20, ttft_ms=ttft, latency_ms=ttft + 380)
        residuals.learn(told, RequestFeatures(0.5, (), work.prompt_tokens, 20), segment)
    correction = residuals.correction(NODE.target.id)
    for tokens in (50, 200, 1000, 3000):
        p = predict_latency(NODE, Workload(tokens, 20, 20), correction)
        assert p.ttft_ms == pytest.approx(truth(tokens), rel=0.1)


def test_beside_others_the_tokens_of_a_prompt_tell_of_it_and_not_its_time() -> None:
    residuals, dice = Residuals(), random.Random(6)
    for _ in range(60):
        tokens = dice.choice([60, 400, 1500])
        work = Workload(tokens, 20, 20)
        told = candidate(NODE, work, residuals.correction(NODE.target.id))
        # A third less than estimated; what came later made it wait for any time.
        segment = Segment(
            NODE.target.id, "mec", output_tokens=20, ttft_ms=told.ttft_ms + dice.uniform(0, 9000),
            latency_ms=20_000, computed_tokens=round(tokens * 2 / 3), alone=False,
        )  # fmt: skip
        residuals.learn(told, RequestFeatures(0.5, (), tokens, 20), segment)
        residuals.overtaken(told, told.ttft_ms * 5, alone=False)
    correction = residuals.correction(NODE.target.id)
    assert correction.wait_ms is None  # and that is no lie of the node's about its load
    for tokens in (60, 1000):
        p = predict_latency(NODE, Workload(tokens, 20, 20), correction)
        assert p.ttft_ms == pytest.approx(20 + tokens * 2 / 3, rel=0.1)


def test_what_a_node_holds_already_is_not_prefilled() -> None:
    p = predict_latency(NODE, WORK, NO_CORRECTION, cached_tokens=400)
    assert p.parts.prefill_ms == pytest.approx(100)
    assert "holds about 400 tokens" in " ".join(latency_notes(NODE, p, NO_CORRECTION, 400))


def test_a_limit_on_the_answer_bounds_the_tail() -> None:
    free = predict_latency(NODE, Workload(500, 100), NO_CORRECTION)
    bound = predict_latency(NODE, Workload(500, 100, 100), NO_CORRECTION)
    assert free.p50_ms == bound.p50_ms
    assert bound.p95_ms < free.p95_ms


def test_a_target_without_a_profile_says_what_is_assumed() -> None:
    state = replace(NODE, prefill_tokens_per_s=None, decode_tokens_per_s=None)
    p = predict_latency(state, WORK, NO_CORRECTION)
    assert any("assumed" in n and "800 / 40.0" in n for n in latency_notes(state, p, NO_CORRECTION, 0))


def serve(
    dice: random.Random, residuals: Residuals, *, rounds: int, slow: float, sigma: float, lengths: float
) -> tuple[list[bool], list[bool], list[float]]:
    """Predict, answer by another law than the profile's, learn; whether each was within its p95."""
    whole, first, errors = [], [], []
    for _ in range(rounds):
        work = Workload(dice.randint(20, 2000), dice.randint(20, 200), 1000)
        correction = residuals.correction(NODE.target.id)
        told = candidate(NODE, work, correction)
        truth = predict_latency(NODE, work, NO_CORRECTION)
        tokens = max(1, min(1000, round(work.output_tokens * dice.lognormvariate(0, lengths))))
        ttft = truth.ttft_ms * slow * dice.lognormvariate(0, sigma)
        latency = ttft + (tokens - 1) * 20 * slow * dice.lognormvariate(0, sigma / 2)
        first.append(ttft <= told.ttft_ms_p95)
        whole.append(latency <= told.latency_ms_p95)
        errors.append(abs(math.log(latency / told.latency_ms_p50)))
        segment = Segment(NODE.target.id, "mec", output_tokens=tokens, ttft_ms=ttft, latency_ms=latency)
        residuals.learn(told, RequestFeatures(0.5, (), work.prompt_tokens, work.output_tokens), segment)
    return whole, first, errors


@pytest.mark.parametrize("sigma", [0.1, 0.35, 0.8])
@pytest.mark.parametrize("slow", [0.2, 1.0, 3.0, 6.0])
@pytest.mark.parametrize("lengths", [0.05, 0.7])
def test_the_95th_percentile_covers_95_percent(sigma: float, slow: float, lengths: float) -> None:
    residuals = Residuals()
    dice = random.Random(f"{sigma}{slow}{lengths}")
    serve(dice, residuals, rounds=60, slow=slow, sigma=sigma, lengths=lengths)
    whole, first, _ = serve(dice, residuals, rounds=1500, slow=slow, sigma=sigma, lengths=lengths)
    assert 0.92 <= sum(whole) / len(whole) <= 0.98
    assert 0.92 <= sum(first) / len(first) <= 0.98


def test_the_median_is_learned_and_coverage_outlives_a_change_of_speed() -> None:
    residuals, dice = Residuals(), random.Random(5)
    serve(dice, residuals, rounds=100, slow=2, sigma=0.2, lengths=0.05)
    _, _, errors = serve(dice, residuals, rounds=300, slow=2, sigma=0.2, lengths=0.05)
    assert median(errors) < 0.2
    whole, first, _ = serve(dice, residuals, rounds=1000, slow=5, sigma=0.2, lengths=0.05)
    assert sum(whole) / len(whole) > 0.92
    assert sum(first) / len(first) > 0.92


def test_a_node_that_lies_about_its_load_is_found_out_and_believed_again() -> None:
    residuals, features = Residuals(), RequestFeatures(0.5, (), 500, 100)

    def ask(waits_ms: float) -> tuple[Candidate, Correction]:
        correction = residuals.correction(NODE.target.id)
        told = candidate(NODE, WORK, correction)  # it always reports that it is idle
        ttft = 520 + waits_ms
        segment = Segment(NODE.target.id, "mec", output_tokens=100, ttft_ms=ttft, latency_ms=ttft + 99 * 20)
        residuals.learn(told, features, segment)
        return told, correction

    for _ in range(40):
        told, correction = ask(4000)
    assert correction.wait_ms == pytest.approx(4000, rel=0.05)
    assert told.ttft_ms == pytest.approx(4520, rel=0.15)
    p = predict_latency(NODE, WORK, correction)
    assert any("is not believed" in note for note in latency_notes(NODE, p, correction, 0))
    for _ in range(80):
        told, correction = ask(0)
    assert correction.wait_ms is None
    assert told.ttft_ms == pytest.approx(520, rel=0.15)


@pytest.mark.parametrize("slow", [0.2, 2, 6])
def test_a_node_that_is_slower_or_faster_than_its_profile_keeps_being_believed(slow: float) -> None:
    residuals, features = Residuals(), RequestFeatures(0.5, (), 500, 100)
    for _ in range(120):
        told = candidate(NODE, WORK, residuals.correction(NODE.target.id))
        ttft = 520 * slow
        segment = Segment(
            NODE.target.id, "mec", output_tokens=100, ttft_ms=ttft, latency_ms=ttft + 99 * 20 * slow
        )
        residuals.learn(told, features, segment)
    correction = residuals.correction(NODE.target.id)
    assert correction.wait_ms is None
    assert candidate(NODE, WORK, correction).ttft_ms == pytest.approx(520 * slow, rel=0.05)
    assert correction.decode[0] == pytest.approx(slow, rel=0.05)


def test_a_node_that_claims_to_be_busy_and_is_not_gets_work_again() -> None:
    residuals, features = Residuals(), RequestFeatures(0.5, (), 500, 100)
    busy = replace(NODE, running=4, queued=20)
    for _ in range(40):
        told = candidate(busy, WORK, residuals.correction(NODE.target.id))
        segment = Segment(NODE.target.id, "mec", output_tokens=100, ttft_ms=520, latency_ms=520 + 99 * 20)
        residuals.learn(told, features, segment)
    assert residuals.correction(NODE.target.id).wait_ms == pytest.approx(0, abs=1)
    assert told.ttft_ms == pytest.approx(520, rel=0.2)


def test_what_was_overtaken_by_a_hedge_widens_the_tail() -> None:
    residuals = Residuals()
    told = candidate(NODE, WORK, NO_CORRECTION)
    for _ in range(10):
        residuals.overtaken(told, told.ttft_ms * 3)
    correction = residuals.correction(NODE.target.id)
    assert correction.ttft_spread > NO_CORRECTION.ttft_spread
    assert candidate(NODE, WORK, correction).ttft_ms > told.ttft_ms


def test_what_was_learned_outlives_a_restart_and_nonsense_in_it_is_left_out() -> None:
    residuals, dice = Residuals(), random.Random(3)
    serve(dice, residuals, rounds=50, slow=2, sigma=0.3, lengths=0.3)
    kept = residuals.take_changes()
    assert residuals.take_changes() == {}
    other = Residuals()
    other.restore(NODE.target.id, kept[NODE.target.id])
    assert other.correction(NODE.target.id).ttft == residuals.correction(NODE.target.id).ttft
    assert other.correction(NODE.target.id).samples == 50
    broken = {
        "ttft_factor": math.nan,
        "ttft_base_ms": 1e9,
        "log_decode": 1e9,
        "samples": -4,
        "ttft_spread": "wide",
        "calibration": None,
    }
    other.restore(NODE.target.id, broken)
    again = other.correction(NODE.target.id)
    assert (again.ttft, again.ttft_base_ms, again.decode[0], again.samples) == (1, 0, 1, 0)
    other.forget()
    assert other.correction(NODE.target.id) is NO_CORRECTION


def test_a_widened_correction_moves_the_percentiles_and_not_the_median() -> None:
    plain, wide = (predict_latency(NODE, WORK, c) for c in (NO_CORRECTION, NO_CORRECTION.widened(2)))
    assert wide.p50_ms == plain.p50_ms
    assert wide.p95_ms > plain.p95_ms
    assert wide.ttft_p95_ms > plain.ttft_p95_ms


def test_numbers_that_cannot_be_never_reach_a_prediction() -> None:
    dice = random.Random(11)
    odd = [math.nan, math.inf, -math.inf, -1.0, 0.0, 1e300, 5e-324, -1e300, 20.0]
    for _ in range(3000):
        state = replace(
            NODE,
            **{
                name: dice.choice(odd)
                for name in ("prefill_tokens_per_s", "decode_tokens_per_s", "round_trip_ms", "ready_in_ms")
            },
            **{name: dice.choice([*odd, -3, 10**9]) for name in ("running", "queued", "parallel")},
        )
        p = predict_latency(state, WORK, NO_CORRECTION, ahead=Ahead(dice.randint(0, 3), 5.0))
        assert all(math.isfinite(v) and v >= 0 for v in (p.ttft_ms, p.p50_ms, p.p95_ms, p.ttft_p95_ms)), state
        assert p.ttft_ms <= p.p50_ms <= p.p95_ms
        assert latency_notes(state, p, NO_CORRECTION, 0)
