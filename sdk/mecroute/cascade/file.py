"""Judged answers from a CSV file, and their way into the state database."""

from __future__ import annotations

import csv
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from mecroute.cascade.calibration import Calibrated, Pair
from mecroute.cascade.judged import JudgedAnswers, judged_answers
from mecroute.cascade.marks import Marks, marks_of_text
from mecroute.config.cascade import CascadeConfig
from mecroute.errors import StateError, UsageError
from mecroute.state.store import Batch, LearnedRow, StateStore

KIND = "cascade"
_MAX_BYTES = 500_000_000
_MAX_FIELD = 10_000_000
_SHOWN = 40
_NUMBERS: Mapping[str, tuple[float, float]] = {
    "mean_logprob": (-math.inf, 0.0),
    "min_logprob": (-math.inf, 0.0),
    "agreement": (0.0, 1.0),
    "probability": (0.0, 1.0),
}
COLUMNS = ("prompt", "answer", *_NUMBERS, "correct")


def read_judged(path: Path, *, answer: str = "answer", correct: str = "correct") -> list[Pair]:
    """The judged answers of a CSV file with a header.

    Columns: `correct` (0 or 1) and, where there are, `prompt` and the answer's text, `mean_logprob` and
    `min_logprob` (natural logarithms, at most 0), `agreement` and `probability` (0..1); an empty cell is
    unknown. Others are not looked at.

    Args:
        answer, correct: names of these two columns.

    Raises:
        UsageError: the file cannot be read, a column is missing, or a value is none; names row and column.
    """
    csv.field_size_limit(_MAX_FIELD)
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise UsageError(f"{path} is larger than {_MAX_BYTES:,} bytes")
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            header = reader.fieldnames or []
            measured = [name for name in (answer, *_NUMBERS) if name in header]
            if correct not in header or not measured:
                missing = correct if correct not in header else f"{answer}' or '{next(iter(_NUMBERS))}"
                raise UsageError(
                    f"{path} has no column '{missing}'",
                    hint=f"known: {', '.join(COLUMNS)}; there are: {', '.join(header) or 'none'}",
                )
            pairs = [
                _pair(path, number, row, answer, correct, has_text=answer in header)
                for number, row in enumerate(reader, 2)
            ]
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not UTF-8 text") from error
    except csv.Error as error:
        raise UsageError(f"{path} is not a CSV file: {error}") from error
    if not pairs:
        raise UsageError(f"{path} holds no row")
    return pairs


def keep_judged(
    store: StateStore, config: CascadeConfig, target_id: str, pairs: Sequence[Pair]
) -> Calibrated:
    """Put judged answers of a target into the database, in the place of those of an earlier file.

    Clients that are running read them when they start again.

    Returns:
        What follows from all that is known of the target's answers.

    Raises:
        StateError: the database cannot be used.
    """
    known = judged_in(store, config)
    found = known.read(target_id, pairs)
    now = time.time()
    rows = [LearnedRow(KIND, name, now, value) for name, value in known.take_changes().items()]
    store.write(Batch(learned=rows))
    kept = {row.name for row in store.learned() if row.kind == KIND}
    if not kept.issuperset(row.name for row in rows):
        raise StateError(f"{store.path} cannot be written", hint="end what holds it, and try again")
    return found


def judged_in(store: StateStore, config: CascadeConfig) -> JudgedAnswers:
    """The judged answers that are kept in a database, as a client with this configuration sees them."""
    return judged_answers(((row.name, row.value) for row in store.learned() if row.kind == KIND), config)


def _pair(
    path: Path, number: int, row: Mapping[str, str | None], answer: str, correct: str, *, has_text: bool
) -> Pair:
    label = (row.get(correct) or "").strip()
    if label not in ("0", "1"):
        raise UsageError(f"{path}, row {number}, column '{correct}': {label[:_SHOWN]!r} is neither 0 nor 1")
    values: dict[str, float | None] = {}
    for name, (least, most) in _NUMBERS.items():
        text = (row.get(name) or "").strip()
        try:
            value = float(text) if text else None
        except ValueError:
            value = math.nan
        if value is not None and not (least <= value <= most and math.isfinite(value)):
            expected = "a number of at most 0" if most == 0 else "a number from 0 to 1"
            raise UsageError(f"{path}, row {number}, column '{name}': {text[:_SHOWN]!r} is not {expected}")
        values[name] = value
    read = Marks()
    if has_text:
        body = {"choices": [{"message": {"content": row.get(answer) or ""}}]}
        read = marks_of_text(row.get("prompt") or "", body, {})
    marks = Marks(**values, bad=read.bad, checks=read.checks)
    return Pair(marks, label == "1")
