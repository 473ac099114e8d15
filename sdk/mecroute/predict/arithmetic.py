"""Evaluates sums that models write down, as `3 * (5 + 2)`: numbers and four operations, nothing else."""

from __future__ import annotations

import re

_TOKEN = re.compile(r"\s*(?:(\d+(?:\.\d+)?|\.\d+)(%?)|([-+*/()]))")
_NUMBER = re.compile(r"-?(?:\d+(?:\.\d+)?|\.\d+)")
_LONGEST = 80
_DEEPEST = 10


def evaluate(text: str) -> float | None:
    """The value of a sum; None for whatever is none. `$` and thousands' commas are passed over, `x` and `×`
    multiply, `5%` is 0.05."""
    if len(text) > _LONGEST:
        return None
    text = text.replace(",", "").replace("$", "").replace("×", "*").replace("÷", "/").strip()
    text = re.sub(r"(?<=[\d)\s])x(?=[\s\d(])", "*", text)
    tokens, at = [], 0
    while at < len(text):
        match = _TOKEN.match(text, at)
        if match is None:
            return None
        number, percent, sign = match.groups()
        tokens.append(sign if sign is not None else float(number) / (100 if percent else 1))
        at = match.end()
    parser = _Parser(tokens)
    try:
        value = parser.sum(0)
    except (_NoSumError, ZeroDivisionError):
        return None
    return value if parser.at_end and abs(value) < 1e15 else None


def read_number(text: str) -> float | None:
    """The number that a text begins with, as `$1,250.50 per week`; None where it begins with none."""
    match = _NUMBER.match(text.replace(",", "").replace("$", "").strip())
    return float(match[0]) if match and len(match[0]) < _LONGEST else None


class _NoSumError(Exception):
    """The tokens are no sum."""


class _Parser:
    """Recursive descent over numbers and signs."""

    def __init__(self, tokens: list[str | float]) -> None:
        self._tokens = tokens
        self._at = 0

    @property
    def at_end(self) -> bool:
        return self._at == len(self._tokens)

    def sum(self, depth: int) -> float:
        value = self._product(depth)
        while (sign := self._peek()) in ("+", "-"):
            self._at += 1
            term = self._product(depth)
            value = value + term if sign == "+" else value - term
        return value

    def _product(self, depth: int) -> float:
        value = self._factor(depth)
        while (sign := self._peek()) in ("*", "/"):
            self._at += 1
            factor = self._factor(depth)
            value = value * factor if sign == "*" else value / factor
        return value

    def _factor(self, depth: int) -> float:
        item = self._peek()
        self._at += 1
        if isinstance(item, float):
            return item
        if item == "-" and depth < _DEEPEST:
            return -self._factor(depth + 1)
        if item == "(" and depth < _DEEPEST:
            value = self.sum(depth + 1)
            if self._peek() != ")":
                raise _NoSumError
            self._at += 1
            return value
        raise _NoSumError

    def _peek(self) -> str | float | None:
        return None if self.at_end else self._tokens[self._at]
