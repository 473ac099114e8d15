"""The bound: of the answers that are kept at most the stated share is wrong, as often as is said."""

from __future__ import annotations

import math
import random

import pytest

from mecroute.cascade.calibration import Calibrated, Pair, calibrate, score
from mecroute.cascade.marks import FEATURE_NAMES, Marks, marks_of_classes, marks_of_text
from mecroute.cascade.verifier import fit_verifier
from mecroute.predict.answer_checks import CHECK_NAMES

RATE = 0.1
SEEDS = 150


def right_chance(value: float) -> float:
    """How likely an answer is right whose tokens have this geometric mean probability."""
    return 0.4 + 0.6 * value**2


def answer(rng: random.Random) -> Pair:
    value = rng.random()
    return Pair(Marks(mean_logprob=math.log(value)), rng.random() < right_chance(value))


def wrong_among_kept(threshold: float) -> float:
    """1 - E[right_chance(v) | v >= threshold] for v even in 0..1."""
    kept = 1 - threshold
    return 1 - (0.4 * kept + 0.2 * (1 - threshold**3)) / kept


def test_the_stated_rate_holds_as_often_as_is_said() -> None:
    broken = found_some = 0
    for seed in range(SEEDS):
        rng = random.Random(seed)
        pairs = [answer(rng) for _ in range(2000)]
        found = calibrate(pairs[::2], pairs[1::2], "mean-logprob", max_error_rate=RATE, confidence=0.9)
        if found.threshold is not None:
            found_some += 1
            assert found.upper_bound <= RATE + 1e-9
            broken += wrong_among_kept(found.threshold) > RATE
    assert found_some > 0.9 * SEEDS, "a bound that keeps nothing would be easy"
    assert broken <= 0.1 * SEEDS + 10  # two standard deviations


def test_the_verifier_s_answers_keep_the_rate_too_since_others_find_its_threshold() -> None:
    """Twenty checks that mean nothing tempt it to remember the answers it was fitted to."""

    def checked(rng: random.Random) -> Pair:
        value = rng.random()
        noise = tuple(rng.gauss(0, 1) for _ in CHECK_NAMES)
        chance = 0.97 if value > 0.5 else 0.2
        return Pair(Marks(mean_logprob=math.log(value), checks=noise), rng.random() < chance)

    broken = found_some = 0
    seeds = 12
    for seed in range(seeds):
        rng = random.Random(seed)
        pairs = [checked(rng) for _ in range(800)]
        found = calibrate(pairs[::2], pairs[1::2], "verifier", max_error_rate=0.15, confidence=0.9)
        if found.threshold is None:
            continue
        found_some += 1
        fresh = [checked(rng) for _ in range(4000)]
        kept = [p.right for p in fresh if (s := found.score(p.marks)) is not None and s >= found.threshold]
        broken += len(kept) > 200 and 1 - sum(kept) / len(kept) > 0.15 + 0.02
    assert found_some >= seeds / 2
    assert broken <= 3


def test_answers_that_were_judged_for_having_passed_say_nothing_of_laxer_thresholds() -> None:
    """Feedback is given only on what was kept: taken for all answers, it makes a poor model look good."""
    poor = [Pair(Marks(mean_logprob=math.log(0.5)), False) for _ in range(100)]
    at = score("mean-logprob", Marks(mean_logprob=math.log(0.9)), None)
    assert at is not None
    passed = [Pair(Marks(mean_logprob=math.log(0.95)), True, "mean-logprob", at) for _ in range(2000)]
    found = calibrate(poor, passed, "mean-logprob", max_error_rate=RATE, confidence=0.95)
    assert found.threshold is not None
    assert found.threshold >= at
    as_if_free = [Pair(pair.marks, pair.right) for pair in passed]
    fooled = calibrate(poor, as_if_free, "mean-logprob", max_error_rate=RATE, confidence=0.95)
    assert fooled.threshold is not None
    assert fooled.threshold <= 0.5 < found.threshold
    # Scores of another judge cannot be compared with this one's.
    other = calibrate(poor, passed, "min-logprob", max_error_rate=RATE, confidence=0.95)
    assert other.threshold is None


@pytest.mark.parametrize(
    ("count", "wrong", "finds"),
    # ln(0.05 / 3) / ln(0.95) = 79.8 right answers are the least by which 5% can be told.
    [(79, 0, False), (80, 0, True), (80, 1, False), (400, 400, False), (0, 0, False)],
)
def test_too_little_is_said_to_be_too_little(count: int, wrong: int, finds: bool) -> None:
    pairs = [Pair(Marks(agreement=1.0), at >= wrong) for at in range(count)]
    found = calibrate(pairs, [], "agreement", max_error_rate=0.05, confidence=0.95)
    assert (found.threshold is not None) == finds
    assert (found.problem is None) == finds
    if count < 80:
        assert f"{count} of its answers were judged, at least 80" in (found.problem or "")


@pytest.mark.parametrize("judge", ["mean-logprob", "min-logprob", "agreement", "verifier", "probability"])
def test_what_a_judge_does_not_see_it_does_not_judge(judge: str) -> None:
    assert score(judge, Marks(), None) is None  # type: ignore[arg-type]
    assert score(judge, Marks(0.0, 0.0, 1.0, 1.0, bad=True), None) == 0.0  # type: ignore[arg-type]


def test_nothing_an_endpoint_may_answer_upsets_the_marks() -> None:
    text = "The sum is 2 + 2 = 4."
    said = {"message": {"content": text}, "finish_reason": "stop"}
    for logprobs in (
        None,
        [],
        "x",
        {"content": None},
        {"content": [None, {"logprob": "x"}, {"logprob": math.nan}]},
    ):
        marks = marks_of_text("2 + 2?", {"choices": [said | {"logprobs": logprobs}]}, {})
        assert (marks.mean_logprob, marks.min_logprob, marks.bad) == (None, None, False)
    given = {"content": [{"logprob": -1.0}, {"logprob": -9999.0}, {"logprob": 0.5}]}
    marks = marks_of_text("2 + 2?", {"choices": [said | {"logprobs": given}]}, {}, [text, "5"])
    assert (marks.mean_logprob, marks.min_logprob) == (-7.0, -20.0)
    assert marks.agreement is not None
    assert 0.4 < marks.agreement < 0.6
    for body in ({}, {"choices": []}, {"choices": [None]}, {"choices": "x"}):
        assert marks_of_text("?", body, {}).bad
    for body in ({}, {"data": []}, {"data": [None]}, {"data": [{"probs": ["x"]}]}, {"data": "x"}):
        assert marks_of_classes(body).bad
    assert marks_of_classes({"data": [{"probs": [0.9, 0.1]}, {"probs": [0.4, 0.6]}]}).probability == 0.6


def test_marks_survive_being_written() -> None:
    marks = marks_of_text("2 + 2?", {"choices": [{"message": {"content": "2 + 2 = 4"}}]}, {}, ["4"])
    again = Marks.from_row(marks.to_row())
    assert again.agreement == marks.agreement
    assert again.features() == pytest.approx(marks.features(), abs=0.01)
    assert len(again.features()) == len(FEATURE_NAMES)
    for row in ([], [None] * 4, [None] * 5 + [1.0], [math.nan, None, None, None, 0.0]):
        with pytest.raises(ValueError, match="marks"):
            Marks.from_row(row)


def test_the_verifier_finds_the_logistic_model_behind_its_answers() -> None:
    rng = random.Random(1)
    rows = [[rng.gauss(0, 1), rng.gauss(0, 1), 1.0] for _ in range(2000)]
    right = [rng.random() < 1 / (1 + math.exp(-(2 * row[0] - 1))) for row in rows]
    verifier = fit_verifier(rows, right)
    assert verifier is not None
    for value, expected in ((0.0, 0.269), (1.0, 0.731), (-1.0, 0.047)):
        assert verifier.probability([value, 0.0, 1.0]) == pytest.approx(expected, abs=0.05)
    assert fit_verifier(rows, [True] * 2000) is None
    again = fit_verifier(rows, right)
    assert again is not None
    assert again.name == verifier.name


def test_the_verifier_is_fitted_anew_only_when_there_is_twice_as_much() -> None:
    rng = random.Random(2)
    pairs = [
        Pair(Marks(mean_logprob=-rng.random(), checks=(0.0,) * len(CHECK_NAMES)), rng.random() < 0.8)
        for _ in range(400)
    ]

    def of(count: int) -> Calibrated:
        return calibrate(pairs[:count], pairs[200:], "verifier", max_error_rate=0.3, confidence=0.9)

    assert of(30).verifier is None
    assert of(80).under == of(100).under == of(150).under
    assert of(80).under != of(160).under


def test_nothing_is_kept_that_looks_worse_than_all_that_was_seen() -> None:
    pairs = [Pair(Marks(agreement=0.9), True) for _ in range(200)]
    found = calibrate(pairs, [], "agreement", max_error_rate=0.05, confidence=0.95)
    assert found.threshold is not None
    assert 0.88 < found.threshold <= 0.9
