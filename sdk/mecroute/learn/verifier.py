"""Trains a verifier: how likely a weak model's answer is wrong and a strong one's right, given the answer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from operator import mul
from typing import TYPE_CHECKING, Any

from mecroute.errors import MissingExtraError, UsageError
from mecroute.learn.outcomes import Labelled
from mecroute.predict.answer_checks import check_answer
from mecroute.predict.shape import SHAPE_NAMES, shape
from mecroute.predict.token_vectors import read_words

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[Any]

#: Ridge on the standardised checks, chosen by cross-validation on GSM8K's training rows; flat around it.
_RIDGE = 30.0
_SCALE_FLOOR = 0.1
_LIMIT = 4.0
_NEWTON_STEPS = 25
#: What of a question's shape bears on whether its answer is right.
_SHAPES = tuple(
    SHAPE_NAMES.index(name)
    for name in (
        *("characters", "sentences", "commas", "money", "percent signs", "numbers", "number words"),
        *("comparisons", "conditions", "shares"),
    )
)


@dataclass(frozen=True)
class Verifier:
    """A logistic model of the checks of an answer and the shape of its question. Pure Python, thread-safe."""

    mean: Sequence[float]
    scale: Sequence[float]
    weights: Sequence[float]
    bias: float

    def score(self, row: Labelled) -> float:
        """Probability, 0..1, that asking the strong model would turn a wrong answer into a right one."""
        return self.probability(row.prompt, row.weak_answer)

    def probability(self, question: str, answer: str) -> float:
        """As `score`, of a question and an answer."""
        found = [
            min(_LIMIT, max(-_LIMIT, (value - mean) / scale))
            for value, mean, scale in zip(_features(question, answer), self.mean, self.scale, strict=True)
        ]
        z = self.bias + sum(map(mul, self.weights, found))
        return 1 / (1 + math.exp(-max(-30.0, min(30.0, z))))


def train_verifier(rows: Sequence[Labelled]) -> Verifier:
    """Learn from labelled answers by ridge logistic regression.

    Raises:
        UsageError: every row has the same outcome.
        MissingExtraError: numpy is not installed.
    """
    try:
        import numpy as np
    except ImportError as error:
        raise MissingExtraError("device", "training a verifier") from error
    target = np.array([float(row.strong > row.weak) for row in rows])
    if target.min() == target.max():
        raise UsageError("no labelled answer is one that the strong model would have put right")
    raw = np.array([_features(row.prompt, row.weak_answer) for row in rows])
    mean, scale = raw.mean(0), raw.std(0) + _SCALE_FLOOR
    columns = np.clip((raw - mean) / scale, -_LIMIT, _LIMIT)
    design = np.hstack([columns, np.ones((len(rows), 1))])
    penalty = np.full(design.shape[1], _RIDGE)
    penalty[-1] = 1e-6
    weights = _logistic(np, design, target, penalty)
    return Verifier(mean.tolist(), scale.tolist(), weights[:-1].tolist(), float(weights[-1]))


def _logistic(np: Any, design: Floats, target: Floats, penalty: Floats) -> Floats:
    """Newton's method; the ridge makes the problem strictly convex."""
    weights: Floats = np.zeros(design.shape[1])
    for _ in range(_NEWTON_STEPS):
        p = 1 / (1 + np.exp(-np.clip(design @ weights, -30, 30)))
        gradient = design.T @ (p - target) + penalty * weights
        curvature = (design * (p * (1 - p))[:, None]).T @ design + np.diag(penalty)
        step = np.linalg.solve(curvature, gradient)
        weights = weights - step
        if float(np.abs(step).max()) < 1e-8:
            break
    return weights


def _features(question: str, answer: str) -> list[float]:
    found = shape(question, read_words(question))
    return [*check_answer(question, answer), *(found[place] for place in _SHAPES)]
