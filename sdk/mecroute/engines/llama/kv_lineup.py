"""Sequences that generate together get ids in a row, where each has a stream of KV cells for itself."""

from __future__ import annotations

from collections.abc import Sequence

from mecroute.engines.llama.kv_memory import MAX_MOVED_TOKENS, KvMemory
from mecroute.engines.llama.kv_slot import Slot

#: A gap is mostly filled by the next request; only one that stays so many steps is closed.
_PATIENCE_STEPS = 4


class KvLineup:
    """Closes gaps between the ids of sequences that generate.

    llama.cpp decodes sequences with streams of their own in one pass over the weights as long as their ids
    come in a row (`split_equal` in llama-batch.cpp), and each further row of ids in a pass of its own.

    Args:
        memory: the sequences.

    Not thread-safe: whoever calls holds the scheduler's lock.
    """

    def __init__(self, memory: KvMemory) -> None:
        self._memory = memory
        self._steps = 0

    def tidy(self, generating: Sequence[Slot]) -> None:
        """Before a step: move one sequence into a gap that has been there for some steps.

        Args:
            generating: those that get a token from the step.
        """
        if not self._memory.streams or len(generating) < 2:
            self._steps = 0
            return
        ids = sorted(slot.id for slot in generating)
        gaps = [slot for slot in self._memory.slots if not slot.busy and ids and ids[0] < slot.id < ids[-1]]
        self._steps = self._steps + 1 if gaps else 0
        if self._steps < _PATIENCE_STEPS:
            return
        self._steps = 0
        outer = [slot for slot in generating if slot.id in (ids[0], ids[-1])]
        moved, gap = min(outer, key=_length), min(gaps, key=_length)
        if max(_length(moved), _length(gap)) <= MAX_MOVED_TOKENS:
            self._memory.swap_ids(moved, gap)


def _length(slot: Slot) -> int:
    return len(slot.tokens)
