"""What one step decodes: the next token of every request, its draft, and a slice of the prompts."""

from __future__ import annotations

from collections.abc import Sequence as Line

from mecroute.engines.llama.context import DecodeContext
from mecroute.engines.llama.prefill import left_of_prompt
from mecroute.engines.llama.sequence import PREFILLING, Sequence
from mecroute.engines.steps import SHORT_PROMPT_TOKENS, prompt_rows


class Batch:
    """The rows of a step, written into a context's buffers as it is made.

    Args:
        context: it has room for a row of every running sequence, and for their drafts.
        running: at least one.
        speed: measured prompt tokens per second, or None.
        owed: whether those that generate have time to themselves, so that a long prompt has no slice.

    Attributes:
        rows: how many there are.
        generating: how many sequences generate.
        decoding: how many rows those have, drafts included.
        sliced: how many long prompts wait of which it has a slice while others generate; 0: it has none.
        scored: parts of prompts whose rows all have logits, each with its first row and the place of that in
            the prompt, and how many they are.
        logit_rows: those whose logits are asked for, in their order.
        choices: sequences that get a token from this step, each with the row whose logits it is chosen from;
            those that generate are the first. The rows of a draft follow that one.

    Not thread-safe.
    """

    __slots__ = (
        "_complete", "_prefills", "choices", "decoding", "generating", "logit_rows", "rows", "scored",
        "sliced",
    )  # fmt: skip

    def __init__(
        self,
        context: DecodeContext,
        running: Line[Sequence],
        *,
        speed: float | None,
        owed: bool,
    ) -> None:
        self._prefills: list[tuple[Sequence, int]] = []
        self.scored: list[tuple[Sequence, int, int, int]] = []
        generating = [sequence for sequence in running if sequence.next_token != PREFILLING]
        self.generating = len(generating)
        self.decoding = self.generating + sum(len(sequence.draft) for sequence in generating)
        if self.generating < len(running):
            waiting = [sequence for sequence in running if sequence.next_token == PREFILLING]
            # The shortest first: they are not held up by a long one, which has its own share of the step.
            waiting.sort(key=left_of_prompt)
            rows = prompt_rows(
                [left_of_prompt(sequence) for sequence in waiting],
                room=context.n_batch - self.decoding,
                speed=speed,
                generating=self.generating > 0,
                owed=owed,
            )
            self._share_out(waiting, int(rows), context.n_outputs - self.decoding)
        self.sliced = 0
        if self.decoding and any(_is_long(sequence) for sequence, _ in self._prefills):
            self.sliced = sum(_is_long(sequence) for sequence in running if sequence.next_token == PREFILLING)
        self._complete: list[tuple[Sequence, int]] = []
        parts = [(sequence, 0) for sequence in generating] + self._prefills
        # llama.cpp computes sequences with streams of their own together if their ids come in a row.
        parts.sort(key=_slot_id)
        self.choices: list[tuple[Sequence, int]] = []
        self.logit_rows: list[int] = []
        self.rows = 0
        for sequence, count in parts:
            if count:
                self._add_prompt(context, sequence, count)
            else:
                self._add_next(context, sequence)
        self.choices += self._complete

    def _share_out(self, waiting: list[Sequence], rows: int, outputs: int) -> None:
        # Each may need logits of its last row; what is left of them is shared by those that need more.
        outputs -= len(waiting)
        for sequence in waiting:
            if rows <= 0:
                break
            count = min(left_of_prompt(sequence), rows)
            if sequence.scores_prompt:
                count = min(count, outputs + 1)
                outputs -= count - 1
            self._prefills.append((sequence, count))
            rows -= count

    def _add_next(self, context: DecodeContext, sequence: Sequence) -> None:
        slot, row = sequence.slot, self.rows
        self.choices.append((sequence, row))
        for position, token in enumerate((sequence.next_token, *sequence.draft), len(slot.tokens)):
            context.tokens[row] = token
            context.positions[row] = position
            context.sequences[row] = slot.id
            context.wants_logits[row] = 1
            self.logit_rows.append(row)
            row += 1
        self.rows = row

    def _add_prompt(self, context: DecodeContext, sequence: Sequence, count: int) -> None:
        slot, prompt, row = sequence.slot, sequence.prompt, self.rows
        done, end = len(slot.tokens), row + count
        context.tokens[row:end] = prompt[done : done + count]
        context.positions[row:end] = range(done, done + count)
        context.sequences[row:end] = slot.id
        context.wants_logits[row:end] = sequence.scores_prompt
        if sequence.scores_prompt:
            self.scored.append((sequence, row, done, count))
            self.logit_rows.extend(range(row, end))
        if done + count == len(prompt):
            if not sequence.scores_prompt:
                context.wants_logits[end - 1] = 1
                self.logit_rows.append(end - 1)
            self._complete.append((sequence, end - 1))
        self.rows = end

    @property
    def prefilled(self) -> int:
        """Rows of prompts."""
        return self.rows - self.decoding

    @property
    def prompts_complete(self) -> list[Sequence]:
        """Sequences whose whole prompt is in memory after this step, and was not before."""
        return [sequence for sequence, _ in self._complete]

    def decoded(self) -> None:
        """Note in the slots what the memory holds after the step has succeeded, drafts included."""
        for sequence, _ in self.choices[: self.generating]:
            sequence.slot.tokens += (sequence.next_token, *sequence.draft)
        for sequence, count in self._prefills:
            done = len(sequence.slot.tokens)
            sequence.slot.tokens.extend(sequence.prompt[done : done + count])


def _slot_id(part: tuple[Sequence, int]) -> int:
    return part[0].slot.id


def _is_long(sequence: Sequence) -> bool:
    return left_of_prompt(sequence) > SHORT_PROMPT_TOKENS
