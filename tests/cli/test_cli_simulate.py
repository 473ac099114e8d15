"""`mecroute simulate` as a person and as a program sees it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any


def test_it_prints_one_row_per_strategy(mecroute: Callable[..., Any]) -> None:
    answer = mecroute("simulate", "--requests", "60", "--nodes", "4")
    assert answer.code == 0
    assert len(answer.out.splitlines()) == 7
    assert answer.out.splitlines()[1].startswith("mecroute")
    assert "assumption" in answer.err


def test_json_holds_the_scenario_and_the_reports(mecroute: Callable[..., Any], tmp_path: Path) -> None:
    world = tmp_path / "world.toml"
    world.write_text("nodes = 3\nclients = 2\n")
    trace = tmp_path / "trace.csv"
    trace.write_text(
        "TIMESTAMP,ContextTokens,GeneratedTokens\n"
        + "".join(f"2023-11-16 18:17:{second:02}.5,100,10\n" for second in range(20))
    )
    answer = mecroute(
        "simulate", trace, "--scenario", world, "--requests", "50", "--strategy", "cloud-only", "--json"
    )
    assert answer.code == 0
    assert answer.json["scenario"]["nodes"] == 3
    (report,) = answer.json["reports"]
    assert report["requests"] == 50
    assert report["tiers"] == {"device": 0.0, "mec": 0.0, "cloud": 1.0}


def test_what_is_wrong_is_said(mecroute: Callable[..., Any], tmp_path: Path) -> None:
    assert mecroute("simulate", tmp_path / "none.csv").code == 2
    answer = mecroute("simulate", "--strategy", "luck", "--requests", "5")
    assert answer.code == 2
    assert "mecroute, device-only" in answer.err
    assert mecroute("simulate", "--requests", "0").code == 2
