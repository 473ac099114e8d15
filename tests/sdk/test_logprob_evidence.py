"""Log-probabilities as evidence: learned from judged answers, and neutral where those tell nothing."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path

import pytest

from mecroute.agents.monitor import MonitorAgent
from mecroute.context import RequestFeatures
from mecroute.decision import Candidate, Decision, Scores
from mecroute.evidence.confidence import LEAST_JUDGED, LogprobEvidence
from mecroute.evidence.listing import listed
from mecroute.evidence.signals import Answer
from mecroute.outcome import Outcome, Provenance, Segment
from mecroute.requirements import Requirements
from mecroute.state.store import StateStore
from mecroute.target import Target

TARGET = Target("mec", "small:1", node="n1")
RIGHT, WRONG, SPREAD = -0.3, -0.9, 0.25


def taught(count: int = 400, *, right: float = RIGHT, wrong: float = WRONG, seed: int = 1) -> LogprobEvidence:
    """A target that answers seven of ten rightly."""
    evidence, rng = LogprobEvidence(), random.Random(seed)
    for number in range(count):
        is_right = rng.random() < 0.7
        evidence.saw(f"r{number}", rng.gauss(right if is_right else wrong, SPREAD))
        evidence.judged(f"r{number}", TARGET.id, float(is_right))
    return evidence


def test_surer_answers_are_likelier_right_and_on_average_nothing_moves() -> None:
    evidence, rng = taught(), random.Random(2)
    sure, unsure = (evidence.quality(TARGET.id, value, 0.7) for value in (RIGHT, WRONG))
    assert sure is not None
    assert unsure is not None
    assert sure > 0.9
    assert unsure < 0.3
    drawn = [rng.gauss(RIGHT if rng.random() < 0.7 else WRONG, SPREAD) for _ in range(4000)]
    found = [evidence.quality(TARGET.id, value, 0.7) or math.nan for value in drawn]
    assert sum(found) / len(found) == pytest.approx(0.7, abs=0.03)


def test_where_right_and_wrong_answers_look_alike_nothing_is_concluded() -> None:
    evidence = taught(2000, right=-0.5, wrong=-0.5)
    for value in (-1.0, -0.5, 0.0):
        assert evidence.quality(TARGET.id, value, 0.7) == pytest.approx(0.7, abs=0.12)


def test_too_few_judged_answers_tell_nothing() -> None:
    evidence = LogprobEvidence()
    assert evidence.quality(TARGET.id, -0.3, 0.7) is None
    for number in range(LEAST_JUDGED * 3):
        evidence.saw(f"r{number}", -0.3)
        evidence.judged(f"r{number}", TARGET.id, 1.0)
    assert evidence.quality(TARGET.id, -0.3, 0.7) is None, "no wrong answer was seen"
    evidence.judged("unknown", TARGET.id, 0.0)
    assert taught(LEAST_JUDGED).quality(TARGET.id, -0.3, 0.7) is None


@pytest.mark.parametrize("nonsense", [math.nan, math.inf, -math.inf])
def test_nonsense_is_no_evidence(nonsense: float) -> None:
    evidence = taught()
    before = evidence.quality(TARGET.id, -0.3, 0.7)
    assert evidence.quality(TARGET.id, nonsense, 0.7) is None
    evidence.saw("odd", nonsense)
    evidence.judged("odd", TARGET.id, 1.0)
    assert evidence.quality(TARGET.id, -0.3, 0.7) == before
    assert evidence.quality(TARGET.id, -0.3, 1.0) is None


def test_it_comes_back_and_what_is_damaged_is_left_out() -> None:
    kept = json.loads(json.dumps(taught().take_changes()))
    again = LogprobEvidence()
    for damage in ({}, {"right": [1, 2], "wrong": [1, 2, 3]}, {"right": [-1, 0, 0], "wrong": [1, 0, "x"]}):
        again.restore(TARGET.id, damage)
    assert again.quality(TARGET.id, -0.3, 0.7) is None
    again.restore(TARGET.id, kept[TARGET.id])
    assert again.quality(TARGET.id, -0.3, 0.7) == taught().quality(TARGET.id, -0.3, 0.7)
    again.forget()
    assert again.quality(TARGET.id, -0.3, 0.7) is None


def test_unsure_answers_lower_the_predicted_quality_of_their_difficulty(tmp_path: Path) -> None:
    """Through the monitor: judged answers teach, unjudged ones are then counted by what was taught."""
    store = StateStore(tmp_path / "state.sqlite3")
    monitor, rng = MonitorAgent(store), random.Random(3)

    def record(number: int, complexity: float, logprob: float) -> None:
        candidate = Candidate(TARGET, 10, 100, 200, 0.7, 0.0, 1.0, Scores(1, 1, 1, 1, 1))
        features = RequestFeatures(complexity, (), 10, 10)
        decision = Decision(f"r{number}", features, Requirements(), {}, (candidate,), ())
        outcome = Outcome(TARGET.id, 10, 100, 10, 10, None, 0.0)
        segments = (Segment(TARGET.id, "mec", output_tokens=10, latency_ms=100),)
        provenance = Provenance(f"r{number}", decision, outcome, segments, "mec", "n1", "small:1")
        monitor.record(provenance, user=None, answer=Answer("An answer.", "stop", logprob))

    for number in range(80):
        is_right = number % 10 < 7
        record(number, 0.1, rng.gauss(RIGHT if is_right else WRONG, SPREAD))
        monitor.feedback(f"r{number}", float(is_right))
    for number in range(80, 300):
        record(number, 0.9, rng.gauss(WRONG, SPREAD))
    monitor.flush()
    hard, _ = monitor.quality_adjustment(TARGET, 0.9)
    easy, _ = monitor.quality_adjustment(TARGET, 0.1)
    assert hard < -0.15
    assert hard < easy - 0.1
    monitor.close()
    (entry,) = [row for row in listed(store.learned()) if row["kind"] == "logprobs"]
    assert "right answers" in entry["says"]
    store.close()
