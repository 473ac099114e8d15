"""Learning from outcomes, resting failing targets, and a database that may be broken."""

from __future__ import annotations

import logging
import math
import sqlite3
from pathlib import Path

import pytest

from mecroute.agents.monitor import MonitorAgent
from mecroute.context import RequestFeatures
from mecroute.decision import Candidate, Decision, Scores
from mecroute.outcome import Outcome, Provenance, Segment
from mecroute.requirements import Requirements
from mecroute.state.store import StateStore
from mecroute.target import Target

TARGET = Target("mec", "m:1", node="n1")


def decision(
    ttft_ms: float = 100, latency_ms: float = 1100, request_id: str = "req-1", **facts: bool
) -> Decision:
    scores = Scores(1, 1, 1, 1, 1)
    candidate = Candidate(TARGET, ttft_ms, latency_ms, 2 * latency_ms, 0.8, 0.0, 1.0, scores, **facts)
    features = RequestFeatures(0.5, ("long",), 10, 100)
    return Decision(request_id, features, Requirements(), {"latency": 1.0}, (candidate,), ())


def provenance(request_id: str = "req-1", output_tokens: int = 100) -> Provenance:
    outcome = Outcome(TARGET.id, 50.0, 500.0, 10, output_tokens, 20.0, 0.001)
    return Provenance(request_id, decision(request_id=request_id), outcome, (), "mec", "n1", "m:1")


def segment(ttft_ms: float | None, latency_ms: float, tokens: int = 100) -> Segment:
    return Segment(TARGET.id, "mec", output_tokens=tokens, ttft_ms=ttft_ms, latency_ms=latency_ms)


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def store(tmp_path: Path):
    store = StateStore(tmp_path / "state.sqlite3")
    yield store
    store.close()


def test_corrections_converge_on_what_is_observed(store: StateStore) -> None:
    monitor = MonitorAgent(store)
    for _ in range(60):
        correction = monitor.correction(TARGET)
        # The target always takes 300 ms to the first token and 20 ms for each of the others.
        now = decision(100 * correction.ttft, 100 * correction.ttft + 1000 * correction.decode)
        monitor.answered(now, segment(300, 300 + 99 * 20))
    correction = monitor.correction(TARGET)
    assert correction.ttft == pytest.approx(3.0, rel=0.02)
    assert correction.decode == pytest.approx(2.0, rel=0.02)
    assert correction.samples == 60


def test_loading_a_model_teaches_nothing_about_its_speed(store: StateStore) -> None:
    monitor = MonitorAgent(store)
    monitor.answered(decision(cold=True), segment(5000, 6000))
    assert monitor.correction(TARGET).samples == 0


def test_one_slow_answer_moves_a_measured_speed_little_and_an_assumed_one_far(store: StateStore) -> None:
    factors = []
    for assumed in (False, True):
        monitor = MonitorAgent(store)
        monitor.answered(decision(assumed=assumed), segment(500, 500 + 99 * 50))
        factors.append(monitor.correction(TARGET).decode)
    assert factors[0] < 1.5
    assert factors[1] == pytest.approx(5, rel=0.05)


@pytest.mark.parametrize("nonsense", [math.nan, math.inf, -5.0, 0.0])
def test_nonsense_in_telemetry_teaches_nothing(store: StateStore, nonsense: float) -> None:
    monitor = MonitorAgent(store)
    monitor.answered(decision(), segment(nonsense, nonsense))
    correction = monitor.correction(TARGET)
    assert math.isfinite(correction.ttft)
    assert math.isfinite(correction.decode)
    assert math.isfinite(correction.ttft_spread)


def test_one_absurd_measurement_is_bounded(store: StateStore) -> None:
    monitor = MonitorAgent(store)
    monitor.answered(decision(), segment(3_600_000, 7_200_000))
    assert monitor.correction(TARGET).ttft <= 10.0001


def test_a_failing_target_rests_longer_each_time_and_recovers(store: StateStore) -> None:
    clock = Clock()
    monitor = MonitorAgent(store, clock=clock)
    assert monitor.resting(TARGET.id) is None
    monitor.failed(TARGET.id, "connection refused")
    assert "connection refused" in (monitor.resting(TARGET.id) or "")
    clock.now += 1.01
    assert monitor.resting(TARGET.id) is None
    monitor.failed(TARGET.id, "connection refused")
    clock.now += 1.01
    assert monitor.resting(TARGET.id) is not None
    assert monitor.availability(TARGET.id) < 1
    clock.now += 1.0
    monitor.answered(decision(), segment(100, 1000))
    monitor.failed(TARGET.id, "again")
    clock.now += 1.01
    assert monitor.resting(TARGET.id) is None  # the pause began anew


def test_a_clock_that_jumps_back_keeps_nobody_out_for_long(store: StateStore) -> None:
    clock = Clock()
    monitor = MonitorAgent(store, clock=clock)
    monitor.failed(TARGET.id, "lost")
    clock.now += 1.5
    assert monitor.resting(TARGET.id) is None


def test_requests_and_feedback_outlive_the_process(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "state.sqlite3"
    first = StateStore(path)
    MonitorAgent(first).record(provenance(), user="ann")
    first.close()
    second = StateStore(path)
    MonitorAgent(second).feedback("req-1", 0.5)
    assert second.feedback_of("req-1") == [0.5]
    (kept,) = second.recent()
    assert kept["outcome"]["target_id"] == TARGET.id
    second.close()


def test_neither_prompts_nor_answers_are_stored(store: StateStore) -> None:
    store.add(provenance())
    store.flush()
    columns = {row[1] for row in sqlite3.connect(store.path).execute("PRAGMA table_info(requests)")}
    assert not columns & {"prompt", "messages", "content", "text", "answer"}


def test_a_users_usual_answer_length_is_learned(store: StateStore) -> None:
    monitor = MonitorAgent(store)
    for index in range(40):
        monitor.record(provenance(f"req-{index}", output_tokens=200), user="ann")
    assert monitor.usual_output_tokens("ann") == pytest.approx(200)
    assert monitor.usual_output_tokens("bob") is None


def test_the_database_stays_bounded(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("mecroute.state.store._MAX_ROWS", 20)
    monkeypatch.setattr("mecroute.state.store._PRUNE_EVERY", 10)
    store = StateStore(tmp_path / "state.sqlite3")
    for index in range(101):
        store.add(provenance(f"req-{index:03}"))
    assert len(store.recent(1000)) <= 30
    assert store.recent(1)[0]["request_id"] == "req-100"
    store.close()


@pytest.mark.parametrize("fault", ["corrupt", "directory", "read-only folder"])
def test_a_broken_database_is_reported_once_and_stops_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, fault: str
) -> None:
    path = tmp_path / "state.sqlite3"
    if fault == "corrupt":
        path.write_bytes(b"this is no database" * 500)
    elif fault == "directory":
        path.mkdir()
    else:
        (tmp_path / "file").write_text("")
        path = tmp_path / "file" / "state.sqlite3"
    store = StateStore(path)
    monitor = MonitorAgent(store)
    with caplog.at_level(logging.WARNING, logger="mecroute.state"):
        for index in range(5):
            monitor.record(provenance(f"req-{index}"), user=None)
        monitor.feedback("req-1", 1.0)
        store.close()
    assert len(caplog.records) == 1
    assert "routing goes on without it" in caplog.text
    assert not store.working
