"""Labelled prompts: which of two models answered each of them rightly, read from CSV."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mecroute.errors import UsageError

_LABELS = ("weak_correct", "strong_correct")
#: As people and tables write them: pandas makes 1.0 of a 1 beside a gap, and True of a comparison.
_LABEL_VALUES = {"0": 0, "1": 1, "0.0": 0, "1.0": 1, "false": 0, "true": 1}
_TRAIN = "train"
_MAX_FIELD = 10_000_000
_SHOWN = 40


@dataclass(frozen=True, slots=True)
class Labelled:
    """One prompt and who answered it rightly.

    Args:
        weak, strong: 0 or 1.
        weak_answer: what the weak model said; empty where it was not asked for.
    """

    prompt: str
    weak: int
    strong: int
    weak_answer: str = ""


def read_training(path: Path, *, answers: bool = False) -> list[Labelled]:
    """The rows to train on: those whose `split` is `train`, or all of a file without that column.

    Args:
        answers: read `weak_answer` as well, which must be there then.

    Raises:
        UsageError: the file cannot be read, a column is missing, or a value is none; names row and column.
    """
    return _read(path, answers, training=True)


def read_evaluation(path: Path, *, answers: bool = False) -> list[Labelled]:
    """The rows to evaluate on: those whose `split` is not `train`, or all of a file without that column.

    Raises: as `read_training`.
    """
    return _read(path, answers, training=False)


def _read(path: Path, answers: bool, *, training: bool) -> list[Labelled]:
    found = list(_rows(path, answers))
    if not found:
        raise UsageError(f"{path} holds no row below its header")
    rows = [row for split, row in found if split is None or (split == _TRAIN) == training]
    if not rows:
        wanted = "is 'train'" if training else "is other than 'train'"
        raise UsageError(f"{path} holds no row whose split {wanted}")
    return rows


def _rows(path: Path, answers: bool) -> Iterator[tuple[str | None, Labelled]]:
    csv.field_size_limit(_MAX_FIELD)
    wanted = ("prompt", *_LABELS, *(("weak_answer",) if answers else ()))
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            header = next(reader, None)
            if header is None:
                raise UsageError(f"{path} is empty", hint=f"it needs the columns {', '.join(wanted)}")
            header = [name.strip() for name in header]
            missing = [name for name in wanted if name not in header]
            if missing:
                raise UsageError(
                    f"{path} has no column '{missing[0]}'",
                    hint=f"needed: {', '.join(wanted)}; there are: {', '.join(header)}",
                )
            # `subject` and whatever else there is are never looked at.
            places = [header.index(name) for name in wanted]
            split = header.index("split") if "split" in header else None
            for number, cells in enumerate(reader, 2):
                if not cells:  # a blank line, as at the end of many a file
                    continue
                if len(cells) != len(header):
                    raise UsageError(f"{path}, row {number}: {len(cells)} cells under {len(header)} columns")
                yield _row(path, number, [cells[i] for i in places], None if split is None else cells[split])
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not UTF-8 text") from error
    except csv.Error as error:
        raise UsageError(f"{path} is not a CSV file: {error}") from error


def _row(path: Path, number: int, cells: list[str], split: str | None) -> tuple[str | None, Labelled]:
    if not cells[0].strip():
        raise UsageError(f"{path}, row {number}, column 'prompt': it is empty")
    labels = []
    for name, cell in zip(_LABELS, cells[1:3], strict=True):
        label = _LABEL_VALUES.get(cell.strip().lower())
        if label is None:
            raise UsageError(f"{path}, row {number}, column '{name}': {cell[:_SHOWN]!r} is neither 0 nor 1")
        labels.append(label)
    if split is not None and not split.strip():
        raise UsageError(f"{path}, row {number}, column 'split': it is empty")
    answer = cells[3] if len(cells) > 3 else ""
    return None if split is None else split.strip().lower(), Labelled(cells[0], labels[0], labels[1], answer)
