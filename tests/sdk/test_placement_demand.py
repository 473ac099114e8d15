"""Demand: what is lately asked for, what is usual at an hour, and what survives a restart."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from mecroute.placement.demand import Demand
from mecroute.placement.store import load_demand, save_demand

DAY = 86_400.0
MIDNIGHT = 20_000 * DAY


class Clock:
    now = MIDNIGHT

    def __call__(self) -> float:
        return self.now


def week(demand: Demand, clock: Clock, days: int = 7) -> None:
    """Every day 30 requests for `report` between nine and ten."""
    for day in range(days):
        for minute in range(0, 60, 2):
            clock.now = MIDNIGHT + day * DAY + 9 * 3600 + minute * 60
            demand.asked_for("report")
    clock.now = MIDNIGHT + days * DAY


def test_recent_requests_lose_half_their_weight_every_hour() -> None:
    clock = Clock()
    demand = Demand(clock=clock)
    demand.asked_for("m", 8)
    clock.now += 3600
    assert demand.recent("m") == pytest.approx(4)
    assert demand.recent("never") == 0


def test_a_steady_rate_is_expected_to_go_on() -> None:
    clock = Clock()
    demand = Demand(clock=clock)
    for _ in range(600):
        clock.now += 60
        demand.asked_for("m")
    assert demand.expected_per_hour("m") == pytest.approx(60, rel=0.1)


def test_the_usual_hour_is_foreseen_before_it_comes() -> None:
    clock = Clock()
    demand = Demand(clock=clock)
    week(demand, clock, days=8)
    clock.now = MIDNIGHT + 8 * DAY + 4 * 3600
    at_four = demand.expected_per_hour("report")
    at_nine = demand.expected_per_hour("report", hours_ahead=5.5)
    assert at_nine > 20
    assert at_four < 3
    assert 5 < demand.expected_per_hour("report", hours_ahead=5.0) < at_nine, "on its way"


def test_a_habit_that_ended_is_forgotten() -> None:
    clock = Clock()
    demand = Demand(clock=clock)
    week(demand, clock)
    clock.now = MIDNIGHT + 40 * DAY + 6 * 3600
    assert demand.expected_per_hour("report", hours_ahead=3.5) < 1


def test_a_clock_that_jumps_back_or_far_ahead_does_no_harm() -> None:
    clock = Clock()
    demand = Demand(clock=clock)
    demand.asked_for("m", 4)
    clock.now -= 10 * DAY
    demand.asked_for("m")
    assert demand.recent("m") == pytest.approx(5)
    clock.now += 1e9
    demand.asked_for("m")
    assert demand.recent("m") == pytest.approx(1)
    # Set right again, it counts and forgets as ever.
    clock.now -= 1e9
    demand.asked_for("m", 3)
    assert demand.recent("m") == pytest.approx(4)
    clock.now += 3600
    assert demand.recent("m") == pytest.approx(2)
    demand.asked_for("m")
    clock.now += 3600
    demand.asked_for("m")
    assert demand.models()["m"].usual[int(clock.now // 3600 - 1) % 24] > 0, "hours are closed as they end"


def test_counts_survive_a_restart_and_are_added_to(tmp_path: Path) -> None:
    clock = Clock()
    path = tmp_path / "state.sqlite3"
    first = Demand(clock=clock)
    first.asked_for("m", 4)
    save_demand(path, first.models())
    second = Demand(clock=clock)
    second.asked_for("m")
    second.restore(load_demand(path))
    assert second.recent("m") == pytest.approx(5)


def test_a_file_that_is_none_or_lies_is_left_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "state.sqlite3"
    assert load_demand(path) == {}
    save_demand(path, _some())
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE demand SET usual = '[1, 2]' WHERE model = 'short'")
        connection.execute("UPDATE demand SET usual = replace(usual, '0.0', 'NaN') WHERE model = 'nan'")
    connection.close()
    assert set(load_demand(path)) == {"good"}
    path.write_bytes(b"this is no database, and it is longer than a header would be" * 20)
    assert load_demand(path) == {}
    save_demand(path, _some())
    assert "cannot be read" in caplog.text
    assert "cannot be kept" in caplog.text


def _some() -> dict[str, object]:
    demand = Demand(clock=Clock())
    for name in ("good", "short", "nan"):
        demand.asked_for(name)
    return demand.models()  # type: ignore[return-value]


def test_a_file_that_others_are_writing_to_holds_nobody_up(tmp_path: Path) -> None:
    path = tmp_path / "state.sqlite3"
    with sqlite3.connect(path) as other:
        other.execute("PRAGMA journal_mode=WAL")
        other.execute("CREATE TABLE requests (id TEXT)")
        other.commit()
        other.execute("BEGIN IMMEDIATE")
        assert load_demand(path) == {}
        other.rollback()
    other.close()
    save_demand(path, _some())
    assert set(load_demand(path)) == {"good", "short", "nan"}
