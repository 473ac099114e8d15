"""How much of the waiting prompts one step computes."""

from __future__ import annotations

from collections.abc import Sequence as Line

from mecroute.engines.llama.sequence import Sequence
from mecroute.engines.steps import MIN_PREFILL_ROWS, SHORT_PROMPT_TOKENS, SLICE_S, STEPS_PER_SLICE


class PrefillPace:
    """Shares the time between those that generate and prompts too long for one step.

    One thread uses it.
    """

    def __init__(self) -> None:
        self._owed_s = 0.0
        self._owed_steps = 0

    def slice_rows(self, speed: float | None) -> int:
        """How many rows a long prompt may have in a step in which others generate; 0: it is their turn.

        Args:
            speed: measured prompt tokens per second, or None.
        """
        if self._owed_s > 0 or self._owed_steps > 0:
            return 0
        return max(MIN_PREFILL_ROWS, int(speed * SLICE_S) if speed else 0)

    def took(self, seconds: float, *, sliced: int) -> None:
        """Note a step in which some generated.

        Args:
            seconds: it took.
            sliced: how many long prompts wait of which it had a slice; 0: it had none.
        """
        if sliced:
            # Where many wait, few generate, and the machine is best used by bringing more to that.
            self._owed_s, self._owed_steps = seconds / sliced, STEPS_PER_SLICE // sliced
        else:
            self._owed_s, self._owed_steps = self._owed_s - seconds, self._owed_steps - 1


def prefill_rows(waiting: Line[Sequence], *, decoding: int, n_batch: int, slice_rows: int) -> int:
    """How many prompt tokens a step may have: the short prompts, whole, and a slice of a longer one.

    Args:
        waiting: sequences whose prompts are not computed yet, the shortest rest first; at least one.
        decoding: rows that the step has for sequences that generate.
        n_batch: rows a step may have.
        slice_rows: how many of them a long prompt may have, if others generate.
    """
    most = n_batch - decoding
    left = [left_of_prompt(sequence) for sequence in waiting]
    if not decoding and left[0] > SHORT_PROMPT_TOKENS:
        return most
    rows = 0
    for tokens in left:
        if tokens > SHORT_PROMPT_TOKENS or (rows and rows + tokens > most):
            break
        rows += tokens
    if left[-1] > SHORT_PROMPT_TOKENS and decoding:
        rows += slice_rows
    return min(most, rows)


def left_of_prompt(sequence: Sequence) -> int:
    """Tokens of the prompt that are not computed yet."""
    return len(sequence.prompt) - len(sequence.slot.tokens)
