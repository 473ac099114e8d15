"""How much arithmetic a question asks for, as far as its text tells: quantities, and words that join them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from math import expm1, log1p

from mecroute.predict.excerpt import excerpt
from mecroute.predict.shape import SHAPE_NAMES

_NUMBER = re.compile(r"\d[\d,]*(?:\.\d+)?")
_FRACTION = re.compile(r"\d/\d")
_CAPITALISED = re.compile(r"\b[A-Z][a-z]")
_LARGEST = 1e12
_TOTALS = frozenset(("total", "altogether"))
_RATES = frozenset(
    ("average", "ratio", "percent", "probability", "discount", "tax", "profit", "interest", "speed", "area")
)
#: Of the shape, as logarithms and as plain counts: each further step of a sum may fail anew, so that the odds
#: fall with the count rather than with its logarithm.
_LOGARITHMS = tuple(map(SHAPE_NAMES.index, ("characters", "numbers", "number words", "remainders")))
_COUNTS = tuple(
    map(
        SHAPE_NAMES.index,
        ("sentences", "percent signs", "comparisons", "distribution", "conditions", "times"),
    )
)


def quantities(text: str, words: Sequence[str], shape: Sequence[float]) -> list[float]:
    """The arithmetic structure of a question, [17]; of a long one, that of its beginning and its end.

    Args:
        words: as `read_words` gives them.
        shape: as `shape` gives it.
    """
    text = excerpt(text)
    numbers = [found.replace(",", "") for found in _NUMBER.findall(text)]
    return [
        *(shape[place] for place in _LOGARITHMS),
        *(expm1(shape[place]) for place in _COUNTS),
        log1p(min(_LARGEST, max(map(float, numbers), default=0.0))),
        float(sum("." in number for number in numbers)),
        float(len(_FRACTION.findall(text))),
        len(_CAPITALISED.findall(text)) / max(1, len(words)),
        float(not _TOTALS.isdisjoint(words)),
        float(sum(map(_RATES.__contains__, words))),
        float("$" in text),
    ]
