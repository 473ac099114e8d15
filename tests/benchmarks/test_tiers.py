"""The benchmark of the tiers: its workload, its arithmetic, and the product's decisions in it.

All rows are made up here, and so are the answers: nothing is measured.
"""

from __future__ import annotations

import bz2
import json
import math
import random
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import onnx
import pytest

from mecroute.config.schema import Weighting
from mecroute.engines.onnx.encoder import open_onnx
from support.tiny_encoder import WORDS, write_encoder
from tiers import evaluate, report
from tiers_answers import Answer, read_answers
from tiers_encoder import fit_head, with_head
from tiers_front import Run, best_mix, front, hull, less, oracle, over_mix
from tiers_plot import Series, draw
from tiers_replay import Replay, measure
from tiers_workload import (
    DOMAINS,
    NO_CLASS,
    Item,
    intent_classes,
    intent_rows,
    other_rows,
    read_workload,
)

_PER_INTENT = {"train": 2, "val": 5, "test": 23}


def write_data(folder: Path, *, out_of_scope: int = 200) -> Path:
    """Data in the form of the three sets, with as many rows as a workload needs."""
    clinc, hellaswag, arc = (folder / name for name in ("clinc150", "hellaswag", "arc_challenge"))
    for one in (clinc, hellaswag, arc):
        one.mkdir(parents=True)
    domains = {name: [f"{name}_intent_{at}" for at in range(15)] for name in (*DOMAINS, "kitchen")}
    rows: dict[str, Any] = {
        split: [
            [f"{split} {number} of {intent}", intent]
            for intents in domains.values()
            for intent in intents
            for number in range(count)
        ]
        for split, count in _PER_INTENT.items()
    }
    for split, count in (("train", 10), ("val", 40), ("test", out_of_scope)):
        rows[f"oos_{split}"] = [[f"{split} {number} of nothing", "oos"] for number in range(count)]
    (clinc / "domains.json").write_text(json.dumps(domains))
    (clinc / "data_full.json").write_text(json.dumps(rows))
    tasks = (f"Beginning {at}\n{at % 4}\nfirst\nsecond\nthird\nfourth\n" for at in range(480))
    (hellaswag / "hellaswag_val_full.txt.bz2").write_bytes(bz2.compress("".join(tasks).encode()))
    for name, count in (("test", 400), ("train", 80)):
        (arc / f"{name}.jsonl").write_text(
            "".join(json.dumps(_question(name, at)) + "\n" for at in range(count + 1))
        )
    return folder


def _question(name: str, at: int) -> dict[str, Any]:
    if at == 0:  # one with three choices, which is left out
        choices: dict[str, Any] = {"text": ["x", "y", "z"], "label": ["A", "B", "C"]}
        return {"question": f"{name} short?", "choices": choices, "answerKey": "A"}
    choices = {"text": ["w", "x", "y", "z"], "label": ["1", "2", "3", "4"]}
    return {"question": f"{name} {at}?", "choices": choices, "answerKey": str(at % 4 + 1)}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def items(data: Path) -> list[Item]:
    return read_workload(data)


def test_the_workload_has_the_stated_proportions_and_its_parts_share_no_text(items: list[Item]) -> None:
    for part, share in (("measured", 1), ("calibration", 5)):
        mine = [item for item in items if item.part == part]
        counts = {name: sum(item.set == name for item in mine) for name in ("intents", "endings", "science")}
        assert counts == {"intents": 1200 // share, "endings": 400 // share, "science": 400 // share}
        assert sum(item.answer == NO_CLASS for item in mine) == 200 // share
    texts = {part: {i.text for i in items if i.part == part} for part in ("measured", "calibration")}
    assert not texts["measured"] & texts["calibration"]
    assert len({item.id for item in items}) == len(items) == 2400
    # Mixed: no set comes in one piece.
    assert len({item.set for item in items[:30]}) == 3


def test_the_same_seed_gives_the_same_requests(data: Path, items: list[Item]) -> None:
    assert read_workload(data) == items
    assert read_workload(data, seed=12) != items


def test_right_answers_are_among_the_choices_that_the_grammar_allows(items: list[Item]) -> None:
    for name in ("intents", "endings", "science"):
        item = next(item for item in items if item.set == name)
        body = item.body()
        assert item.answer in item.choices
        assert all(json.dumps(choice) in body["grammar"] for choice in item.choices)
        assert body["messages"][1]["content"] == item.text
    science = next(item for item in items if item.id == "science-0")
    # `science-0` is question n with the right answer n % 4 + 1 of 4, which became a letter.
    number = int(science.text.split("?")[0].split()[1])
    assert science.answer == "ABCD"[number % 4]
    assert "B. x" in science.text


def test_the_encoder_learns_from_other_rows_than_it_is_asked(data: Path, items: list[Item]) -> None:
    trained = {text for text, _ in intent_rows(data / "clinc150", "train")}
    trained |= set(other_rows(data / "clinc150", "train", 2, 1))
    assert not trained & {item.text for item in items}
    assert len(intent_classes(data / "clinc150")) == 46
    assert all("kitchen" in text for text in other_rows(data / "clinc150", "train", 2, 1))


def test_too_few_rows_and_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="has 199 rows of a kind of which 200 are needed"):
        read_workload(write_data(tmp_path / "few", out_of_scope=199))
    with pytest.raises(SystemExit, match=r"domains\.json cannot be read"):
        read_workload(tmp_path / "none")


def _points(*points: tuple[float, float]) -> tuple[Any, Any]:
    return np.array([ms for ms, _ in points]), np.array([accuracy for _, accuracy in points])


@pytest.mark.parametrize(
    ("at_ms", "expected"),
    [
        (50.0, 0.2),  # no mix is as fast: the fastest
        (100.0, 0.2),
        (200.0, 0.45),  # half way between 0.2 and 0.7; the one in the middle is below that line
        (300.0, 0.7),
        (900.0, 0.7),
    ],
)
def test_the_best_mix_lies_on_the_upper_hull(at_ms: float, expected: float) -> None:
    latencies, accuracies = _points((100.0, 0.2), (180.0, 0.3), (300.0, 0.7), (400.0, 0.6))
    assert best_mix(latencies, accuracies, np.array(at_ms)) == pytest.approx(expected)
    # A batch of resamples gives the same, one by one.
    both = best_mix(np.stack([latencies] * 2), np.stack([accuracies] * 2), np.array([at_ms, at_ms]))
    assert both == pytest.approx([expected, expected])


def _run(name: str, right: list[float], ms: list[float]) -> Run:
    return Run(name, np.array(right), np.array(ms))


def test_fronts_and_hulls_leave_out_what_is_no_corner() -> None:
    runs = [
        _run("fast", [0.2], [100.0]),
        _run("below the line", [0.3], [180.0]),
        _run("best", [0.7], [300.0]),
        _run("slower and worse", [0.6], [400.0]),
    ]
    assert [run.name for run in front(runs)] == ["fast", "below the line", "best"]
    assert [run.name for run in hull(runs)] == ["fast", "best"]


def test_an_oracle_takes_the_fastest_that_is_right() -> None:
    found = oracle({"small": _run("s", [1, 0, 0], [10, 10, 10]), "large": _run("l", [1, 1, 0], [90, 90, 90])})
    assert found.right.tolist() == [1, 1, 0]
    assert found.latency_ms.tolist() == [10, 90, 10]


def test_a_mix_gains_nothing_over_mixing_and_knowing_does() -> None:
    rng = np.random.default_rng(1)
    count = 1500
    easy = rng.random(count) < 0.5
    small = Run("small", easy.astype(float), np.full(count, 10.0))
    large = Run("large", np.ones(count), np.full(count, 100.0))
    tossed = rng.random(count) < 0.5
    chance = Run("chance", np.where(tossed, 1.0, small.right), np.where(tossed, 100.0, 10.0))
    knows = Run("knows", np.ones(count), np.where(easy, 10.0, 100.0))
    none, some = (over_mix(run, [small, large], resamples=300) for run in (chance, knows))
    assert none.low < 0 < none.high
    assert some.low > 0.15
    assert some.low < some.value < some.high
    gap = less(knows, small, resamples=300)
    assert gap.value == pytest.approx(1 - easy.mean())
    assert gap.low < gap.value < gap.high


#: How likely each tier is to be right, by set: no tier is best at everything.
_RIGHT = {
    "encoder": {"intents": 0.95},
    "device": {"intents": 0.1, "endings": 0.25, "science": 0.25},
    "mec": {"intents": 0.4, "endings": 0.7, "science": 0.3},
    "cloud": {"intents": 0.6, "endings": 0.72, "science": 0.9},
}
_MS = {"encoder": 4.0, "device": 100.0, "mec": 200.0, "cloud": 600.0}


def _answers(items: list[Item], seed: int = 3) -> dict[tuple[str, str], Answer]:
    rng = random.Random(seed)
    found = {}
    for item in items:
        for tier, by_set in _RIGHT.items():
            if item.set not in by_set:
                continue
            right = rng.random() < by_set[item.set]
            took = _MS[tier] * rng.uniform(0.9, 1.1)
            found[item.id, tier] = Answer(
                id=item.id, set=item.set, tier=tier, answer=item.answer if right else "?", right=right,
                ttft_ms=took, latency_ms=took, prompt_tokens=60, cached_tokens=20,
                output_tokens=0 if tier == "encoder" else 1,
            )  # fmt: skip
    return found


def test_the_agents_learn_which_tier_can_do_which_set(items: list[Item]) -> None:
    chosen = [*items[:300], *(item for item in items if item.part == "calibration")]
    answers = _answers(chosen)
    replay = Replay(
        chosen, answers, policies={"best": Weighting(quality=1.0), "fast": Weighting(latency=1.0)}
    )
    for policy, expected in (
        ("best", {"intents": "encoder", "science": "cloud"}),
        ("fast", {"intents": "encoder", "endings": "device", "science": "device"}),
    ):
        run, tiers = replay.run(items[:300], policy, policy)
        for name, tier in expected.items():
            mine = [one for one, item in zip(tiers, items[:300], strict=True) if item.set == name]
            assert mine.count(tier) > 0.95 * len(mine), (policy, name)
        assert len(run.right) == 300
    # The time of the decision is part of the latency.
    took = [answers[item.id, tier].latency_ms for item, tier in zip(items[:300], tiers, strict=True)]
    assert all(run.latency_ms > np.array(took))


def test_nothing_is_learned_from_what_is_measured(items: list[Item]) -> None:
    chosen = [*items[:60], *(item for item in items if item.part == "calibration")]
    answers = _answers(chosen)
    upset = {
        key: replace(one, right=not one.right, latency_ms=9e4, ttft_ms=9e4)
        if key[0] in {item.id for item in items[:60]}
        else one
        for key, one in answers.items()
    }
    before, after = (Replay(chosen, known).run(items[:60], "x", "balanced")[1] for known in (answers, upset))
    assert before == after


def test_a_profile_is_what_was_measured() -> None:
    common: dict[str, Any] = {"set": "science", "tier": "mec", "answer": "A", "prompt_tokens": 150}
    first = Answer(
        id="a", right=True, ttft_ms=500, latency_ms=1000, cached_tokens=50, output_tokens=11, **common
    )
    second = Answer(
        id="b", right=False, ttft_ms=500, latency_ms=500, cached_tokens=50, output_tokens=1, **common
    )
    found = measure([first, second])
    assert found.prefill_tokens_per_s == pytest.approx(200)
    assert found.decode_tokens_per_s == pytest.approx(20)
    assert found.accuracy == 0.5


def test_the_report_says_what_was_found(items: list[Item]) -> None:
    chosen = [*items[:200], *(item for item in items if item.part == "calibration")]
    found = evaluate(chosen, _answers(chosen))
    picture = ElementTree.fromstring(found.pop("svg"))
    assert picture.tag.endswith("svg")
    json.dumps(found, allow_nan=False)
    best = next(row for row in found["auto"] if row["policy"] == "quality-first")
    assert best["over_mixing"]["low"] > 0
    assert found["per_set"]["science"]["best_tier"] == "Qwen 1.5B"
    text = report(found)
    assert f"| quality-first | +{best['over_mixing']['value'] * 100:.1f}" in text
    assert len({line.count("|") for line in text.splitlines() if line.startswith("| auto, ")}) == 1


def test_a_picture_holds_every_point_and_escapes_names() -> None:
    root = ElementTree.fromstring(
        draw([Series("a < b", "#000", [(10, 0.2), (400, 0.9)], "solid", ["x", "y"], [(0.1, 0.3)])], "t & u")
    )
    circles = [one for one in root.iter() if one.tag.endswith("circle")]
    xs = [float(one.attrib["cx"]) for one in circles]
    ys = [float(one.attrib["cy"]) for one in circles]
    assert len(circles) == 2
    assert xs[0] < xs[1]
    assert ys[0] > ys[1]  # better is higher
    assert all(math.isfinite(value) for value in (*xs, *ys))
    assert "a < b" in [one.text for one in root.iter()]


def test_answers_that_were_cut_off_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    assert read_answers(path) == []
    whole = {
        "id": "a", "set": "science", "tier": "mec", "answer": "A", "right": True, "ttft_ms": 1.0,
        "latency_ms": 2.0, "prompt_tokens": 3, "cached_tokens": 0, "output_tokens": 1,
    }  # fmt: skip
    path.write_text(json.dumps(whole) + "\n" + json.dumps(whole)[:40])
    assert [one.id for one in read_answers(path)] == ["a"]


def test_the_head_becomes_part_of_the_graph_and_its_classes_are_read(tmp_path: Path) -> None:
    folder = write_encoder(tmp_path / "encoder")
    table = {word: [word] for word in WORDS[2:]}
    with open_onnx(folder) as engine:
        assert engine.encoder is not None
        vectors = np.concatenate([engine.encoder.embed(texts)[0] for texts in table.values()])
    places = np.arange(len(table))
    weights, biases = fit_head(vectors, places, len(table))
    model = with_head(onnx.load(str(folder / "model.onnx")), weights, biases)
    onnx.save(model, str(folder / "model.onnx"))
    (folder / "config.json").write_text(
        json.dumps({"id2label": {str(at): word for at, word in enumerate(table)}})
    )
    with open_onnx(folder) as engine:
        classifier = engine.classifier
        assert classifier is not None
        assert classifier.classes.labels == tuple(table)
        for at, word in enumerate(table):
            groups, _ = classifier.groups([word])
            shares = classifier.probabilities(classifier.submit(groups[0]).result())[0]
            logits = vectors[at] @ weights + biases
            expected = np.exp(logits - logits.max())
            assert shares == pytest.approx(expected / expected.sum(), abs=1e-5)
            assert shares.argmax() == at
