"""How far two answers to the same question say the same, without an embedding model."""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import dataclass
from typing import Literal

Basis = Literal["exact", "json", "number", "choice", "overlap"]

_WORD = re.compile(r"\w+", re.UNICODE)
_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")
_CHOICE = re.compile(r"^\W*(?:answer\s*:?\s*)?\(?(yes|no|true|false|[a-e])\b\)?", re.I)
_SHORT_WORDS = 12
#: Word overlap of two free texts below and above which they count as different and as the same.
_DIFFERENT, _SAME = 0.1, 0.6
_WEIGHTS: dict[Basis, float] = {"exact": 0.5, "json": 0.5, "number": 0.5, "choice": 0.5, "overlap": 0.1}


@dataclass(frozen=True, slots=True)
class Agreement:
    """How far two answers agree, 0..1, on what that was judged, and how much it weighs as evidence, 0..1."""

    score: float
    basis: Basis
    weight: float


def agreement(one: str, other: str) -> Agreement | None:
    """Compare two answers; None when one of them is empty.

    Short answers are compared by what they settle on: JSON by value, else the last number, else yes, no or
    a letter. Long ones by the F1 of their words, as SQuAD does (Rajpurkar et al. 2016), which is weak
    evidence: two right texts may share few words. It is stretched to 0..1 and weighs a fifth.
    """
    a, b = one.strip(), other.strip()
    if not a or not b:
        return None
    if _normal(a) == _normal(b):
        return _settled("exact", True)
    as_json = _json(a), _json(b)
    if as_json[0] is not None and as_json[1] is not None:
        return _settled("json", as_json[0] == as_json[1])
    words = _WORD.findall(a.lower()), _WORD.findall(b.lower())
    if min(len(words[0]), len(words[1])) <= _SHORT_WORDS:
        numbers = _NUMBER.findall(a), _NUMBER.findall(b)
        if numbers[0] and numbers[1]:
            return _settled("number", _value(numbers[0][-1]) == _value(numbers[1][-1]))
        choices = _CHOICE.match(a), _CHOICE.match(b)
        if choices[0] and choices[1]:
            return _settled("choice", choices[0][1].lower() == choices[1][1].lower())
    stretched = (_f1(*words) - _DIFFERENT) / (_SAME - _DIFFERENT)
    return Agreement(min(1.0, max(0.0, stretched)), "overlap", _WEIGHTS["overlap"])


def _settled(basis: Basis, same: bool) -> Agreement:
    return Agreement(float(same), basis, _WEIGHTS[basis])


def _normal(text: str) -> str:
    return " ".join(_WORD.findall(text.lower()))


def _json(text: str) -> object:
    if text[0] not in "{[":
        return None
    try:
        value: object = json.loads(text)
    except ValueError:
        return None
    return value


def _value(number: str) -> float:
    return float(number.replace(",", ""))


def _f1(one: list[str], other: list[str]) -> float:
    common = sum((Counter(one) & Counter(other)).values())
    return 2 * common / (len(one) + len(other)) if common else 0.0
