"""`mecroute route`: mistakes in what is asked are named before anything is decided."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from support.tiny_encoder import write_text_classifier


def test_an_unknown_policy_lists_the_known_ones(mecroute: Callable[..., Any]) -> None:
    answer = mecroute("route", "Hi", "--policy", "fastest")
    assert answer.code != 0
    assert "there is no policy 'fastest'; known policies: balanced, cheap" in answer.err
    assert "Traceback" not in answer.err


def test_contradicting_flags_are_both_named(mecroute: Callable[..., Any]) -> None:
    for flags, both in (
        (("--privacy", "device", "--model", "cloud/big"), ("privacy 'device'", "model 'cloud/big'")),
        (("--max-latency-ms", "900", "--deadline-ms", "50"), ("max_latency_ms (900)", "deadline_ms (50)")),
    ):
        answer = mecroute("route", "Hi", *flags, "--json")
        assert answer.code != 0
        assert all(name in answer.json["error"]["message"] for name in both)


def test_labels_ask_for_a_class(mecroute: Callable[..., Any], tmp_path: Path) -> None:
    folder = write_text_classifier(tmp_path / "moods", ("calm", "angry"))
    config = tmp_path / "own.toml"
    config.write_text(f'[[device.text_models]]\nname = "moods"\npath = "{folder}"\n')
    ask = ("route", "slow", "--label", "calm", "--config", config, "--json")
    answer = mecroute(*ask, "--label", "angry")
    assert answer.code == 0
    assert answer.json["target"] == "device/moods"
    assert answer.json["decision"]["features"]["reasons"] == ["one of 2 classes"]
    rejected = mecroute(*ask, "--label", "bored").json["decision"]["rejected"]
    assert [(one["target"]["id"], one["reason"]) for one in rejected] == [("device/moods", "labels")]
