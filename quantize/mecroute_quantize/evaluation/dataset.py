"""The evaluation data that comes with the package: a text and a set of questions.

Both were written for this project and are under its licence (Apache-2.0), so that a model can be
measured anywhere, with no network. They are small: they rank variants of one model reliably, because
each variant sees the same items, but they do not replace a public benchmark.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cache
from importlib import resources
from importlib.resources.abc import Traversable

_NAME = "mecroute-eval-1"


@dataclass(frozen=True, slots=True)
class Question:
    """The beginning of a sentence and four ways to end it, of which one is right.

    Args:
        stem: the beginning; an ending follows it after one space.
        endings: four texts.
        answer: index of the right one, 0 to 3.
    """

    stem: str
    endings: tuple[str, ...]
    answer: int


def _folder() -> Traversable:
    return resources.files("mecroute_quantize") / "evaluation" / "data"


@cache
def load_text() -> str:
    """The prose that perplexity is measured on, about 13 kB of plain English."""
    return (_folder() / "text.txt").read_text(encoding="utf-8")


@cache
def load_questions() -> tuple[Question, ...]:
    """The questions that accuracy is measured on: everyday knowledge, four endings each."""
    lines = (_folder() / "questions.jsonl").read_text(encoding="utf-8").splitlines()
    items = [json.loads(line) for line in lines]
    return tuple(Question(item["stem"], tuple(item["endings"]), item["answer"]) for item in items)


@cache
def dataset_name() -> str:
    """Name of the data with the digest of its bytes, e.g. `mecroute-eval-1@sha256:…`.

    Figures of two models may be compared only where this is the same.
    """
    digest = hashlib.sha256()
    for file in ("text.txt", "questions.jsonl"):
        digest.update((_folder() / file).read_bytes())
    return f"{_NAME}@sha256:{digest.hexdigest()}"
