"""How similar a question must be for a remembered answer to do, at a stated rate of wrong hits.

A wrong hit is a lookup that is answered with what was remembered of a question of another label. The bound
is the exact one of Clopper and Pearson (1934), and holds for questions like those of the data: thresholds are
tried from stricter to laxer, and the first one that fails ends a sequence, so that choosing within a sequence
costs none of the confidence; there are three sequences, with different starts, which share it evenly
(multi-start fixed-sequence testing; Angelopoulos et al. 2021, "Learn then Test").
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
from mecroute_registry.paths import state_dir

CONFIDENCE = 0.95
#: Half of the data is what is remembered, a quarter finds the threshold, a quarter checks it.
_REMEMBERED, _SEARCHED = 0.5, 0.75
_STEP = 0.005
#: A sequence begins where so many times the least number of hits is reached that could pass at all: the more,
#: the more wrong hits it bears at its start.
_STARTS = (1.0, 2.0, 4.0)
_BISECTIONS = 60


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
    least = math.ceil(math.log((1 - confidence) / len(_STARTS)) / math.log(1 - rate))
    if len(rows) * (_SEARCHED - _REMEMBERED) < least:
        raise InvalidRequestError(
            f"{len(rows)} questions are too few: a rate of {rate:g} needs at least "
            f"{math.ceil(least / (_SEARCHED - _REMEMBERED))}",
            hint="give more questions, or allow a higher rate",
        )
    random.Random(seed).shuffle(rows)  # noqa: S311 - a split, not a secret
    first, second = int(len(rows) * _REMEMBERED), int(len(rows) * _SEARCHED)
    searched = _hits(rows[:first], rows[first:second], embedder)
    threshold, hits, wrong, bound = _search(searched, rate, confidence, least)
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


def upper_bound(wrong: int, hits: int, confidence: float = CONFIDENCE) -> float:
    """The one-sided Clopper-Pearson bound: the largest rate at which so few wrong hits still occur with
    probability 1 - confidence."""
    if wrong >= hits:
        return 1.0
    low, high = wrong / hits, 1.0
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        if _at_most(wrong, hits, middle) > 1 - confidence:
            low = middle
        else:
            high = middle
    return high


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


def _search(
    found: Sequence[tuple[float, bool]], rate: float, confidence: float, least: int
) -> tuple[float | None, int, int, float]:
    """The laxest threshold that some sequence passes, with its hits, wrong hits and bound; without one, what
    the first sequence failed on."""
    levels = _levels(found)
    shared = 1 - (1 - confidence) / len(_STARTS)
    best: tuple[float | None, int, int, float] = (None, 0, 0, 1.0)
    for start in _STARTS:
        for threshold, hits, wrong in levels:
            if hits < least * start:
                continue  # where a sequence begins depends on no label
            bound = upper_bound(wrong, hits, shared)
            if bound > rate:
                if best == (None, 0, 0, 1.0):
                    best = (None, hits, wrong, bound)
                break
            if best[0] is None or threshold < best[0]:
                best = (threshold, hits, wrong, bound)
    return best


def _levels(found: Sequence[tuple[float, bool]]) -> list[tuple[float, int, int]]:
    """(threshold, hits, wrong hits) of each threshold of the grid, from the strictest on."""
    ordered = sorted(found, key=lambda one: -one[0])
    levels, at, wrong = [], 0, 0
    steps = round(1 / _STEP)
    for step in range(steps, -1, -1):
        threshold = step / steps
        while at < len(ordered) and ordered[at][0] >= threshold:
            wrong += not ordered[at][1]
            at += 1
        levels.append((threshold, at, wrong))
    return levels


def _at_most(wrong: int, hits: int, rate: float) -> float:
    """P(X <= wrong) of a binomial distribution."""
    if rate <= 0:
        return 1.0
    if rate >= 1:
        return 0.0
    log_rate, log_rest = math.log(rate), math.log1p(-rate)
    total = 0.0
    for k in range(wrong + 1):
        log_ways = math.lgamma(hits + 1) - math.lgamma(k + 1) - math.lgamma(hits - k + 1)
        total += math.exp(log_ways + k * log_rate + (hits - k) * log_rest)
    return min(1.0, total)
