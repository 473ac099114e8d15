"""How similar a question must be for a remembered answer to do, at a stated rate of wrong hits.

A wrong hit is a lookup that is answered with what was remembered of a question of another label. How the rate
is kept is told in `mecroute.predict.error_bound`; it holds for questions like those of the data.
"""

from __future__ import annotations

import json
import math
import os
import random
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from mecroute.caching.embedder import Embedder
from mecroute.caching.keys import signature
from mecroute.errors import ConfigError, InvalidRequestError
from mecroute.predict.error_bound import Level, find_threshold, least_cases
from mecroute_registry.paths import state_dir

CONFIDENCE = 0.95
#: Half of the data is what is remembered, a quarter finds the threshold, a quarter checks it.
_REMEMBERED, _SEARCHED = 0.5, 0.75
_STEP = 0.005


@dataclass(frozen=True, slots=True)
class Calibration:
    """A threshold and the evidence for it.

    Args:
        embedder: the embedder it holds for.
        threshold: least similarity of a hit; None where no threshold keeps the rate.
        rate: the stated rate of wrong hits among hits, 0..1.
        confidence: 0..1, of the bound.
        lookups, hits, wrong: on the data that the threshold was searched on.
        upper_bound: of the rate of wrong hits there.
        check_lookups, check_hits, check_wrong: on data that nothing was chosen by.
    """

    embedder: str
    threshold: float | None
    rate: float
    confidence: float
    lookups: int
    hits: int
    wrong: int
    upper_bound: float
    check_lookups: int
    check_hits: int
    check_wrong: int


def calibrate(
    data: Sequence[tuple[str, str]],
    embedder: Embedder,
    *,
    rate: float,
    confidence: float = CONFIDENCE,
    seed: int = 0,
) -> Calibration:
    """Find the least similarity at which at most `rate` of the hits are wrong.

    Args:
        data: questions with labels; two of one label may have the same answer.
        rate: 0..1, both excluded.
        confidence: 0..1, both excluded.
        seed: of the split of the data.

    Raises:
        InvalidRequestError: a number is out of its range, or there is too little data to tell anything.
    """
    if not 0 < rate < 1 or not 0 < confidence < 1:
        raise InvalidRequestError("rate and confidence are shares between 0 and 1")
    rows = list(dict.fromkeys((text.strip(), label) for text, label in data if text.strip()))
    least = least_cases(rate, confidence)
    if len(rows) * (_SEARCHED - _REMEMBERED) < least:
        raise InvalidRequestError(
            f"{len(rows)} questions are too few: a rate of {rate:g} needs at least "
            f"{math.ceil(least / (_SEARCHED - _REMEMBERED))}",
            hint="give more questions, or allow a higher rate",
        )
    random.Random(seed).shuffle(rows)  # noqa: S311 - a split, not a secret
    first, second = int(len(rows) * _REMEMBERED), int(len(rows) * _SEARCHED)
    searched = _hits(rows[:first], rows[first:second], embedder)
    threshold, hits, wrong, bound = find_threshold(_levels(searched), rate, confidence)
    checked = [
        right
        for similarity, right in _hits(rows[:first], rows[second:], embedder)
        if threshold is not None and similarity >= threshold
    ]
    return Calibration(
        embedder=embedder.name,
        threshold=threshold,
        rate=rate,
        confidence=confidence,
        lookups=second - first,
        hits=hits,
        wrong=wrong,
        upper_bound=bound,
        check_lookups=len(rows) - second,
        check_hits=len(checked),
        check_wrong=sum(not right for right in checked),
    )


def calibration_file() -> Path:
    """Where the threshold of this user is kept."""
    return state_dir() / "semantic-cache.json"


def save_calibration(found: Calibration, path: Path | None = None) -> Path:
    """Keep a calibration for the clients of this user; returns where."""
    path = path or calibration_file()
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=".semantic-cache-")
    with os.fdopen(descriptor, "w", encoding="utf-8") as out:
        json.dump(asdict(found), out, indent=1)
    Path(temporary).replace(path)
    return path


def load_calibration(path: Path | None = None) -> Calibration | None:
    """The calibration kept; None where there is none.

    Raises:
        ConfigError: the file is not one.
    """
    path = path or calibration_file()
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        found = Calibration(**{field.name: told[field.name] for field in fields(Calibration)})
        if found.threshold is not None and not 0 <= found.threshold <= 1:
            raise ValueError("its threshold is out of range")
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{path} is not a calibration: {error}", hint="`mecroute cache calibrate` writes it anew"
        ) from error
    return found


def _hits(
    remembered: Sequence[tuple[str, str]], asked: Sequence[tuple[str, str]], embedder: Embedder
) -> list[tuple[float, bool]]:
    """For each question that has a nearest remembered one: the similarity, and whether the labels agree."""
    known = embedder.embed([text for text, _ in remembered])
    queries = embedder.embed([text for text, _ in asked])
    # As in the cache itself, only questions with the same numbers, quotes and negations are compared.
    groups: dict[object, list[int]] = {}
    for index, (text, _) in enumerate(remembered):
        groups.setdefault(signature(text), []).append(index)
    waiting: dict[object, list[int]] = {}
    for index, (text, _) in enumerate(asked):
        waiting.setdefault(signature(text), []).append(index)
    found = []
    for key, members in waiting.items():
        group = groups.get(key)
        if not group:
            continue
        nearest = embedder.nearest([queries[i] for i in members], [known[i] for i in group])
        for index, (best, similarity) in zip(members, nearest, strict=True):
            found.append((similarity, remembered[group[best]][1] == asked[index][1]))
    return found


def _levels(found: Sequence[tuple[float, bool]]) -> list[Level]:
    """Hits and wrong hits at each threshold of the grid, from the strictest on."""
    ordered = sorted(found, key=lambda one: -one[0])
    levels, at, wrong = [], 0, 0
    steps = round(1 / _STEP)
    for step in range(steps, -1, -1):
        threshold = step / steps
        while at < len(ordered) and ordered[at][0] >= threshold:
            wrong += not ordered[at][1]
            at += 1
        levels.append(Level(threshold, at, wrong))
    return levels
