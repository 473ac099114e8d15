"""What can be checked in an answer without knowing the right one: is it whole, and do its sums add up?

Sums are found in the calculator notes that models write (`<<3*5=15>>`, from GSM8K) and in plain equations.
"""

from __future__ import annotations

import re
from math import log, log1p, log10

from mecroute.predict.arithmetic import evaluate, read_number

_NOTE = re.compile(r"<<([^<>=]{1,80})=([^<>]{1,40})>>")
_EQUATION = re.compile(
    r"((?:[\d$(][\d$.,%()\s]*[-+*/×÷][\d$.,%()\s+*/×÷-]*\d[\d.,%)]*))\s*=\s*\$?(-?\d[\d,]*(?:\.\d+)?)"
)
_FINAL = re.compile(r"####\s*(\S.*)|\banswer is:?\s*\$?(-?\d[\d,.]*)", re.I)
_NUMBER = re.compile(r"(?<![\w.])\d[\d,]*(?:\.\d+)?")
_DOUBT = re.compile(
    r"\b(?:round|rounded|approximately|about|however|wait|mistake|assum\w*|let|cannot|impossible|unclear|unknown"
    r"|sorry|actually)\b", re.I,
)  # fmt: skip
_LETTER = re.compile(r"\b[xyn]\b")
#: Numbers that need not come from the question: small counts, percent, the parts of a year and of a day.
_COMMON = frozenset({1.0, 2, 3, 4, 5, 6, 7, 10, 12, 24, 30, 52, 60, 100, 365})
_TOLERANCE = 0.01
_READ_CHARS = 8000
_MOST = 40  # sums that are checked

CHECK_NAMES: tuple[str, ...] = (
    *("no final answer", "cut off", "wrong sum", "unreadable sums", "sums", "no sums"),
    *("final is not the last result", "final is a fraction", "final is negative"),
    *("final repeats the question", "size of the final", "unexplained numbers", "unused numbers", "length"),
    *("length over question", "lines", "results that are fractions", "equations beyond notes"),
    *("doubt", "unknowns", "repeated lines"),
)  # fmt: skip


def check_answer(question: str, answer: str) -> list[float]:
    """The checks of one answer, in the order of `CHECK_NAMES`; the higher, the more of it there is."""
    answer, question = answer[:_READ_CHARS], question[:_READ_CHARS]
    found = _FINAL.search(answer)
    final = read_number(found[1] or found[2]) if found else None
    body = answer[: found.start()] if found else answer
    notes = _NOTE.findall(answer)[:_MOST]
    sums = notes or _EQUATION.findall(body)[:_MOST]
    given = set(_numbers(question))
    explained = given | _COMMON
    results: list[float] = []
    wrong = unreadable = unexplained = 0
    for expression, result in sums:
        value, said = evaluate(expression), read_number(result)
        if value is None or said is None:
            unreadable += 1
        elif abs(value - said) > _TOLERANCE * max(1.0, abs(said)):
            wrong += 1
        unexplained += sum(
            n not in explained and n / 100 not in explained and n * 100 not in explained
            for n in _numbers(expression)
        )
        if said is not None:
            explained.add(said)
            results.append(said)
    lines = [line.strip() for line in body.split("\n") if line.strip()]
    named = set(_numbers(body))
    return [
        float(found is None),
        float(len(answer) < 60),
        float(wrong > 0),
        float(min(unreadable, 2)),
        log1p(len(sums)),
        float(not sums),
        float(bool(results) and final is not None and abs(results[-1] - final) > 1e-6),
        float(final is not None and _is_fraction(final)),
        float(final is not None and final < 0),
        float(final in given),
        log10(1 + abs(final)) if final is not None else 0.0,
        float(min(unexplained, 3)),
        len(given - named) / max(1, len(given)),
        log1p(len(answer)),
        log((1 + len(answer)) / (1 + len(question))),
        log1p(len(lines)),
        sum(map(_is_fraction, results)) / max(1, len(results)),
        float(min(10, max(0, body.count("=") - len(notes)))),
        float(_DOUBT.search(body) is not None),
        float(_LETTER.search(body) is not None),
        1 - len(set(lines)) / max(1, len(lines)),
    ]


def _numbers(text: str) -> list[float]:
    return [float(n.replace(",", "")) for n in _NUMBER.findall(text) if len(n) < 20]


def _is_fraction(value: float) -> bool:
    return abs(value - round(value)) > 1e-6
