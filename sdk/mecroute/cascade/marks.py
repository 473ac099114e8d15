"""What an answer is judged by: numbers that are read from it, which are kept without its text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mecroute.evidence.agreement import agreement
from mecroute.evidence.signals import answer_of, signals, token_logprobs
from mecroute.numbers import finite
from mecroute.predict.answer_checks import CHECK_NAMES, check_answer

#: A token less likely than this is no better known to be so: engines write -9999 for what is impossible.
_LEAST_LOGPROB = -20.0
_NAMED = ("mean_logprob", "min_logprob", "agreement", "probability")
FEATURE_NAMES: tuple[str, ...] = (
    *_NAMED,
    *(f"no {name}" for name in _NAMED),
    *CHECK_NAMES,
)


@dataclass(frozen=True, slots=True)
class Marks:
    """What was measured of one answer. No text of it, and none from which it could be told.

    Args:
        mean_logprob, min_logprob: natural log-probability per token, at most 0; None where the engine gave
            none.
        agreement: 0..1, how far other answers of the same model to the same question say the same; None
            where none were asked for.
        probability: 0..1, that a classifier gives its class; of several texts the lowest. None for text.
        bad: whether it is empty, a refusal, repetitive, or not the JSON that was asked for.
        checks: see `CHECK_NAMES`; empty for a class.
    """

    mean_logprob: float | None = None
    min_logprob: float | None = None
    agreement: float | None = None
    probability: float | None = None
    bad: bool = False
    checks: tuple[float, ...] = ()

    def features(self) -> list[float]:
        """In the order of `FEATURE_NAMES`; what is missing counts 0 and is marked as missing."""
        named = [getattr(self, name) for name in _NAMED]
        return [
            *(0.0 if value is None else value for value in named),
            *(float(value is None) for value in named),
            *(self.checks or (0.0,) * len(CHECK_NAMES)),
        ]

    def to_row(self) -> list[float | None]:
        """As JSON types, rounded."""
        named = [getattr(self, name) for name in _NAMED]
        return [
            *(None if value is None else round(value, 5) for value in named),
            float(self.bad),
            *(round(value, 2) for value in self.checks),
        ]

    @classmethod
    def from_row(cls, row: Sequence[Any]) -> Marks:
        """The reverse of `to_row`.

        Raises:
            ValueError: it is damaged.
        """
        named, bad, checks = row[: len(_NAMED)], row[len(_NAMED) : len(_NAMED) + 1], row[len(_NAMED) + 1 :]
        if len(checks) not in (0, len(CHECK_NAMES)) or not bad:
            raise ValueError("no marks")
        numbers = [*(value for value in named if value is not None), *bad, *checks]
        if not all(isinstance(value, bool) or finite(value) is not None for value in numbers):
            raise ValueError("marks that are no numbers")
        mean, least, agreed, probability = (None if value is None else float(value) for value in named)
        return cls(
            mean_logprob=mean,
            min_logprob=least,
            agreement=agreed,
            probability=probability,
            bad=bool(bad[0]),
            checks=tuple(float(value) for value in checks),
        )


def marks_of_text(
    question: str, body: Mapping[str, Any], request: Mapping[str, Any], others: Sequence[str] = ()
) -> Marks:
    """What a whole response of OpenAI's shape shows. Never raises, whatever it holds.

    Args:
        question: what was asked, as plain text.
        request: the request's body, for the form of answer that it asks for.
        others: further answers of the same target to the same question.
    """
    answer = answer_of(body, request)
    if answer is None:
        return Marks(bad=True)
    found = token_logprobs(body["choices"][0].get("logprobs"))
    mean, least = logprob_marks(found)
    compared = [agreement(answer.text, other) for other in others]
    scores = [one.score if one is not None else 0.0 for one in compared]
    return Marks(
        mean_logprob=mean,
        min_logprob=least,
        agreement=sum(scores) / len(scores) if scores else None,
        bad=bool(signals(answer).bad) or answer.has_calls,
        checks=tuple(check_answer(question, answer.text)),
    )


def marks_of_classes(body: Mapping[str, Any]) -> Marks:
    """What a response of `/v1/classify` shows: the probability of the class that is least sure."""
    data = body.get("data")
    if not isinstance(data, list) or not data:
        return Marks(bad=True)
    tops = []
    for item in data:
        told = item if isinstance(item, Mapping) else {}
        probs, scores = (told.get(name) for name in ("probs", "scores"))
        if not probs and isinstance(scores, list):
            # A chat model that is asked for classes tells at most how likely the one is that it names.
            probs = [one.get("score") for one in scores if isinstance(one, Mapping)]
        if not isinstance(probs, list):
            return Marks(bad=True)
        numbers = [p for p in probs if isinstance(p, int | float) and 0 <= p <= 1]
        if not numbers:
            return Marks(bad=True)
        tops.append(float(max(numbers)))
    return Marks(probability=min(tops))


def logprob_marks(logprobs: Sequence[float]) -> tuple[float | None, float | None]:
    """Mean and least of an answer's log-probabilities; None without any."""
    if not logprobs:
        return None, None
    bounded = [min(0.0, max(_LEAST_LOGPROB, value)) for value in logprobs]
    return sum(bounded) / len(bounded), min(bounded)
