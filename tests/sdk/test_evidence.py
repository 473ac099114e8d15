"""Signs of bad answers, agreement of two, posteriors, drift, regret."""

from __future__ import annotations

import json
import math
import random
from typing import Any

import pytest

from mecroute.context import RequestFeatures
from mecroute.decision import Candidate, Decision, Scores
from mecroute.evidence.agreement import agreement
from mecroute.evidence.drift import DriftMonitor
from mecroute.evidence.posterior import QualityEvidence
from mecroute.evidence.regret import regret, regret_after
from mecroute.evidence.signals import Answer, answer_of, signals
from mecroute.outcome import Outcome
from mecroute.requirements import Requirements
from mecroute.target import Target

PROSE = (
    "The old mill stands by the river, and in the spring its wheel turns again. Farmers once brought their "
    "grain from six villages; today a baker uses two of the rooms. Visitors may see the stones on Sundays, "
    "when the miller's granddaughter explains how the gears were cut from pear wood, and why they squeak. "
    "In dry summers the water is too low, so a small motor helps. Nobody minds, she says, as long as the "
    "bread is good. The museum next door keeps the ledgers, a wedding dress and four broken lanterns."
)


@pytest.mark.parametrize(
    ("text", "refused"),
    [
        ("I'm sorry, but I can't help with that.", True),
        ("I cannot assist with this request.", True),
        ("Sorry, I am unable to provide medical advice.", True),
        ("As an AI language model, I don't have opinions.", True),
        ("I’m sorry, but I won’t write that.", True),
        ("I am afraid that I cannot answer this.", True),
        ("I can't wait to see the fox!", False),
        ("I'm sorry for your loss. Here is a letter you could send.", False),
        ('The phrase "I cannot help with that" is a refusal.', False),
        ("Paris.", False),
    ],
)
def test_refusals_are_known_by_how_they_open(text: str, refused: bool) -> None:
    assert signals(Answer(text)).refused is refused


def test_emptiness_repetition_and_truncation_are_seen() -> None:
    assert signals(Answer("  \n")).bad == ("empty",)
    assert signals(Answer("", has_calls=True)).bad == ()
    assert signals(Answer("the fox and the fox and " * 60)).bad == ("repetitive",)
    assert signals(Answer(PROSE)).bad == ()
    assert signals(Answer(PROSE * 1 + " \n".join(f"{i}. item" for i in range(9)))).bad == ()
    cut = signals(Answer("The fox", finish_reason="length"))
    assert cut.truncated
    assert cut.bad == ()


SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "n": {"type": "integer"},
        "tags": {"type": "array", "items": {"type": "string"}},
        "kind": {"enum": ["a", "b"]},
    },
    "required": ["n"],
    "additionalProperties": False,
}


@pytest.mark.parametrize(
    ("text", "broken"),
    [
        ('{"n": 1, "tags": ["x"], "kind": "a"}', False),
        ('{"n": 1.5}', True),
        ('{"n": true}', True),
        ('{"tags": []}', True),
        ('{"n": 1, "tags": [1]}', True),
        ('{"n": 1, "kind": "c"}', True),
        ('{"n": 1, "more": 2}', True),
        ("n is 1", True),
    ],
)
def test_violations_of_a_json_schema_are_seen(text: str, broken: bool) -> None:
    asked = {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}
    assert signals(Answer(text, response_format=asked)).invalid_json is broken


@pytest.mark.parametrize(
    "schema", [{"type": 5}, {"required": 3, "properties": 4}, {"type": ["x", None]}, [], 7]
)
def test_a_schema_that_is_nonsense_finds_nothing(schema: Any) -> None:
    asked = {"type": "json_schema", "json_schema": {"schema": schema}}
    assert not signals(Answer('{"a": true}', response_format=asked)).invalid_json


def test_json_that_was_cut_off_is_truncated_and_not_invalid() -> None:
    cut = signals(Answer('{"n": ', finish_reason="length", response_format={"type": "json_object"}))
    assert (cut.truncated, cut.invalid_json) == (True, False)


def test_log_probabilities_are_read_where_there_are_any() -> None:
    body = {
        "choices": [
            {
                "message": {"content": "a b"},
                "logprobs": {"content": [{"logprob": -1.0}, {"logprob": -3.0}, {"logprob": math.nan}, None]},
            }
        ]
    }
    answer = answer_of(body, {})
    assert answer is not None
    assert signals(answer).mean_logprob == -2.0
    assert answer_of({"data": []}, {}) is None
    assert answer_of({"choices": [{"message": None, "text": None}]}, {}) == Answer("")


@pytest.mark.parametrize(
    ("one", "other", "score", "basis"),
    [
        ("Paris.", "paris", 1, "exact"),
        ('{"a": 1, "b": [2]}', '{"b": [2], "a": 1}', 1, "json"),
        ('{"a": 1}', '{"a": 2}', 0, "json"),
        ("The answer is 1,200.", "x = 3, so it is 1200.0", 1, "number"),
        ("42", "It is 41", 0, "number"),
        ("Yes, it does.", "yes because it rains", 1, "choice"),
        ("(B) the fox", "A", 0, "choice"),
        (PROSE, PROSE.replace("river", "stream"), 1, "overlap"),
        (PROSE, "Neutron stars cool by emitting neutrinos. " * 5, 0, "overlap"),
    ],
)
def test_answers_are_compared_by_what_they_settle_on(one: str, other: str, score: float, basis: str) -> None:
    for pair in ((one, other), (other, one)):
        found = agreement(*pair)
        assert found is not None
        assert (found.score, found.basis) == (score, basis)


def test_an_empty_answer_cannot_be_compared() -> None:
    assert agreement("", "x") is None


class Clock:
    def __init__(self, now: float = 1e9) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def test_evidence_moves_a_prediction_towards_what_is_observed() -> None:
    evidence = QualityEvidence(clock=Clock())
    rng = random.Random(1)
    assert evidence.adjustment("t", 0.5) == (0.0, 0.0)
    for _ in range(400):
        evidence.add("t", 0.5, score=float(rng.random() < 0.6), weight=1, predicted=0.8)
    delta, weight = evidence.adjustment("t", 0.5)
    assert delta == pytest.approx(-0.2, abs=0.05)
    assert weight == pytest.approx(400)


def test_little_evidence_moves_little_and_no_evidence_moves_far() -> None:
    evidence = QualityEvidence(clock=Clock())
    evidence.add("t", 0.5, score=0, weight=1, predicted=0.9)
    assert -0.1 < evidence.adjustment("t", 0.5)[0] < 0
    for _ in range(10_000):
        evidence.add("t", 0.5, score=0, weight=1, predicted=1)
    assert evidence.adjustment("t", 0.5)[0] == -0.3


def test_neighbouring_difficulties_borrow_from_each_other() -> None:
    evidence = QualityEvidence(clock=Clock())
    for _ in range(100):
        evidence.add("t", 0.9, score=0, weight=1, predicted=0.5)
    here, there = evidence.adjustment("t", 0.9), evidence.adjustment("t", 0.1)
    assert here[0] == -0.3
    assert -0.25 < there[0] < -0.1
    assert there[1] == 0


def test_what_was_judged_of_a_kind_speaks_for_that_kind_and_without_a_limit() -> None:
    evidence = QualityEvidence(clock=Clock())
    for _ in range(100):
        evidence.add("t", 0.5, score=0.05, weight=1, predicted=0.9, kind="intents")
        evidence.add("t", 0.5, score=1, weight=1, predicted=0.9, kind="letters")
        evidence.add("t", 0.5, score=0.9, weight=1, predicted=0.9)
    assert evidence.adjustment("t", 0.5, "intents")[0] == pytest.approx(-0.8, abs=0.05)
    assert evidence.adjustment("t", 0.5, "letters")[0] == pytest.approx(0.05, abs=0.05)
    assert evidence.adjustment("t", 0.5, "intents")[1] == pytest.approx(100)
    # Of another kind, what is known of the difficulty speaks, and that no further than it may.
    assert evidence.adjustment("t", 0.5, "new") == evidence.adjustment("t", 0.5)
    assert evidence.adjustment("t", 0.5)[1] == pytest.approx(300)


def test_a_kind_with_few_answers_stays_near_what_its_difficulty_says() -> None:
    evidence = QualityEvidence(clock=Clock())
    for _ in range(200):
        evidence.add("t", 0.5, score=0.7, weight=1, predicted=0.9)
    evidence.add("t", 0.5, score=1, weight=1, predicted=0.9, kind="new")
    general, delta = evidence.adjustment("t", 0.5)[0], evidence.adjustment("t", 0.5, "new")[0]
    assert general < delta < general + 0.05


def test_the_kinds_of_a_target_are_bounded_and_come_back() -> None:
    one = QualityEvidence(clock=Clock())
    for number in range(400):
        one.add("t", 0.5, score=0, weight=1, predicted=0.9, kind=f"kind-{number}")
        one.add("t", 0.5, score=0, weight=1, predicted=0.9, kind="kind-0")
    known = one.kinds("t")
    assert len(known) == 256
    assert known["kind-0"].weight == pytest.approx(401)
    assert "kind-1" not in known
    other = QualityEvidence(clock=Clock())
    other.restore("t", json.loads(json.dumps(one.take_changes()["t"])))
    assert other.adjustment("t", 0.5, "kind-0") == one.adjustment("t", 0.5, "kind-0")
    assert other.kinds("t") == known
    other.restore("d", {"buckets": [[0, 0, 0, 0]] * 5, "kinds": {"a": [1], "b": [1, 2, math.inf, 0]}})
    assert other.kinds("d") == {}
    other.forget()
    assert other.kinds("t") == {}


def test_old_evidence_fades_and_a_jumping_clock_does_no_harm() -> None:
    clock = Clock()
    evidence = QualityEvidence(clock=clock)
    for _ in range(100):
        evidence.add("t", 0.5, score=0, weight=1, predicted=0.9)
    for jump in (14 * 86400, -1e9, 1e12):
        clock.now += jump
        before = evidence.adjustment("t", 0.5)[1]
        evidence.add("t", 0.5, score=0.9, weight=1, predicted=0.9)
        after = evidence.adjustment("t", 0.5)[1]
        assert before / 2 + 0.9 < after <= before + 1.1


@pytest.mark.parametrize("nonsense", [math.nan, math.inf])
def test_nonsense_is_no_evidence(nonsense: float) -> None:
    evidence = QualityEvidence(clock=Clock())
    evidence.add("t", 0.5, score=nonsense, weight=1, predicted=0.5)
    evidence.add("t", nonsense, score=1, weight=1, predicted=0.5)
    assert evidence.adjustment("t", 0.5) == (0.0, 0.0)


def test_what_was_learned_comes_back_and_what_is_damaged_is_left_out() -> None:
    one = QualityEvidence(clock=Clock())
    one.add("t", 0.5, score=0, weight=1, predicted=0.9)
    (saved,) = one.take_changes().values()
    assert one.take_changes() == {}
    other = QualityEvidence(clock=Clock())
    other.restore("t", json.loads(json.dumps(saved)))
    assert other.adjustment("t", 0.5) == one.adjustment("t", 0.5)
    for damaged in ({}, {"buckets": 5}, {"buckets": [[1, 2, 3, math.nan]] * 5}, {"buckets": [["x"] * 4] * 5}):
        other.restore("d", damaged)
    assert other.adjustment("d", 0.5) == (0.0, 0.0)


def usual(rng: random.Random, factor: float = 1.0) -> float:
    return 1000 * factor * math.exp(rng.gauss(0, 0.3))


def test_what_is_usual_raises_no_alarm() -> None:
    rng, false_alarms = random.Random(3), 0
    for _ in range(20):
        drift = DriftMonitor()
        for _ in range(300):
            drift.answered("t", usual(rng), 1000)
        false_alarms += not drift.quiet
    assert false_alarms <= 2  # one in about 10,000 answers is expected


def test_a_first_prediction_that_was_far_off_is_no_drift() -> None:
    drift = DriftMonitor()
    for _ in range(10):
        drift.answered("t", 5, 1000)
    for _ in range(100):
        drift.answered("t", 5, 5)
    assert drift.quiet


@pytest.mark.parametrize(("factor", "alarm"), [(2.5, "slower"), (0.4, "faster")])
def test_a_lasting_change_of_speed_is_found_soon_and_forgotten_when_it_is_over(
    factor: float, alarm: str
) -> None:
    rng, drift = random.Random(5), DriftMonitor()
    for _ in range(100):
        drift.answered("t", usual(rng), 1000)
    taken = 0
    while alarm not in drift.alarms("t"):
        drift.answered("t", usual(rng, factor), 1000)
        taken += 1
        assert taken < 12
    assert drift.spread_factor("t") > 1
    for _ in range(60):
        drift.answered("t", usual(rng), 1000)
    assert drift.quiet
    assert drift.spread_factor("t") == 1


def test_one_absurd_answer_is_an_outlier_and_no_drift() -> None:
    rng, drift = random.Random(7), DriftMonitor()
    for _ in range(50):
        drift.answered("t", usual(rng), 1000)
    drift.answered("t", 3_600_000, 1000)
    assert drift.quiet
    assert dict(drift)["t"].outliers >= 1


def test_errors_that_pile_up_lower_the_availability_and_usual_ones_do_not() -> None:
    drift = DriftMonitor()
    for index in range(300):
        drift.failed("flaky") if index % 20 == 0 else drift.answered("flaky", 1000, 1000)
    quiet_before = drift.availability_factor("flaky")
    for _ in range(4):
        drift.failed("steady")
    assert drift.availability_factor("steady") == 0.5
    assert quiet_before == 1
    for _ in range(40):
        drift.answered("steady", 1000, 1000)
    assert drift.availability_factor("steady") == 1


@pytest.mark.parametrize("nonsense", [math.nan, math.inf, 0.0, -1.0])
def test_nonsense_in_times_raises_no_alarm(nonsense: float) -> None:
    drift = DriftMonitor()
    for _ in range(100):
        drift.answered("t", nonsense, 1000)
        drift.answered("t", 1000, nonsense)
    assert drift.quiet


def test_the_state_of_a_target_comes_back() -> None:
    one = DriftMonitor()
    for _ in range(4):
        one.failed("t")
    (saved,) = one.take_changes().values()
    other = DriftMonitor()
    other.restore("t", json.loads(json.dumps(saved)))
    assert other.alarms("t") == {"failing"}
    other.restore("d", {"samples": math.nan})
    assert other.alarms("d") == frozenset()


def candidate(name: str, latency_ms: float, quality: float, cost_usd: float = 0.0) -> Candidate:
    u, c = 1000 / (1000 + latency_ms), 0.001 / (0.001 + cost_usd)
    total = 0.4 * u + 0.3 * quality + 0.2 * c + 0.1
    scores = Scores(u, quality, c, 1.0, total)
    return Candidate(Target("mec", name), 10, latency_ms, 2 * latency_ms, quality, cost_usd, 1.0, scores)


def decided(*candidates: Candidate) -> Decision:
    weights = {"latency": 0.4, "quality": 0.3, "cost": 0.2, "availability": 0.1}
    return Decision("r", RequestFeatures(0.5, (), 1, 1), Requirements(), weights, candidates, ())


def got(name: str, latency_ms: float, cost_usd: float = 0.0, error: str | None = None) -> Outcome:
    return Outcome(f"mec/{name}", None, latency_ms, 1, 1, None, cost_usd, error)


def test_regret_is_what_the_best_promised_over_what_was_got() -> None:
    decision = decided(candidate("a", 1000, 0.8), candidate("b", 1500, 0.8))
    as_promised = regret(decision, got("a", 1000))
    assert as_promised is not None
    assert as_promised.value == pytest.approx(0)
    late = regret(decision, got("a", 9000))
    assert late is not None
    # 0.4 × (1000/2500 - 1000/10000)
    assert (late.value, late.best_target) == (pytest.approx(0.12), "mec/b")
    lost = regret(decision, got("a", 100, error="lost"))
    assert lost is not None
    assert lost.got == 0
    assert lost.value == decision.candidates[1].scores.total
    assert regret(decision, got("a", math.nan)) is None
    assert regret(decided(), got("a", 1)) is None


def test_feedback_moves_the_regret() -> None:
    decision = decided(candidate("a", 1000, 0.8), candidate("b", 1000, 0.7))
    outcome = got("a", 1000)
    found = regret(decision, outcome)
    assert found is not None
    detail = {
        "decision": decision.to_dict(),
        "outcome": {"target_id": "mec/a", "error": None},
        "regret": {"got": found.got, "best": found.best, "value": found.value},
    }
    said = {"target": "mec/a", "source": "feedback", "score": 0.0, "weight": 1.0}
    assert regret_after(detail, []) == pytest.approx(0)
    # The answer was worth 0.3 × 0.8 less; the other promised 0.3 × 0.1 less than this one did.
    assert regret_after(detail, [said]) == pytest.approx(0.24 - 0.03)
    assert regret_after(detail, [{**said, "score": 1.0}]) == pytest.approx(0)
