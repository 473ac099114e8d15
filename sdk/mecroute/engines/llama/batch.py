"""What one step decodes: the next token of every request, its draft, and a slice of the prompts."""

from __future__ import annotations

from collections.abc import Sequence as Line

from mecroute.engines.llama.context import DecodeContext
from mecroute.engines.llama.prefill import left_of_prompt, prefill_rows
from mecroute.engines.llama.sequence import PREFILLING, Sequence


class Batch:
    """The rows of a step, written into a context's buffers as it is made.

    Args:
        context: it has room for a row of every running sequence, and for their drafts.
        running: at least one.
        prefill_speed: measured prompt tokens per second, or None.

    Attributes:
        rows: how many there are.
        generating: sequences that generate; their rows are the first.
        decoding: how many rows those are, drafts included.
        choices: sequences that get a token from this step, each with the row whose logits it is chosen from;
            those that generate are the first. The rows of a draft follow that one.

    Not thread-safe.
    """

    __slots__ = ("_prefills", "choices", "decoding", "generating", "rows")

    def __init__(
        self, context: DecodeContext, running: Line[Sequence], *, prefill_speed: float | None
    ) -> None:
        self.choices: list[tuple[Sequence, int]] = []
        self._prefills: list[tuple[Sequence, int]] = []
        tokens, positions = context.tokens, context.positions
        sequences, wants_logits = context.sequences, context.wants_logits
        rows = 0
        for sequence in running:
            if sequence.next_token != PREFILLING:
                slot = sequence.slot
                self.choices.append((sequence, rows))
                for position, token in enumerate((sequence.next_token, *sequence.draft), len(slot.tokens)):
                    tokens[rows] = token
                    positions[rows] = position
                    sequences[rows] = slot.id
                    wants_logits[rows] = 1
                    rows += 1
        self.generating = len(self.choices)
        self.decoding = self.rows = rows
        if self.generating < len(running):
            waiting = [sequence for sequence in running if sequence.next_token == PREFILLING]
            self._add_prompts(context, waiting, prefill_speed)

    def _add_prompts(
        self, context: DecodeContext, waiting: list[Sequence], prefill_speed: float | None
    ) -> None:
        # The shortest first: they are not held up by a long one, which has its own share of the step.
        waiting.sort(key=left_of_prompt)
        rows = self.rows
        limit = rows + prefill_rows(
            waiting, decoding=self.decoding, n_batch=context.n_batch, speed=prefill_speed
        )
        for sequence in waiting:
            if rows >= limit:
                break
            slot, prompt = sequence.slot, sequence.prompt
            done = len(slot.tokens)
            count = min(len(prompt) - done, limit - rows)
            end = rows + count
            context.tokens[rows:end] = prompt[done : done + count]
            context.positions[rows:end] = range(done, done + count)
            context.sequences[rows:end] = slot.id
            context.wants_logits[rows:end] = 0
            self._prefills.append((sequence, count))
            if done + count == len(prompt):
                context.wants_logits[end - 1] = 1
                self.choices.append((sequence, end - 1))
            rows = end
        self.rows = rows

    @property
    def prefilled(self) -> int:
        """Rows of prompts."""
        return self.rows - self.decoding

    @property
    def prompts_complete(self) -> list[Sequence]:
        """Sequences whose whole prompt is in memory after this step, and was not before."""
        return [sequence for sequence, _ in self.choices[self.generating :]]

    def decoded(self) -> None:
        """Note in the slots what the memory holds after the step has succeeded, drafts included."""
        for sequence, _ in self.choices[: self.generating]:
            sequence.slot.tokens += (sequence.next_token, *sequence.draft)
        for sequence, count in self._prefills:
            done = len(sequence.slot.tokens)
            sequence.slot.tokens.extend(sequence.prompt[done : done + count])
