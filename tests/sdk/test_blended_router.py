"""The router of the bench: its trees, its features, and that its fast evaluation is the exact one."""

from __future__ import annotations

import random

import numpy as np
import pytest

from mecroute.errors import UsageError
from mecroute.learn.blend import BlendedRouter, train_router
from mecroute.learn.extra_trees import ExtraTrees, grow_extra_trees
from mecroute.learn.outcomes import Labelled
from mecroute.learn.quantities import quantities
from mecroute.predict.shape import shape
from mecroute.predict.token_vectors import read_words, shipped_vectors

NAMES = ("Ann", "Ben", "Cleo", "Dan", "Eve", "Finn", "Gus", "Hal", "Ida", "Jim", "Kay", "Lou")


def question(name: str, steps: int) -> str:
    """A sum of some steps."""
    middle = " ".join(f"Then {name} buys {3 + i} more boxes at ${i + 2} each." for i in range(steps))
    return f"{name} has 12 pens. {middle} How much does {name} spend?"


def labelled(*, noise: float = 0.1, seed: int = 5) -> list[Labelled]:
    """The weak model fails at sums of many steps, and by chance."""
    rng = random.Random(seed)
    rows = []
    for name in NAMES:
        for steps in range(1, 9):
            right = (steps < 5) != (rng.random() < noise)
            rows.append(Labelled(question(name, steps), int(right), 1))
    rng.shuffle(rows)
    return rows


@pytest.fixture(scope="module")
def router() -> BlendedRouter:
    return train_router(labelled(), shipped_vectors())


def test_it_ranks_prompts_it_has_not_seen(router: BlendedRouter) -> None:
    easy = [router.score(Labelled(question("Mia", steps), 0, 0)) for steps in (1, 2, 3)]
    hard = [router.score(Labelled(question("Mia", steps), 0, 0)) for steps in (6, 7, 8)]
    assert max(easy) + 0.2 < min(hard)


def test_training_again_gives_the_same_router(router: BlendedRouter) -> None:
    again = train_router(labelled(), shipped_vectors())
    text = question("Zoe", 4)
    assert again.predict(text) == pytest.approx(router.predict(text), abs=1e-9)


def test_what_it_evaluates_is_what_it_was_fitted_to() -> None:
    """With labels that the features tell exactly, the fit is close on the training rows themselves."""
    rows = labelled(noise=0.0)
    router = train_router(rows, shipped_vectors())
    errors = [abs(router.predict(row.prompt)[0] - row.weak) for row in rows]
    assert sum(errors) / len(errors) < 0.15
    assert 0 <= router.tree_part <= 1


@pytest.mark.parametrize("text", ["", "\0", "漢字" * 500, "9" * 5000, "1e999 " * 9, "٣ apples and ½ of 10"])
def test_any_prompt_has_a_finite_score(router: BlendedRouter, text: str) -> None:
    assert np.isfinite(router.score(Labelled(text, 0, 0)))


def test_too_little_to_learn_from_is_said() -> None:
    with pytest.raises(UsageError, match="too few"):
        train_router(labelled()[:5], shipped_vectors())
    with pytest.raises(UsageError, match="same outcome"):
        train_router([Labelled(f"question {i}", 1, 1) for i in range(40)], shipped_vectors())


def test_a_forest_finds_a_step_and_its_leaves_hold_enough() -> None:
    rng = np.random.default_rng(2)
    features = rng.uniform(-1, 1, (300, 3))
    targets = np.stack([features[:, 1] > 0.2, features[:, 1] <= 0.2], 1).astype(float)
    forest = grow_extra_trees(np, features, targets, trees=40, min_leaf=10, rng=rng)
    assert forest.predict([0.0, 0.8, 0.0])[0] > 0.7
    assert forest.predict([0.0, -0.8, 0.0])[0] < 0.3
    single = grow_extra_trees(np, features, targets, trees=1, min_leaf=300, rng=rng)
    assert single.predict([0, 0, 0]) == pytest.approx(targets.mean(0).tolist())


def test_a_forest_is_the_mean_of_its_trees() -> None:
    forest = ExtraTrees([[1.0], (0, 0.5, [3.0], (1, 2.0, [5.0], [7.0]))])
    assert forest.predict([0.5, 9]) == [2.0]
    assert forest.predict([0.6, 2]) == [3.0]
    assert forest.predict([0.6, 2.1]) == [4.0]


def test_features_without_variance_make_no_fork() -> None:
    forest = grow_extra_trees(
        np, np.ones((50, 2)), np.arange(50.0)[:, None], trees=2, min_leaf=5, rng=np.random.default_rng(1)
    )
    assert forest.predict([1, 1]) == [24.5]


def test_quantities_are_counted() -> None:
    text = "Ben pays $1,200.50 for 3/4 of the total at a discount of 10%. Each of 2 men pays 5% tax."
    words = read_words(text)
    found = quantities(text, words, shape(text, words))
    assert found[10] == pytest.approx(np.log1p(1200.5))
    assert found[11:13] == [1, 1]  # decimals, fractions
    assert found[14:] == [1, 2, 1]  # "total"; "discount" and "tax"; money
    assert found[5] == pytest.approx(2)  # percent signs
