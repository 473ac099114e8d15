"""Learning from outcomes, resting failing targets, and a database that may be broken."""

from __future__ import annotations

import json
import logging
import math
import random
import sqlite3
import threading
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from mecroute.agents.monitor import MonitorAgent
from mecroute.context import RequestFeatures
from mecroute.decision import Candidate, Decision, Scores
from mecroute.evidence.listing import health, listed
from mecroute.evidence.signals import Answer
from mecroute.outcome import Outcome, Provenance, Segment
from mecroute.requirements import Requirements
from mecroute.state.store import Batch, DecisionRow, LearnedRow, StateStore
from mecroute.target import Target

TARGET = Target("mec", "m:1", node="n1")

FIRST_VERSION = """
CREATE TABLE requests (
    id TEXT PRIMARY KEY, at REAL NOT NULL, target TEXT NOT NULL, tier TEXT NOT NULL, model TEXT NOT NULL,
    complexity REAL NOT NULL, ttft_ms REAL, latency_ms REAL NOT NULL, prompt_tokens INTEGER NOT NULL,
    output_tokens INTEGER NOT NULL, cost_usd REAL NOT NULL, error TEXT, provenance TEXT NOT NULL
);
CREATE INDEX requests_at ON requests (at);
CREATE TABLE feedback (request_id TEXT NOT NULL, at REAL NOT NULL, score REAL NOT NULL);
"""


def decision(
    ttft_ms: float = 100, latency_ms: float = 1100, request_id: str = "req-1", **facts: Any
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
        ttft = 100 * correction.ttft + correction.ttft_base_ms
        now = decision(ttft, ttft + 1000 * correction.decode[0], claimed_ttft_ms=100)
        monitor.answered(now, segment(300, 300 + 99 * 20))
    correction = monitor.correction(TARGET)
    assert 100 * correction.ttft + correction.ttft_base_ms == pytest.approx(300, rel=0.02)
    assert correction.decode[0] == pytest.approx(2.0, rel=0.02)
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
        factors.append(monitor.correction(TARGET).decode[0])
    assert factors[0] < 1.5
    assert factors[1] == pytest.approx(5, rel=0.05)


@pytest.mark.parametrize("nonsense", [math.nan, math.inf, -5.0, 0.0])
def test_nonsense_in_telemetry_teaches_nothing(store: StateStore, nonsense: float) -> None:
    monitor = MonitorAgent(store)
    monitor.answered(decision(), segment(nonsense, nonsense))
    correction = monitor.correction(TARGET)
    assert math.isfinite(correction.ttft)
    assert math.isfinite(correction.decode[0])
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
    assert monitor.resting(TARGET.id) is not None
    clock.now -= 1e6
    assert monitor.resting(TARGET.id) is None
    monitor.failed(TARGET.id, "lost again")
    clock.now += 1e9
    assert monitor.resting(TARGET.id) is None


def test_requests_and_feedback_outlive_the_process(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "state.sqlite3"
    first = MonitorAgent(StateStore(path))
    first.record(provenance(), user="ann")
    first.close()
    store = StateStore(path)
    second = MonitorAgent(store)
    second.feedback("req-1", 0.5)
    second.flush()
    assert store.feedback_of("req-1") == [0.5]
    kept = store.detail("req-1")
    assert kept is not None
    assert kept["outcome"]["target_id"] == TARGET.id
    assert kept["decision"]["candidates"][0]["target"]["id"] == TARGET.id
    second.close()


def test_what_was_learned_outlives_the_process(tmp_path: Path) -> None:
    path = tmp_path / "state.sqlite3"
    first = MonitorAgent(StateStore(path))
    for index in range(30):
        first.answered(decision(), segment(300, 300 + 99 * 20))
        first.record(provenance(f"req-{index}", output_tokens=250), user="ann")
        first.feedback(f"req-{index}", 0.0)
    first.close()
    second = MonitorAgent(StateStore(path))
    assert second.correction(TARGET) == first.correction(TARGET)
    assert second.correction(TARGET).samples == 30
    assert second.usual_output_tokens("ann") == pytest.approx(250)
    delta, evidence = second.quality_adjustment(TARGET, 0.5)
    assert delta < -0.2
    assert evidence > 25
    second.close()
    with closing(sqlite3.connect(path)) as connection:
        names = {row[0] for row in connection.execute("SELECT name FROM learned WHERE kind = 'user'")}
    assert names
    assert "ann" not in names  # a digest stands for the name


def test_a_reset_reaches_a_running_client_and_is_not_undone_by_it(tmp_path: Path) -> None:
    path = tmp_path / "state.sqlite3"
    monitor = MonitorAgent(StateStore(path))
    monitor.answered(decision(), segment(300, 2000))
    monitor.record(provenance(), user="ann")
    monitor.flush()
    assert StateStore(path).forget(["correction", "user", "quality", "drift"]) >= 0
    monitor.close()
    again = MonitorAgent(StateStore(path))
    assert again.correction(TARGET).samples == 0
    assert again.usual_output_tokens("ann") is None
    again.close()


def test_neither_prompts_nor_answers_are_stored(store: StateStore) -> None:
    monitor = MonitorAgent(store)
    told = "I am sorry, but I cannot tell you the colour of the kite."
    monitor.record(provenance(), user="ann", answer=Answer(told))
    monitor.close()
    detail = store.detail("req-1")
    assert detail is not None
    assert detail["signals"]["refused"] is True  # it was read
    everything = json.dumps(detail) + store.path.read_bytes().decode("latin-1")
    assert "kite" not in everything
    assert "ann" not in json.dumps(detail)


def test_a_users_usual_answer_length_is_learned(store: StateStore) -> None:
    monitor = MonitorAgent(store)
    for index in range(40):
        monitor.record(provenance(f"req-{index}", output_tokens=200), user="ann")
    assert monitor.usual_output_tokens("ann") == pytest.approx(200)
    assert monitor.usual_output_tokens("bob") is None


def test_the_database_stays_bounded(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("mecroute.state.store._PRUNE_EVERY", 10)
    store = StateStore(tmp_path / "state.sqlite3", max_decisions=20)
    monitor = MonitorAgent(store)
    for index in range(101):
        monitor.record(provenance(f"req-{index:03}"), user=None)
        monitor.feedback(f"req-{index:03}", 1.0)
        if index % 10 == 0:
            monitor.flush()
    monitor.close()
    with closing(sqlite3.connect(store.path)) as connection:
        kept = [row[0] for row in connection.execute("SELECT id FROM decisions ORDER BY seq")]
        (judged,) = connection.execute("SELECT count(*) FROM evidence").fetchone()
    assert 20 <= len(kept) <= 30
    assert kept[-1] == "req-100"
    assert judged == len(kept)


def test_the_database_stays_bounded_in_bytes(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("mecroute.state.store._PRUNE_EVERY", 50)
    store = StateStore(tmp_path / "state.sqlite3", max_bytes=300_000)
    for index in range(4000):
        row = DecisionRow(
            *(f"req-{index}", float(index), "t", "mec", "m", "balanced", 0.5, 1, 1, None, 1.0, 0.0),
            *(None, None, 1.0, 0, None, random.Random(index).randbytes(500)),
        )
        store.write(Batch(decisions=[row]))
    store.close()
    assert store.path.stat().st_size < 450_000
    assert store.has("req-3999")
    assert not store.has("req-0")


def test_a_clock_that_jumped_ahead_keeps_no_rows_forever(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("mecroute.state.store._PRUNE_EVERY", 1)
    store = StateStore(tmp_path / "state.sqlite3", max_decisions=5)
    for index in range(20):
        at = 4e9 if index < 10 else 1e9
        row = DecisionRow(
            *(f"req-{index}", at, "t", "mec", "m", "balanced", 0.5, 1, 1, None, 1.0, 0.0),
            *(None, None, 1.0, 0, None, b""),
        )
        store.write(Batch(decisions=[row]))
    assert store.has("req-19")
    assert not store.has("req-9")
    store.close()


def test_the_first_versions_tables_are_taken_over(tmp_path: Path) -> None:
    path = tmp_path / "state.sqlite3"
    with closing(sqlite3.connect(path)) as old:
        old.executescript(FIRST_VERSION)
        for index in range(700):
            told = provenance(f"req-{index}").to_dict()
            old.execute(
                "INSERT INTO requests VALUES (?, ?, ?, 'mec', 'm:1', 0.5, 50, 500, 10, 100, 0.1, NULL, ?)",
                (f"req-{index}", float(index), TARGET.id, json.dumps(told)),
            )
        old.execute("INSERT INTO feedback VALUES ('req-3', 5.0, 0.25)")
        old.commit()
    store = StateStore(path)
    assert store.feedback_of("req-3") == [0.25]
    detail = store.detail("req-699")
    assert detail is not None
    assert detail["decision"]["candidates"][0]["quality"] == 0.8
    store.close()
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (2,)
        assert connection.execute("SELECT count(*) FROM decisions").fetchone() == (700,)
        tables = {row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    assert not tables & {"requests", "feedback"}


def test_a_newer_database_is_left_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "state.sqlite3"
    with closing(sqlite3.connect(path)) as newer:
        newer.executescript("CREATE TABLE other (x); PRAGMA user_version = 99")
    before = path.read_bytes()
    store = StateStore(path)
    store.write(Batch())
    assert not store.working
    assert "newer mecroute" in caplog.text
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (99,)
    assert len(path.read_bytes()) == len(before)


def test_what_a_locked_database_could_not_take_is_written_when_it_is_free(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch
) -> None:
    monkeypatch.setattr("mecroute.state.schema._BUSY_TIMEOUT_S", 0.05)
    store = StateStore(tmp_path / "state.sqlite3")
    monitor = MonitorAgent(store)
    monitor.record(provenance("req-1"), user=None)
    monitor.flush()
    with closing(sqlite3.connect(store.path, isolation_level=None)) as holder:
        holder.execute("BEGIN EXCLUSIVE")
        for index in (2, 3):
            monitor.record(provenance(f"req-{index}"), user=None)
            monitor.flush()
        holder.execute("ROLLBACK")
    assert store.working
    assert caplog.text.count("locked by another program") == 1
    monitor.record(provenance("req-4"), user=None)
    monitor.close()
    assert all(store.has(f"req-{index}") for index in (1, 2, 3, 4))
    store.close()


def test_many_threads_record_at_once_and_nothing_is_lost(store: StateStore) -> None:
    monitor = MonitorAgent(store)

    def record(thread: int) -> None:
        for index in range(50):
            monitor.record(provenance(f"req-{thread}-{index}"), user=f"user-{thread}")

    threads = [threading.Thread(target=record, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    monitor.close()
    with closing(sqlite3.connect(store.path)) as connection:
        assert connection.execute("SELECT count(*) FROM decisions").fetchone() == (400,)


def test_a_drift_widens_the_spread_lowers_the_availability_and_is_named(store: StateStore) -> None:
    monitor = MonitorAgent(store)
    monitor.answered(decision(), segment(100, 1090))
    before = monitor.correction(TARGET).calibration
    for _ in range(20):
        monitor.drift.answered(TARGET.id, 1000, 1000)
    for _ in range(6):
        monitor.drift.answered(TARGET.id, 5000, 1000)
        monitor.drift.failed(TARGET.id)
    assert monitor.correction(TARGET).calibration == pytest.approx(before * 1.5)
    assert monitor.availability(TARGET.id) == pytest.approx(0.5)
    (candidate,) = monitor.annotated(decision()).candidates
    assert any("answers slower" in note for note in candidate.notes)
    assert any("fails more" in note for note in candidate.notes)
    monitor.close()


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
    with caplog.at_level(logging.WARNING, logger="mecroute.state"):
        store = StateStore(path)
        monitor = MonitorAgent(store)
        for index in range(5):
            monitor.record(provenance(f"req-{index}"), user=None)
        monitor.feedback("req-1", 1.0)
        monitor.close()
    assert len(caplog.records) == 1
    assert "routing goes on without it" in caplog.text
    assert not store.working


@pytest.mark.parametrize(
    ("kept", "says"),
    [
        (
            {"log_ttft": 0.7, "log_decode": 0.0, "log_length": 0.1, "samples": 4},
            "prefill ×1.00 +0 ms, decode ×1.00, by 4 answers",
        ),
        ({"ttft_factor": 2.0, "ttft_base_ms": -5.0, "log_decode": 0.0, "samples": 9}, "prefill ×2.00 -5 ms"),
        ({"ttft_factor": "x", "log_decode": 0.0}, "damaged"),
        ({"log_decode": 1e9}, "damaged"),
        ({"log_decode": 10**400}, "damaged"),
    ],
    ids=("earlier", "now", "text", "large", "huge"),
)
def test_what_was_learned_is_listed_as_it_is_taken_up(kept: dict[str, Any], says: str) -> None:
    """What an earlier version kept is not damaged: what it does not say begins as for a new target."""
    row = LearnedRow("correction", TARGET.id, 1.0, kept)
    assert listed([row])[0]["says"].startswith(says)
    assert health([row])[0]["decode_factor"] == (1.0 if kept["log_decode"] == 0 else None)
    monitor = MonitorAgent(StateStore(enabled=False))
    monitor._observations.restore(TARGET.id, kept)
    assert math.isfinite(monitor.correction(TARGET).ttft)
