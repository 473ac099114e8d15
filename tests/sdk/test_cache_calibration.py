"""Calibration: the bound is the exact one, it holds on fresh data, and hopeless data switches it off."""

from __future__ import annotations

import random

import pytest

from mecroute.caching.calibration import _levels, calibrate, load_calibration, save_calibration
from mecroute.caching.embedder import HashingEmbedder
from mecroute.errors import InvalidRequestError
from mecroute.predict.error_bound import find_threshold, upper_bound

THINGS = [
    "card",
    "loan",
    "ticket",
    "parcel",
    "invoice",
    "meeting",
    "password",
    "address",
    "battery",
    "router",
]
DOINGS = ["lost", "late", "broken", "changed", "stolen", "expired", "doubled", "blocked", "missing", "wrong"]
FRAMES = [
    "my {t} is {d}",
    "the {t} is {d}, what now",
    "help, {t} {d}",
    "why is my {t} {d}",
    "{t} {d} please help me",
    "i think that my {t} was {d}",
    "hello, my {t} got {d} yesterday",
    "what to do when a {t} is {d}",
]


def questions(count: int, seed: int, *, noise: float = 0.0) -> list[tuple[str, str]]:
    """Questions of 100 labels in many words; with noise, some carry the label of another."""
    rng = random.Random(seed)
    found = []
    for number in range(count):
        thing, doing = rng.choice(THINGS), rng.choice(DOINGS)
        label = f"{thing}-{doing}" if rng.random() >= noise else f"other-{rng.random()}"
        text = rng.choice(FRAMES).format(t=thing, d=doing)
        found.append(
            (
                f"{text} {rng.choice(['', 'thanks', 'asap', 'again', 'sir'])} {'abcdefghij'[number % 10]}",
                label,
            )
        )
    return found


@pytest.mark.parametrize(
    ("wrong", "hits", "expected"),
    [
        # R: binom.test(k, n, alternative = "less")$conf.int[2]
        (0, 299, 0.009969), (0, 10, 0.258866), (1, 100, 0.046560), (5, 100, 0.102253), (50, 1000, 0.062889),
        (3, 3, 1.0), (0, 1, 0.95),
    ],
)  # fmt: skip
def test_the_bound_is_clopper_and_pearson_s(wrong: int, hits: int, expected: float) -> None:
    assert upper_bound(wrong, hits) == pytest.approx(expected, abs=1e-4)


def test_the_bound_covers_the_true_rate_as_often_as_it_says() -> None:
    rng = random.Random(3)
    covered = sum(
        upper_bound(sum(rng.random() < 0.05 for _ in range(200)), 200, 0.9) >= 0.05 for _ in range(500)
    )
    assert covered >= 0.9 * 500 - 30


def test_the_stated_rate_holds_on_questions_that_nothing_was_chosen_by() -> None:
    found = calibrate(questions(3000, 1), HashingEmbedder(), rate=0.02)
    assert found.threshold is not None
    assert found.upper_bound <= 0.02
    assert found.check_hits > 50, "a threshold that lets nothing through would be no cache"
    assert found.check_wrong / found.check_hits <= 0.03


def test_searching_for_a_threshold_costs_none_of_the_confidence() -> None:
    """Wrong hits become likelier as similarity falls: at threshold t a share of 0.1 (1 - t) is wrong."""
    rng = random.Random(9)
    broken = found_some = 0
    for _ in range(100):
        hits = [(s, rng.random() >= 0.2 * (1 - s)) for s in (rng.random() for _ in range(10_000))]
        threshold, _, _, bound = find_threshold(_levels(hits), 0.02, 0.95)
        if threshold is not None:
            found_some += 1
            assert bound <= 0.02
            broken += 0.1 * (1 - threshold) > 0.02
    assert found_some > 50
    assert broken <= 0.05 * 100 + 5


def test_data_on_which_similar_means_nothing_leaves_it_off() -> None:
    found = calibrate(questions(1700, 2, noise=0.5), HashingEmbedder(), rate=0.01)
    assert found.threshold is None
    assert found.check_hits == 0


def test_a_laxer_rate_gives_no_stricter_threshold() -> None:
    data = questions(1000, 4, noise=0.02)
    thresholds = [calibrate(data, HashingEmbedder(), rate=rate).threshold for rate in (0.05, 0.1, 0.3)]
    known = [threshold for threshold in thresholds if threshold is not None]
    assert known == sorted(known, reverse=True)
    assert len(known) >= 1


@pytest.mark.parametrize(
    ("count", "facts", "said"),
    [
        (100, {"rate": 0.01}, "too few"),
        (100, {"rate": 0}, "between"),
        (100, {"rate": 0.5, "confidence": 1}, "between"),
    ],
)  # fmt: skip
def test_what_cannot_be_calibrated_is_refused(count: int, facts: dict[str, float], said: str) -> None:
    with pytest.raises(InvalidRequestError, match=said):
        calibrate(questions(count, 5), HashingEmbedder(), **facts)  # type: ignore[arg-type]


def test_a_calibration_is_kept_and_read(tmp_path) -> None:
    found = calibrate(questions(800, 6), HashingEmbedder(), rate=0.1)
    assert load_calibration(tmp_path / "none.json") is None
    assert load_calibration(save_calibration(found, tmp_path / "x" / "kept.json")) == found


def test_nearest_agrees_with_comparing_each() -> None:
    embedder = HashingEmbedder()
    known = embedder.embed([text for text, _ in questions(60, 7)])
    asked = embedder.embed([text for text, _ in questions(40, 8)])
    for query, (index, similarity) in zip(asked, embedder.nearest(asked, known), strict=True):
        each = [embedder.similarity(query, other) for other in known]
        assert similarity == pytest.approx(max(each))
        assert each[index] == pytest.approx(max(each))
