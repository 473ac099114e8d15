"""Which KV slot a prompt goes to, so that as little of it as possible is computed again."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

#: Tokens compared at a time: slices are compared in C.
_BLOCK = 64


class Slot:
    """One sequence of the KV memory.

    Attributes:
        id: llama.cpp's sequence id.
        tokens: what the memory holds for it, in order from position 0.
        busy: whether a running request owns it. An idle slot's tokens are a cache.
        last_used: the engine step at which it was last released.
    """

    __slots__ = ("busy", "id", "last_used", "tokens")

    def __init__(self, slot_id: int) -> None:
        self.id = slot_id
        self.tokens: list[int] = []
        self.busy = False
        self.last_used = 0


class Placement(NamedTuple):
    """Where a prompt goes.

    Attributes:
        slot: the idle slot it takes.
        source: the slot whose tokens begin like the prompt; `slot` itself, another one, or None.
        length: how many tokens they share.
    """

    slot: Slot
    source: Slot | None
    length: int


class PrefixCache:
    """The tokens that stay in the slots after their requests have ended.

    Args:
        slots: all slots of the KV memory.
        can_share: whether a part of a sequence can be kept or shared at all.

    Not thread-safe.
    """

    def __init__(self, slots: Sequence[Slot], *, can_share: bool) -> None:
        self._slots = slots
        self._can_share = can_share

    def has_idle(self) -> bool:
        """Whether a prompt can be placed now."""
        return any(not slot.busy for slot in self._slots)

    def place(self, prompt: Sequence[int]) -> Placement:
        """Choose a slot for a prompt; one must be idle. The slot's memory is left as it is."""
        idle = [slot for slot in self._slots if not slot.busy]
        oldest = min(idle, key=_eviction_order)
        if not self._can_share:
            return Placement(oldest, None, 0)
        source, length = None, 0
        for slot in self._slots:
            # The last token of a prompt is always computed: its logits choose the first token.
            shared = common_prefix(slot.tokens, prompt, limit=len(prompt) - 1)
            if shared > length or (shared == length > 0 and not slot.busy):
                source, length = slot, shared
        if source is None:
            return Placement(oldest, None, 0)
        if source.busy:
            return Placement(oldest, source, length)
        # Taking the source itself forgets what it holds after the shared part. When that is most of it (a
        # long conversation that only begins with the same system prompt), another slot is the better victim.
        if len(source.tokens) > 2 * length and oldest is not source:
            return Placement(oldest, source, length)
        return Placement(source, source, length)

    def victims(self) -> Iterable[Slot]:
        """Idle slots that hold tokens, in the order in which to forget them."""
        return sorted((slot for slot in self._slots if not slot.busy and slot.tokens), key=_eviction_order)


def _eviction_order(slot: Slot) -> tuple[bool, int]:
    return bool(slot.tokens), slot.last_used


def common_prefix(held: Sequence[int], prompt: Sequence[int], *, limit: int) -> int:
    """How many tokens two sequences of the same type have in common at their start, at most `limit`."""
    end = min(len(held), len(prompt), limit)
    at = 0
    while at < end and held[at : at + _BLOCK] == prompt[at : at + _BLOCK]:
        at += _BLOCK
    while at < end and held[at] == prompt[at]:
        at += 1
    return min(at, end)
