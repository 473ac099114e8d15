"""A mixed workload with right answers: intents to name, sentences to go on with, and science questions.

2,000 requests in a shuffled order (`measured`), and 400 of the same proportions from other rows
(`calibration`), the only ones that anything may be learned from:

    intents      1,000 CLINC150 test queries of three domains, and 200 out of scope: 46 classes to choose from
    endings      400 HellaSwag tasks: which of four endings
    science      400 ARC-Challenge test questions with four choices

DATA holds `clinc150/data_full.json` and `domains.json`, `hellaswag/hellaswag_val_full.txt.bz2`,
`arc_challenge/test.jsonl` and `train.jsonl`. The same seed gives the same requests.
"""

from __future__ import annotations

import bz2
import json
import random
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

Set = Literal["intents", "endings", "science"]
Part = Literal["measured", "calibration"]

SEED = 11
DOMAINS = ("banking", "credit_cards", "travel")
NO_CLASS = "none of these"
LETTERS = "ABCD"
#: Requests of each set in 2,000; calibration has a fifth.
IN_SCOPE, OUT_OF_SCOPE, ENDINGS, SCIENCE = 1000, 200, 400, 400
CALIBRATION_SHARE = 5

_CLASSIFY = (
    "Which class does the text belong to? Answer with the name of the class and nothing else.\n\nClasses:\n"
)
_ENDINGS = (
    "You are given the beginning of a text and four endings. Which ending is the most plausible? "
    "Answer with its letter, A, B, C or D, and nothing else."
)
_SCIENCE = (
    "You are given a science question and four choices. Which choice is right? "
    "Answer with its letter, A, B, C or D, and nothing else."
)


@dataclass(frozen=True, slots=True)
class Item:
    """One request and its right answer.

    Args:
        id: tells it from all others, in both parts.
        text: what the user says.
        choices: the answers to choose from.
        answer: the right one of these.
    """

    id: str
    set: Set
    part: Part
    text: str
    choices: tuple[str, ...]
    answer: str

    def system(self) -> str:
        """The instructions, the same for all of a set."""
        if self.set == "intents":
            return _CLASSIFY + "\n".join(f"- {label}" for label in self.choices)
        return _ENDINGS if self.set == "endings" else _SCIENCE

    def body(self) -> dict[str, Any]:
        """The chat request, without a model: greedy, and nothing but one of the choices can be answered."""
        return {
            "messages": [
                {"role": "system", "content": self.system()},
                {"role": "user", "content": self.text},
            ],
            "temperature": 0,
            "max_tokens": 1 if self.set != "intents" else 16,
            "grammar": "root ::= " + " | ".join(json.dumps(choice) for choice in self.choices),
        }


def read_workload(data: Path, seed: int = SEED) -> list[Item]:
    """All requests, those to be measured first; each part in a shuffled order.

    Raises:
        SystemExit: a file is missing or has too few rows; says which.
    """
    rng = random.Random(seed)
    found: list[Item] = []
    for items in (_intents(data / "clinc150", rng), _endings(data / "hellaswag", rng), _science(data, rng)):
        found += items
    rng.shuffle(found)
    return sorted(found, key=lambda item: item.part != "measured")


def intent_classes(folder: Path) -> tuple[str, ...]:
    """The names of the 46 classes, the last for what is none of the others."""
    domains = json.loads(_opened(folder / "domains.json"))
    return (*(_named(name) for domain in DOMAINS for name in domains[domain]), NO_CLASS)


def intent_rows(folder: Path, split: str) -> list[tuple[str, str]]:
    """Texts and their classes: `train`, `val` or `test`, in scope and out of it."""
    rows, classes = json.loads(_opened(folder / "data_full.json")), set(intent_classes(folder))
    inside = [(text, _named(name)) for text, name in rows[split] if _named(name) in classes]
    return [*inside, *((text, NO_CLASS) for text, _ in rows[f"oos_{split}"])]


def other_rows(folder: Path, split: str, per_intent: int, seed: int) -> list[str]:
    """Texts of all other domains: so many of each intent, drawn with this seed."""
    rows, classes = json.loads(_opened(folder / "data_full.json")), set(intent_classes(folder))
    by_intent: dict[str, list[str]] = {}
    for text, name in rows[split]:
        if _named(name) not in classes:
            by_intent.setdefault(name, []).append(text)
    rng = random.Random(seed)
    return [text for texts in by_intent.values() for text in rng.sample(texts, min(per_intent, len(texts)))]


def _intents(folder: Path, rng: random.Random) -> list[Item]:
    classes = intent_classes(folder)
    found: list[Item] = []
    # An encoder is trained on `train`, so that calibration has to come from `val`.
    for part, split, share in (("measured", "test", 1), ("calibration", "val", CALIBRATION_SHARE)):
        rows = intent_rows(folder, split)
        inside = [row for row in rows if row[1] != NO_CLASS]
        outside = [row for row in rows if row[1] == NO_CLASS]
        chosen = [
            *_drawn(inside, IN_SCOPE // share, rng, folder),
            *_drawn(outside, OUT_OF_SCOPE // share, rng, folder),
        ]
        found += [
            Item(f"intents-{split}-{number}", "intents", part, text, classes, name)  # type: ignore[arg-type]
            for number, (text, name) in enumerate(chosen)
        ]
    return found


def _endings(folder: Path, rng: random.Random) -> list[Item]:
    path = folder / "hellaswag_val_full.txt.bz2"
    lines = bz2.decompress(_opened(path)).decode().splitlines()
    tasks = [lines[at : at + 6] for at in range(0, len(lines) - 5, 6)]
    rows = [(_lettered(task[0], task[2:]), LETTERS[int(task[1])]) for task in tasks]
    drawn = _drawn(rows, ENDINGS + ENDINGS // CALIBRATION_SHARE, rng, path)
    return _of_letters("endings", drawn, ENDINGS)


def _science(data: Path, rng: random.Random) -> list[Item]:
    folder = data / "arc_challenge"
    found: list[Item] = []
    measured = _drawn(_questions(folder / "test.jsonl"), SCIENCE, rng, folder)
    calibration = _drawn(_questions(folder / "train.jsonl"), SCIENCE // CALIBRATION_SHARE, rng, folder)
    found += _of_letters("science", [*measured, *calibration], SCIENCE)
    return found


def _questions(path: Path) -> list[tuple[str, str]]:
    rows = []
    for line in _opened(path).decode().splitlines():
        row = json.loads(line)
        labels, texts = row["choices"]["label"], row["choices"]["text"]
        if len(labels) == len(LETTERS) and row["answerKey"] in labels:
            rows.append((_lettered(row["question"], texts), LETTERS[labels.index(row["answerKey"])]))
    return rows


def _of_letters(name: Set, rows: Sequence[tuple[str, str]], measured: int) -> list[Item]:
    return [
        Item(
            f"{name}-{number}",
            name,
            "measured" if number < measured else "calibration",
            text,
            tuple(LETTERS),
            answer,
        )
        for number, (text, answer) in enumerate(rows)
    ]


def _lettered(text: str, choices: Sequence[str]) -> str:
    return "\n".join([text, "", *(f"{letter}. {it}" for letter, it in zip(LETTERS, choices, strict=True))])


def _drawn(
    rows: Sequence[tuple[str, str]], count: int, rng: random.Random, where: Path
) -> list[tuple[str, str]]:
    if len(rows) < count:
        sys.exit(f"{where} has {len(rows)} rows of a kind of which {count} are needed")
    return rng.sample(rows, count)


def _named(intent: str) -> str:
    return intent.replace("_", " ")


def _opened(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        sys.exit(f"{path} cannot be read: {error.strerror}")
