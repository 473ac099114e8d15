"""`mecroute route`: mistakes in what is asked are named before anything is decided."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


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
