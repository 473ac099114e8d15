"""Judged answers per target: collected from feedback and comparisons, or read from a file; and the thresholds
that follow from them."""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from mecroute.cascade.calibration import Calibrated, JudgeName, Pair, calibrate
from mecroute.cascade.marks import Marks
from mecroute.config.cascade import CascadeConfig
from mecroute.evidence.learning import Judgement

Source = Literal["file", "live"]
_PAGE = 64
#: Of answers judged while this runs, the newest are kept; a file is kept whole, up to as much again.
_MOST_PAGES: Mapping[Source, int] = {"live": 32, "file": 256}
_TARGETS = 200
_ANSWERS_KEPT = 2000
_RIGHT_FROM = 0.5
#: A threshold is found anew when so much has been added to what it stands on.
_GROWTH = 1.1


@dataclass(slots=True)
class _Known:
    """The judged answers of one target.

    Args:
        added: all that ever came of live ones: says where the next goes.
    """

    file: list[Pair] = field(default_factory=list)
    live: list[Pair] = field(default_factory=list)
    added: int = 0
    since: int = 0
    found: Calibrated | None = None


@dataclass(frozen=True, slots=True)
class Given:
    """A first answer that may come to be judged.

    Args:
        threshold: what its score had to pass under `under`, to be delivered; None where nothing.
        is_escalated: whether another answer was delivered in its place, so that feedback is on that one.
    """

    target_id: str
    marks: Marks
    under: str | None = None
    threshold: float | None = None
    is_escalated: bool = False


class JudgedAnswers:
    """Collects what is known of first answers, and says from which score on they may be kept. Thread-safe.

    Args:
        config: the judge, the rate and the confidence.
    """

    def __init__(self, config: CascadeConfig) -> None:
        self._config = config
        self._lock = threading.Lock()
        self._known: dict[str, _Known] = {}
        self._changed: set[tuple[str, Source, int]] = set()
        self._given: OrderedDict[str, Given] = OrderedDict()
        self._unmeasurable: set[str] = set()

    def of(self, target_id: str) -> Calibrated | None:
        """What is known of a target's answers; None where nothing is. Looks it up only."""
        known = self._known.get(target_id)
        return None if known is None else known.found

    def given(self, request_id: str, answer: Given) -> None:
        """Remember a first answer for a while, should somebody judge it."""
        with self._lock:
            self._given[request_id] = answer
            while len(self._given) > _ANSWERS_KEPT:
                self._given.popitem(last=False)

    def cannot_measure(self, target_id: str) -> None:
        """A target refused a request to which log-probabilities had been added: it is not asked for them
        again while this runs, unless an answer of its own is to be judged."""
        with self._lock:
            self._unmeasurable.add(target_id)

    def can_measure(self, target_id: str) -> bool:
        """Whether it is worth asking a target for log-probabilities."""
        return target_id not in self._unmeasurable

    def judged(self, judgement: Judgement) -> None:
        """An answer was judged by a person or by comparison; it counts if it is a first answer.

        May take long: a threshold is perhaps found anew.
        """
        if judgement.source not in ("feedback", "shadow") or not judgement.is_settled:
            return
        with self._lock:
            given = self._given.get(judgement.request_id)
            if given is None or given.target_id != judgement.target_id:
                return
            by_person = judgement.source == "feedback"
            if by_person and given.is_escalated:
                return
            del self._given[judgement.request_id]
            # Comparisons are drawn by chance; a person sees only what was good enough to be delivered.
            chosen = by_person and given.threshold is not None
            pair = Pair(
                given.marks,
                judgement.score >= _RIGHT_FROM,
                under=given.under if chosen else None,
                least=given.threshold or 0.0 if chosen else 0.0,
            )
            is_due = _is_due(self._add(given.target_id, pair))
        if is_due:
            self._calibrate(given.target_id)

    def read(self, target_id: str, pairs: Sequence[Pair]) -> Calibrated:
        """Put judged answers of a file in the place of those of an earlier one; returns what follows."""
        with self._lock:
            known = self._of(target_id)
            before, known.file = known.file, list(pairs[: _PAGE * _MOST_PAGES["file"]])
            # Pages beyond the new end are written as empty ones.
            for page in range(max(_pages(before), _pages(known.file))):
                self._changed.add((target_id, "file", page))
        return self._calibrate(target_id)

    def take_changes(self) -> dict[str, dict[str, Any]]:
        """What changed since the last call, a page of judged answers each, as JSON objects."""
        with self._lock:
            changed, self._changed = self._changed, set()
            found: dict[str, dict[str, Any]] = {}
            for target_id, source, page in changed:
                known = self._known.get(target_id)
                if known is None:
                    continue
                pairs = known.file if source == "file" else known.live
                part = pairs[page * _PAGE : (page + 1) * _PAGE]
                found[f"{target_id}|{source}|{page}"] = {"added": known.added, "answers": [*map(_row, part)]}
            return found

    def restore(self, name: str, value: Mapping[str, Any]) -> None:
        """Take back a page; what is damaged is left out. `ready` is to be called after the last."""
        target_id, source, page = _place(name)
        if target_id is None or source is None:
            return
        try:
            pairs = [_pair(row) for row in value["answers"]]
            added = int(value["added"])
        except (KeyError, TypeError, ValueError, IndexError, OverflowError):
            return
        with self._lock:
            known = self._of(target_id)
            kept = known.file if source == "file" else known.live
            # Pages come in the order of their names; a gap is closed by what comes after it.
            at = min(page * _PAGE, len(kept))
            kept[at:at] = pairs
            known.added = max(known.added, added, len(known.live))

    def ready(self) -> None:
        """Find the thresholds of everything that was restored."""
        for target_id in list(self._known):
            self._calibrate(target_id)

    def forget(self) -> None:
        """Start afresh."""
        with self._lock:
            self._known.clear()
            self._changed.clear()

    def targets(self) -> list[str]:
        """Ids of the targets of which judged answers are known."""
        return sorted(self._known)

    def counts(self, target_id: str) -> dict[str, int]:
        """How many judged answers there are of a target, by where they came from, and how many were wrong."""
        with self._lock:
            known = self._known[target_id]
            every = [*known.file, *known.live]
            wrong = sum(not pair.right for pair in every)
            return {"file": len(known.file), "live": len(known.live), "wrong": wrong}

    def _add(self, target_id: str, pair: Pair) -> _Known:
        known = self._of(target_id)
        place = known.added % (_PAGE * _MOST_PAGES["live"])
        if place < len(known.live):
            known.live[place] = pair
        else:
            place = len(known.live)
            known.live.append(pair)
        known.added += 1
        known.since += 1
        self._changed.add((target_id, "live", place // _PAGE))
        return known

    def _of(self, target_id: str) -> _Known:
        known = self._known.get(target_id)
        if known is None:
            if len(self._known) >= _TARGETS:
                self._known.pop(next(iter(self._known)))
            known = self._known[target_id] = _Known()
        return known

    def _calibrate(self, target_id: str) -> Calibrated:
        with self._lock:
            known = self._of(target_id)
            halves: tuple[list[Pair], list[Pair]] = ([], [])
            for pairs in (known.file, known.live):
                for half in (0, 1):
                    # By place, so that an answer never goes over from one half to the other.
                    halves[half].extend(pairs[half::2])
            known.since = 0
        config = self._config
        is_classifier = any(pair.marks.probability is not None for pair in halves[0][-1:])
        judge: JudgeName = "probability" if is_classifier else config.judge
        found = calibrate(*halves, judge, max_error_rate=config.max_error_rate, confidence=config.confidence)
        with self._lock:
            known.found = found
        return found


def judged_answers(rows: Iterable[tuple[str, Mapping[str, Any]]], config: CascadeConfig) -> JudgedAnswers:
    """What is kept in a state database, by name, as a client sees it."""
    found = JudgedAnswers(config)
    for name, value in sorted(rows, key=lambda row: _order(row[0])):
        found.restore(name, value)
    found.ready()
    return found


def _is_due(known: _Known) -> bool:
    count = len(known.file) + len(known.live)
    return known.found is None or known.since >= max(1.0, count * (1 - 1 / _GROWTH))


def _order(name: str) -> tuple[str, int]:
    target_id, source, page = _place(name)
    return f"{target_id}|{source}", page


def _place(name: str) -> tuple[str | None, Source | None, int]:
    target_id, _, rest = name.partition("|")
    source, _, page = rest.partition("|")
    if source not in ("file", "live") or not page.isdecimal():
        return None, None, 0
    return target_id, "file" if source == "file" else "live", int(page)


def _pages(pairs: Sequence[Pair]) -> int:
    return -(-len(pairs) // _PAGE)


def _row(pair: Pair) -> list[Any]:
    return [int(pair.right), pair.under, pair.least, *pair.marks.to_row()]


def _pair(row: Sequence[Any]) -> Pair:
    right, under, least, *marks = row
    if right not in (0, 1) or not (under is None or isinstance(under, str)) or not math.isfinite(least):
        raise ValueError("no judged answer")
    return Pair(Marks.from_row(marks), bool(right), under, float(least))
