"""Trains a verifier: how likely a weak model's answer is wrong and a strong one's right, given the answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mecroute.cascade.verifier import Verifier, fit_verifier
from mecroute.errors import UsageError
from mecroute.learn.outcomes import Labelled
from mecroute.predict.answer_checks import check_answer
from mecroute.predict.shape import SHAPE_NAMES, shape
from mecroute.predict.token_vectors import read_words

#: Ridge on the standardised checks, chosen by cross-validation on GSM8K's training rows; flat around it.
_RIDGE = 30.0
_SCALE_FLOOR = 0.1
#: What of a question's shape bears on whether its answer is right.
_SHAPES = tuple(
    SHAPE_NAMES.index(name)
    for name in (
        *("characters", "sentences", "commas", "money", "percent signs", "numbers", "number words"),
        *("comparisons", "conditions", "shares"),
    )
)


@dataclass(frozen=True, slots=True)
class AnswerVerifier:
    """A verifier of the checks of an answer and the shape of its question. Pure Python, thread-safe."""

    fitted: Verifier

    def score(self, row: Labelled) -> float:
        """Probability, 0..1, that asking the strong model would turn a wrong answer into a right one."""
        return self.fitted.probability(_features(row.prompt, row.weak_answer))


def train_verifier(rows: Sequence[Labelled]) -> AnswerVerifier:
    """Learn from labelled answers by ridge logistic regression.

    Raises:
        UsageError: every row has the same outcome.
    """
    fitted = fit_verifier(
        [_features(row.prompt, row.weak_answer) for row in rows],
        [row.strong > row.weak for row in rows],
        ridge=_RIDGE,
        scale_floor=_SCALE_FLOOR,
    )
    if fitted is None:
        raise UsageError("no labelled answer is one that the strong model would have put right")
    return AnswerVerifier(fitted)


def _features(question: str, answer: str) -> list[float]:
    found = shape(question, read_words(question))
    return [*check_answer(question, answer), *(found[place] for place in _SHAPES)]
