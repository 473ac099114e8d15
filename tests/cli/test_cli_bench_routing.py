"""`mecroute bench routing`: what it learns, what it may read, and what it says of a bad file."""

from __future__ import annotations

import csv
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mecroute.learn.outcomes import read_evaluation, read_training
from mecroute.learn.routing_metrics import apgr, routing_quality

Run = Callable[..., Any]
PLACES = [
    f"{a}{b}" for a in ("North", "South", "East", "West", "New") for b in ("ham", "ton", "field", "port")
]
EASY = "What is the capital of {}?"
HARD = "Prove the theorem of {} on groups, step by step."
GOOD = "{0} has 3 rooms with 4 beds: 3 * 4 = <<3*4=12>>12 beds.\n#### 12"
WRONG = "{0} has 3 rooms with 4 beds: 3 * 4 = <<3*4=13>>13"


def rows(*, seed: int = 1, answers: bool = False) -> list[dict[str, str]]:
    """Hard questions call for the strong model; answers with wrong sums do."""
    rng = random.Random(seed)
    found = []
    for split in ("train", "dev"):
        for place in PLACES:
            for text, weak in ((EASY, 1), (HARD, 0)):
                if answers:
                    text, weak = "How many beds do 3 rooms with 4 beds make in {}?", rng.randint(0, 1)
                row = {"split": split, "prompt": text.format(place), "subject": rng.choice("abc")}
                row |= {"weak_correct": str(weak), "strong_correct": "1"}
                row["weak_answer"] = (GOOD if weak else WRONG).format(place)
                found.append(row)
    rng.shuffle(found)
    return found


def write(file: Path, data: list[dict[str, str]]) -> Path:
    with file.open("w", encoding="utf-8", newline="") as out:
        writer = csv.DictWriter(out, list(data[0]))
        writer.writeheader()
        writer.writerows(data)
    return file


def scores_of(file: Path, monkeypatch: pytest.MonkeyPatch, mecroute: Run, *options: str) -> list[float]:
    """The scores that a run gives to the evaluation rows, in order."""
    import mecroute.learn.routing_bench as bench

    seen: list[float] = []

    def keep(scores: Any, weak: Any, strong: Any) -> Any:
        seen.extend(scores)
        return routing_quality(scores, weak, strong)

    monkeypatch.setattr(bench, "routing_quality", keep)
    answer = mecroute("bench", "routing", "--train", file, "--eval", file, *options)
    assert answer.code == 0, answer.err
    return seen


def test_a_trained_router_beats_chance_on_prompts_it_has_not_seen(mecroute: Run, tmp_path: Path) -> None:
    file = write(tmp_path / "a.csv", rows())
    found = mecroute("bench", "routing", "--train", file, "--eval", file, "--json").json
    assert found["apgr"] > 0.7
    assert found["apgr_low"] <= found["apgr"] <= found["apgr_high"]
    assert 0 < found["cpt50"] <= found["cpt80"] <= 100
    assert found["route_us_p50"] > 0
    assert (found["prompts"], found["trained_rows"]) == (40, 40)


def test_the_figures_are_shown_to_people_too(mecroute: Run, tmp_path: Path) -> None:
    file = write(tmp_path / "a.csv", rows())
    saved = tmp_path / "own.mrqp"
    answer = mecroute("bench", "routing", "--train", file, "--eval", file, "--save", saved)
    assert answer.code == 0, answer.err
    for shown in ("APGR", "CPT 50%", "CPT 80%", "µs"):
        assert shown in answer.out
    assert saved.stat().st_size > 1000
    assert "predictor" in answer.err


def test_only_under_cascade_is_the_answer_read(
    mecroute: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = rows(answers=True)
    file = write(tmp_path / "a.csv", data)
    alone = mecroute("bench", "routing", "--train", file, "--eval", file, "--json").json["apgr"]
    cascade = mecroute("bench", "routing", "--train", file, "--eval", file, "--cascade", "--json").json[
        "apgr"
    ]
    assert cascade > max(0.7, alone)
    before = scores_of(file, monkeypatch, mecroute)
    other = write(tmp_path / "b.csv", [row | {"weak_answer": "anything"} for row in data])
    assert scores_of(other, monkeypatch, mecroute) == before


@pytest.mark.parametrize("options", [(), ("--cascade",)])
def test_neither_labels_of_the_evaluation_nor_subjects_are_read(
    options: tuple[str, ...], mecroute: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = rows(answers=bool(options))
    before = scores_of(write(tmp_path / "a.csv", data), monkeypatch, mecroute, *options)
    changed = []
    for number, row in enumerate(data):
        row = row | {"subject": "another"}
        if row["split"] != "train":
            row |= {"weak_correct": str(number % 2), "strong_correct": "1"}
        changed.append(row)
    assert scores_of(write(tmp_path / "b.csv", changed), monkeypatch, mecroute, *options) == before


def test_only_training_rows_are_learned_from(
    mecroute: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = rows()
    before = scores_of(write(tmp_path / "a.csv", data), monkeypatch, mecroute)
    upside_down = [
        row | {"weak_correct": "10"[int(row["weak_correct"])]} if row["split"] == "train" else row
        for row in data
    ]
    assert scores_of(write(tmp_path / "b.csv", upside_down), monkeypatch, mecroute) != before


def test_without_a_split_column_a_file_is_used_whole(mecroute: Run, tmp_path: Path) -> None:
    data = [{k: v for k, v in row.items() if k != "split"} for row in rows()]
    file = write(tmp_path / "a.csv", data)
    found = mecroute("bench", "routing", "--train", file, "--eval", file, "--json").json
    assert (found["prompts"], found["trained_rows"]) == (80, 80)


@pytest.mark.parametrize(("no", "yes", "split"), [("0.0", "1.0", "train"), ("False", " TRUE", "Train")])
def test_tables_written_by_others_are_read_alike(no: str, yes: str, split: str, tmp_path: Path) -> None:
    plain, other = tmp_path / "a.csv", tmp_path / "b.csv"
    write(plain, rows())
    spelled = []
    for row in rows():
        spelled.append({f" {name} ": value for name, value in row.items()})
        spelled[-1][" split "] = split if row["split"] == "train" else "dev"
        for label in ("weak_correct", "strong_correct"):
            spelled[-1][f" {label} "] = yes if row[label] == "1" else no
    write(other, spelled)
    other.write_bytes(b"\xef\xbb\xbf" + other.read_bytes() + b"\r\n\r\n")
    assert read_training(other) == read_training(plain)
    assert read_evaluation(other) == read_evaluation(plain)


def edited(column: str, value: str, row: int = 3) -> list[dict[str, str]]:
    data = rows()
    data[row][column] = value
    return data


@pytest.mark.parametrize(
    ("column", "value"),
    [("weak_correct", "2"), ("strong_correct", "yes"), ("weak_correct", ""), ("prompt", " "), ("split", "")],
)
def test_a_bad_cell_is_named_by_row_and_column(
    column: str, value: str, mecroute: Run, tmp_path: Path
) -> None:
    file = write(tmp_path / "a.csv", edited(column, value))
    answer = mecroute("bench", "routing", "--train", file, "--eval", file)
    assert answer.code in (1, 2)
    assert "row 5" in answer.err
    assert f"'{column}'" in answer.err
    assert "Traceback" not in answer.err


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (b"prompt,weak_correct\nx,1\n", "no column 'strong_correct'"),
        (b"split,prompt,weak_correct,strong_correct\ntrain,x,1\n", "row 2: 3 cells under 4"),
        (b"prompt,weak_correct,strong_correct\n\n", "no row below its header"),
        (b"split,prompt,weak_correct,strong_correct\ndev,x,1,1\n", "no row whose split is 'train'"),
        (b"split,prompt,weak_correct,strong_correct\ntrain,\xff\xfe,1,1\n", "not UTF-8"),
        (b'split,prompt,weak_correct,strong_correct\ntrain,"x,1,1\n', "not a CSV file"),
    ],
)
def test_a_bad_file_says_what_is_wrong(content: bytes, said: str, mecroute: Run, tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    file.write_bytes(content)
    answer = mecroute("bench", "routing", "--train", file, "--eval", file)
    assert answer.code in (1, 2)
    assert said in answer.err


def test_no_gap_between_the_models_is_said(mecroute: Run, tmp_path: Path) -> None:
    file = write(tmp_path / "a.csv", [row | {"strong_correct": "0"} for row in rows()])
    answer = mecroute("bench", "routing", "--train", file, "--eval", file)
    assert answer.code in (1, 2)
    assert "no gap" in answer.err


def test_apgr_of_known_rankings() -> None:
    weak, strong = [1] * 80 + [0] * 20, [1] * 100
    best, worst = [0.0] * 80 + [1.0] * 20, [1.0] * 80 + [0.0] * 20
    spread = [i / 1000 for i in range(100)]
    assert apgr([b + s for b, s in zip(best, spread, strict=True)], weak, strong) == pytest.approx(
        0.9, abs=0.01
    )
    assert apgr([w + s for w, s in zip(worst, spread, strict=True)], weak, strong) == pytest.approx(
        0.1, abs=0.01
    )
    assert apgr([0.0] * 100, weak, strong) == pytest.approx(0.5)


def test_a_model_is_benched_with_and_without_the_verb(mecroute: Run) -> None:
    for line in (("bench", "none:v1"), ("bench", "model", "none:v1"), ("bench", "--runs", "3", "none:v1")):
        answer = mecroute(*line)
        assert answer.code == 1
        assert "none:v1" in answer.err
