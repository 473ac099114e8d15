"""Accuracy on multiple choice: the ending that the model finds most likely is its answer.

An ending's score is its log-likelihood after the stem divided by its length in UTF-8 bytes (`acc_norm`
in lm-evaluation-harness): long endings are not punished, and models with different tokenizers compare.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from mecroute.engines.llama.model import LlamaModel
from mecroute_quantize.evaluation.dataset import Question
from mecroute_quantize.evaluation.scorer import Scorer

_BATCH_TOKENS = 512
_MAX_SEQUENCES = 128


@dataclass(frozen=True, slots=True)
class Accuracy:
    """The share of items answered right, 0 to 1, and the number of items."""

    value: float
    items: int

    @property
    def standard_error(self) -> float:
        """Standard error of the share: sqrt(p · (1 - p) / n)."""
        return accuracy_standard_error(self.value, self.items)


def accuracy_standard_error(accuracy: float, items: int) -> float:
    """Standard error of a share of `items` ≥ 1 that came out as `accuracy`, 0 to 1."""
    return math.sqrt(accuracy * (1 - accuracy) / items)


@dataclass(slots=True)
class _Batch:
    tokens: list[int] = field(default_factory=list)
    sequences: list[tuple[int, ...]] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    outputs: list[int] = field(default_factory=list)
    targets: list[tuple[int, int]] = field(default_factory=list)
    #: (item, ending) whose likelihood each target is part of.
    owners: list[tuple[int, int]] = field(default_factory=list)
    n_sequences: int = 0

    def add(self, item: int, texts: Sequence[Sequence[int]]) -> None:
        """Add an item's tokenized endings, each with the stem; what they share is decoded once."""
        # At least one token of every ending must be left to score.
        common = min(_common_prefix(texts), *(len(text) - 1 for text in texts))
        members = tuple(range(self.n_sequences, self.n_sequences + len(texts)))
        self.n_sequences += len(texts)
        for position in range(common):
            self._append(texts[0][position], members, position)
        stem_row = self._want_output()
        for ending, (member, text) in enumerate(zip(members, texts, strict=True)):
            row = stem_row
            for position in range(common, len(text)):
                self.targets.append((row, text[position]))
                self.owners.append((item, ending))
                if position < len(text) - 1:
                    self._append(text[position], (member,), position)
                    row = self._want_output()

    def _append(self, token: int, members: tuple[int, ...], position: int) -> None:
        self.tokens.append(token)
        self.sequences.append(members)
        self.positions.append(position)

    def _want_output(self) -> int:
        """Ask for the distribution after the token added last; return its row."""
        self.outputs.append(len(self.tokens) - 1)
        return len(self.outputs) - 1


def _common_prefix(texts: Sequence[Sequence[int]]) -> int:
    """How many tokens all texts begin with."""
    for position, column in enumerate(zip(*texts, strict=False)):
        if len(set(column)) > 1:
            return position
    return min(map(len, texts))


def measure_accuracy(
    model: LlamaModel,
    questions: Sequence[Question],
    *,
    n_threads: int | None = None,
    progress: Callable[[float], None] | None = None,
) -> Accuracy:
    """Measure the share of questions whose right ending the model finds the most likely one.

    Args:
        model: an open text generation model.
        questions: at least one; each fits a batch of 512 tokens.
        n_threads: > 0; all usable CPUs by default.
        progress: called with the share done, 0 to 1.

    Raises:
        InvalidModelFileError: the model cannot score text.
    """
    likelihoods = [[0.0] * len(question.endings) for question in questions]
    batches = _batches(model, questions)
    scorer = Scorer(
        model,
        n_cells=max(len(batch.tokens) for batch in batches),
        n_sequences=max(batch.n_sequences for batch in batches),
        n_threads=n_threads,
    )
    try:
        for index, batch in enumerate(batches):
            scores = scorer.score(
                batch.tokens, batch.sequences, batch.positions, batch.outputs, batch.targets
            )
            for (item, ending), score in zip(batch.owners, scores, strict=True):
                likelihoods[item][ending] += float(score)
            if progress is not None:
                progress((index + 1) / len(batches))
    finally:
        scorer.close()
    right = sum(
        _answer(question, sums) == question.answer
        for question, sums in zip(questions, likelihoods, strict=True)
    )
    return Accuracy(value=right / len(questions), items=len(questions))


def _answer(question: Question, likelihoods: Sequence[float]) -> int:
    normalized = [
        likelihood / len(ending.encode())
        for likelihood, ending in zip(likelihoods, question.endings, strict=True)
    ]
    return normalized.index(max(normalized))


def _batches(model: LlamaModel, questions: Sequence[Question]) -> list[_Batch]:
    batches = [_Batch()]
    for item, question in enumerate(questions):
        texts = [
            model.tokenize(f"{question.stem} {ending}", parse_special=False) for ending in question.endings
        ]
        most = sum(map(len, texts))
        last = batches[-1]
        if last.tokens and (
            len(last.tokens) + most > _BATCH_TOKENS or last.n_sequences + len(texts) > _MAX_SEQUENCES
        ):
            batches.append(_Batch())
        batches[-1].add(item, texts)
    return batches
