"""What the tiers answered to the workload, as lines of JSON."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

from tiers_workload import Set


@dataclass(frozen=True, slots=True)
class Answer:
    """What one tier answered to one request. Times in milliseconds, from sending on.

    Args:
        logprobs: of the answer's tokens, natural logarithms; empty for a classifier.
        probability: of the class, 0..1; None for a language model.
    """

    id: str
    set: Set
    tier: str
    answer: str
    right: bool
    ttft_ms: float
    latency_ms: float
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    logprobs: list[float] = field(default_factory=list)
    probability: float | None = None


def read_answers(path: Path) -> list[Answer]:
    """The answers of a file; none where there is no file. A last line that was cut off is left out."""
    found = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            found.append(Answer(**json.loads(line)))
        except ValueError:
            continue
    return found
