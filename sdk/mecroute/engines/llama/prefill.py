"""Whose turn it is: of those that generate, or of a prompt too long for one step."""

from __future__ import annotations

from mecroute.engines.llama.sequence import Sequence
from mecroute.engines.steps import STEPS_PER_SLICE


class PrefillSlices:
    """Shares the time between those that generate and prompts too long for one step.

    One thread uses it.
    """

    def __init__(self) -> None:
        self._owed_s = 0.0
        self._owed_steps = 0

    @property
    def owed(self) -> bool:
        """Whether those that generate have time to themselves, after a slice of a long prompt."""
        return self._owed_s > 0 or self._owed_steps > 0

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


def left_of_prompt(sequence: Sequence) -> int:
    """Tokens of the prompt that are not computed yet."""
    return len(sequence.prompt) - len(sequence.slot.tokens)
