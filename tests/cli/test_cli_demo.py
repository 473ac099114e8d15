"""The demo with a tiny model: it really runs, and it does not claim what did not happen."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mecroute_cli.demo import answering, prompts, story
from support.tiny_gguf import write_tiny_gguf

Run = Callable[..., Any]


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> tuple[str | Path, ...]:
    """One source and folder for every run. Byte-level tokens: the longest prompt is about 2,700."""
    folder = tmp_path_factory.mktemp("demo")
    source = write_tiny_gguf(folder / "tiny.gguf", context_length=8192)
    return ("demo", "--source", source, "--workdir", folder / "work")


def test_the_demo_tells_the_whole_story(mecroute: Run, options: tuple[str | Path, ...]) -> None:
    first = mecroute(*options, "--json")
    summary = first.json

    assert summary["failures"] == []
    assert first.code == 0
    assert [step["ok"] for step in summary["steps"]] == [True] * len(story.STEPS)
    assert [answer["tier"] for answer in summary["answers"]] == ["device", "device", "mec", "cloud", "device"]
    assert summary["failover"]["segments"][0]["error"]
    assert len({segment["target"] for segment in summary["failover"]["segments"]}) == 2
    assert summary["profiles"][0]["threads"] == 1

    again = mecroute(*options)
    assert again.code == 0, again.out
    assert again.out.count("made earlier") == 2
    assert "FAILED" not in again.out


def test_the_demo_fails_when_a_claim_does_not_hold(
    mecroute: Run, options: tuple[str | Path, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prompts, "EASY", (replace(prompts.EASY[0], expected_tier="cloud"),))
    monkeypatch.setattr(story, "STEPS", tuple(s for s in story.STEPS if s[1] is not answering.survive)[:5])
    answer = mecroute(*options)

    assert answer.code == 1
    assert "FAILED: answered on the cloud" in answer.out
    assert "FAILED: 5." in answer.out
    assert "did not hold" in answer.out
