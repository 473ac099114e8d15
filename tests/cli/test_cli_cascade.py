"""`mecroute cascade`: calibrating on a file, what is kept, and how to be rid of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

TARGET = "device/small:q4"


def write(path: Path, count: int) -> Path:
    """Answers that are right where the model is sure."""
    rows = [f"p{at},a{at},{-2 * at / count},{int(at < count / 2)}\n" for at in range(count)]
    path.write_text("prompt,answer,mean_logprob,correct\n" + "".join(rows))
    return path


def test_a_threshold_is_found_kept_shown_and_thrown_away(
    mecroute: Callable[..., Any], tmp_path: Path
) -> None:
    data = write(tmp_path / "judged.csv", 400)
    assert mecroute("cascade", "calibrate", data, "--target", TARGET, "--dry-run").code == 0
    assert mecroute("cascade", "show", "--json").json["cascades"] == []
    answer = mecroute("cascade", "calibrate", data, "--target", TARGET, "--json")
    assert answer.code == 0, answer.err
    found = answer.json["calibration"]
    assert (found["target"], found["answers"], found["wrong_answers"]) == (TARGET, 400, 200)
    assert 0.3 < found["threshold"] < 0.5
    assert found["upper_bound"] <= 0.05
    assert 0.4 < found["keep_share"] < 0.6
    assert "with 95% confidence" in mecroute("cascade", "calibrate", data, "--target", TARGET).out
    (row,) = mecroute("cascade", "show", "--json").json["cascades"]
    assert row["threshold"] == found["threshold"]
    assert TARGET in mecroute("cascade", "show").out
    (row,) = mecroute("cascade", "show", "--judge", "agreement", "--json").json["cascades"]
    assert "0 of its answers were judged, at least 80" in row["problem"]
    (entry,) = mecroute("learned", "list", "--kind", "cascade", "--json").json["learned"]
    assert (entry["name"], entry["file"]) == (TARGET, 400)
    assert "a1" not in mecroute("learned", "export", "-").out
    assert mecroute("learned", "reset", "--kind", "cascade", "--target", TARGET, "--yes").code == 0
    assert mecroute("cascade", "show", "--json").json["cascades"] == []


def test_too_few_are_said_to_be_too_few(mecroute: Callable[..., Any], tmp_path: Path) -> None:
    answer = mecroute("cascade", "calibrate", write(tmp_path / "judged.csv", 30), "--target", TARGET)
    assert answer.code == 0
    assert "30 of its answers were judged, at least 80 are needed" in answer.out + answer.err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--target", "small"), "is no target"),
        (("--target", TARGET, "--max-error-rate", "0"), "--max-error-rate must be between 0 and 1"),
        (("--target", TARGET, "--confidence", "1"), "--confidence must be between 0 and 1"),
        (
            ("--target", TARGET, "--answer", "weak_answer", "--correct", "weak_correct"),
            "no column 'weak_correct'",
        ),
    ],
)
def test_what_is_wrong_is_refused(
    mecroute: Callable[..., Any], tmp_path: Path, options: tuple[str, ...], message: str
) -> None:
    answer = mecroute("cascade", "calibrate", write(tmp_path / "judged.csv", 100), *options, "--json")
    assert answer.code == 2
    assert message in json.dumps(answer.json)


def test_the_help_has_examples(mecroute: Callable[..., Any]) -> None:
    assert "mecroute cascade calibrate judged.csv" in mecroute("cascade", "calibrate", "--help").out
    assert "first answer" in mecroute("cascade", "--help").out.lower()
