"""The quality predictor: what it learns, what it refuses, and that its fast evaluation is the exact one."""

from __future__ import annotations

import random
import subprocess
import sys
from array import array
from contextlib import suppress
from pathlib import Path

import pytest

from mecroute.errors import ConfigError, UsageError
from mecroute.learn.outcomes import Labelled
from mecroute.learn.quality import train_quality
from mecroute.predict.complexity import request_features
from mecroute.predict.difficulty import difficulty_source
from mecroute.predict.quality_model import QualityModel, Weights, read_quality_model, shipped_quality_model
from mecroute.predict.surface import STEPS, QuadraticSurface, SurfaceWeights
from mecroute.predict.token_vectors import TokenVectors, pack_table, read_words, shipped_vectors
from mecroute.request import ingest

EASY = ["What is the capital of {}?", "Name a fruit that grows in {}.", "Say hello in the language of {}."]
HARD = ["Prove the theorem on groups named after {}.", "Derive the integral equation of {} and its matrix."]
PLACES = [
    "Rome",
    "Oslo",
    "Lima",
    "Cairo",
    "Delhi",
    "Paris",
    "Quito",
    "Seoul",
    "Accra",
    "Minsk",
    "Tunis",
    "Hanoi",
]


def labelled() -> list[Labelled]:
    """Easy questions both models answer, hard ones the strong model alone."""
    rows = [Labelled(text.format(place), 1, 1) for text in EASY for place in PLACES]
    rows += [Labelled(text.format(place), 0, 1) for text in HARD for place in PLACES]
    rows[3] = Labelled(rows[3].prompt, 1, 0)
    random.Random(1).shuffle(rows)
    return rows


@pytest.fixture(scope="module")
def weights() -> Weights:
    return train_quality(labelled(), shipped_vectors())


def test_it_tells_apart_what_the_weak_model_can_answer(weights: Weights) -> None:
    model = QualityModel(weights, shipped_vectors())
    easy, _ = model.predict("What is the capital of Bern?")
    hard, strong = model.predict("Prove the theorem on groups named after Bern.")
    assert hard + 0.4 < easy
    assert strong > 0.8


def test_a_saved_predictor_predicts_the_same(weights: Weights, tmp_path: Path) -> None:
    file = tmp_path / "own.mrqp"
    file.write_bytes(weights.pack())
    text = "Derive the capital of Oslo."
    expected = QualityModel(weights, shipped_vectors()).predict(text)
    assert read_quality_model(file).predict(text) == pytest.approx(expected, abs=1e-5)


def test_the_surface_is_the_quadratic_function_it_stands_for() -> None:
    rng = random.Random(7)
    dim, ranks = 9, (3, 2)
    directions = [[rng.randint(-127, 127) for _ in range(dim)] for _ in range(sum(ranks))]
    curvature = [[rng.uniform(-1e-4, 1e-4) for _ in range(rank)] for rank in ranks]
    linear = [[rng.uniform(-1, 1) for _ in range(dim)] for _ in ranks]
    stored = array("b", [value for row in directions for value in row]).tobytes()
    surface = QuadraticSurface(SurfaceWeights(stored, curvature, linear))
    for _ in range(20):
        x = [rng.uniform(-1, 1) for _ in range(dim)]
        at = [sum(a * b for a, b in zip(row, x, strict=True)) for row in directions]
        expected = [
            sum(a * b for a, b in zip(linear[head], x, strict=True))
            + sum(c * a * a for c, a in zip(curvature[head], at[begin:end], strict=True))
            for head, begin, end in ((0, 0, 3), (1, 3, 5))
        ]
        steps = [int(value * STEPS) for value in x]
        assert surface.at(steps) == pytest.approx(expected, abs=0.02)


def test_the_vector_of_a_text_is_the_mean_of_its_pieces() -> None:
    table = TokenVectors(["edge", "##s", "run"], array("b", [100, 0, 0, 100, -100, 0]).tobytes(), 2)
    assert table.vector(["edge"]) == pytest.approx([1, 0])
    assert table.vector(["edges"]) == pytest.approx([0.5**0.5, 0.5**0.5])
    assert table.vector(["run", "unheard"]) == pytest.approx([-1, 0])
    assert table.vector([]) == [0, 0]
    assert table.steps(["edges", "edge"], 1000, 2) == [894, 447]
    assert table.steps([], 1000, 2) == [0, 0]
    assert table.vector(["edges"], 1) == [1]


def test_words_are_read_without_case_and_accents_and_long_texts_from_both_ends() -> None:
    assert read_words("Größe, café!") == ["große", ",", "cafe", "!"]
    words = read_words("begin " + "x " * 50_000 + "end")
    assert words[0] == "begin"
    assert words[-1] == "end"
    assert len(words) < 4000


def test_a_damaged_table_is_refused() -> None:
    good = pack_table(["a", "b"], b"\x01\x02\x03\x04", 2, 1.0)
    TokenVectors.unpack(good, "t")
    for bad in (b"", good[:-1], b"XXXX" + good[4:], good + b"\0", pack_table(["a", "a"], b"\0" * 4, 2, 1.0)):
        with pytest.raises(ConfigError, match="t is|t has"):
            TokenVectors.unpack(bad, "t")


def test_a_damaged_predictor_is_refused(weights: Weights) -> None:
    good = weights.pack()
    broken = [b"", b"PK\x03\x04", good[:200], good[:-4], good + b"\0", good[:4] + b"\xff\xff" + good[6:]]
    broken.append(good[:-4] + array("f", [float("nan")]).tobytes())
    broken.append(good[:6] + b"\xff\xff\xff\xff" + good[10:])
    for data in broken:
        with pytest.raises(ConfigError, match="own"):
            Weights.unpack(data, "own")


def test_random_damage_never_escapes_as_another_error(weights: Weights) -> None:
    good = weights.pack()
    rng = random.Random(3)
    for _ in range(300):
        data = bytearray(good)
        for _ in range(rng.randint(1, 4)):
            data[rng.randrange(min(len(data), 1200))] = rng.randrange(256)
        with suppress(ConfigError):
            QualityModel(Weights.unpack(bytes(data), "own"), shipped_vectors()).predict("x")


def test_a_missing_file_says_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        difficulty_source(str(tmp_path / "none.mrqp"))


def test_too_little_to_learn_from_is_said() -> None:
    with pytest.raises(UsageError, match="too few"):
        train_quality(labelled()[:5], shipped_vectors())
    with pytest.raises(UsageError, match="same outcome"):
        train_quality([Labelled(f"question {i}", 1, 1) for i in range(40)], shipped_vectors())


CHAT_EASY = [
    "Hi!",
    "What is the capital of France?",
    "Is water wet? Answer yes or no.",
    "Set an alarm for 7 am",
]
CHAT_HARD = [
    "Prove step by step that the square root of 2 is irrational, and justify each deduction.",
    "Compare three database designs for this workload, analyse the trade-offs, and plan a migration:\n"
    "- zero downtime\n- under 5 ms p95\n- no data loss",
]


@pytest.mark.parametrize("easy", CHAT_EASY)
@pytest.mark.parametrize("hard", CHAT_HARD)
def test_the_shipped_predictor_is_sane_on_ordinary_prompts(easy: str, hard: str) -> None:
    difficulty = difficulty_source("shipped")
    assert difficulty is not None
    assert difficulty(easy) + 0.3 < difficulty(hard)

    def complexity(text: str) -> float:
        body = {"messages": [{"role": "user", "content": text}]}
        return request_features(ingest("chat", model="auto", body=body), difficulty=difficulty).complexity

    assert complexity(easy) + 0.25 < complexity(hard)


@pytest.mark.parametrize(
    "text", ["", "\0", "漢字" * 5000, "a" * 100_000, "🙂", "\n" * 9000, "A. \nB. \n", "9" * 5000]
)
def test_any_text_has_a_difficulty(text: str) -> None:
    difficulty = difficulty_source("shipped")
    assert difficulty is not None
    assert 0 <= difficulty(text) <= 1


def test_the_shipped_predictor_says_what_it_learned_from() -> None:
    about = shipped_quality_model().about
    assert about["rows"] > 1000
    assert about["licence"]
    assert about["source"]


def test_what_is_shipped_stays_small() -> None:
    folder = Path(sys.modules[QualityModel.__module__].__file__ or "").parent / "data"
    assert sum(file.stat().st_size for file in folder.iterdir()) < 5_000_000


def test_predicting_needs_no_numpy_and_importing_loads_no_table() -> None:
    code = (
        "import sys, mecroute\n"
        "assert 'mecroute.predict.token_vectors' not in sys.modules\n"
        "from mecroute.predict.difficulty import difficulty_source\n"
        "difficulty_source('shipped')('What is an edge server?')\n"
        "assert 'numpy' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
