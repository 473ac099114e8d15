"""`mecroute cache`: calibrating on a file, and what is kept on disk."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mecroute.caching.calibration import load_calibration
from mecroute.caching.disk import AnswerDisk


def questions(count: int) -> list[tuple[str, str]]:
    rng = random.Random(1)
    things = ["card", "loan", "ticket", "parcel", "invoice", "meeting", "password", "address"]
    frames = ["my {} is lost", "help, i lost my {}", "the {} is lost what now", "where is my lost {}"]
    rows = []
    for number in range(count):
        thing = rng.choice(things)
        rows.append((f"{rng.choice(frames).format(thing)} {'abcdefghijklmnop'[number % 16]}", thing))
    return rows


def write_csv(path: Path, rows: list[tuple[str, str]]) -> Path:
    path.write_text("question,kind\n" + "".join(f'"{text}",{label}\n' for text, label in rows))
    return path


def test_a_threshold_is_found_and_kept(mecroute: Callable[..., Any], tmp_path: Path) -> None:
    data = write_csv(tmp_path / "q.csv", questions(3000))
    options = ("--text", "question", "--label", "kind", "--rate", "0.1")
    answer = mecroute("cache", "calibrate", data, *options, "--json")
    assert answer.code == 0, answer.err
    found = answer.json["calibration"]
    assert found["threshold"] is not None
    assert found["upper_bound"] <= 0.1
    kept = load_calibration()
    assert kept is not None
    assert kept.threshold == found["threshold"]
    assert "wrong" in mecroute("cache", "calibrate", data, *options).out


def test_json_lines_will_do(mecroute: Callable[..., Any], tmp_path: Path) -> None:
    path = tmp_path / "q.jsonl"
    path.write_text("".join(json.dumps({"text": t, "label": x}) + "\n" for t, x in questions(3000)))
    assert mecroute("cache", "calibrate", path, "--rate", "0.2", "--json").json["calibration"]["hits"] > 0


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("q.csv", "a,b\n1,2\n", "no 'text'"),
        ("q.csv", "text,label\nx,y\n", "too few"),
        ("q.csv", "", "too few"),
        ("q.jsonl", "{not json\n", "q.jsonl"),
        ("q.jsonl", "[1, 2]\n", "row 1"),
        ("q.csv", b"\xff\xfe\x00", "q.csv"),
        ("missing.csv", None, "missing.csv"),
    ],
)
def test_a_file_that_will_not_do_is_named(
    name: str, content: str | bytes | None, said: str, mecroute: Callable[..., Any], tmp_path: Path
) -> None:
    path = tmp_path / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        path.write_text(content)
    answer = mecroute("cache", "calibrate", path)
    assert answer.code in (1, 2)
    assert said in answer.err


def test_show_says_why_semantic_is_off_and_clear_forgets(
    mecroute: Callable[..., Any], tmp_path: Path
) -> None:
    path = tmp_path / "mecroute.toml"
    kept = tmp_path / "answers.sqlite3"
    path.write_text(f'[cache]\nsemantic = true\npersist = true\npath = "{kept}"\n')
    shown = mecroute("cache", "show", "--json", "--config", path).json["cache"]
    assert (shown["answers"], shown["semantic"]) == (0, False)
    assert "never calibrated" in shown["semantic_problem"]
    assert "no answers" in mecroute("cache", "clear", "--yes", "--config", path).err
    disk = AnswerDisk(kept, ttl_s=100, max_bytes=1000)
    assert disk.count() == (0, 0)
    disk.close()
    assert mecroute("cache", "clear", "--yes", "--json", "--config", path).json["cleared"] == {"answers": 0}
