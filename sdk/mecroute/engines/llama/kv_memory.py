"""What the KV memory holds: which sequence a prompt goes to, what stays when it ends, what has to go."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

from mecroute.engines.llama.kv_slot import Slot, cells_of
from mecroute.engines.llama.model import PrefixSharing
from mecroute.engines.llama.radix import RadixTree, common_prefix

#: llama.cpp's LLAMA_MAX_SEQ.
MAX_SEQUENCES = 256
#: Sequences beyond those that run. Each costs memory for a row of logits, so there is an end to it.
_CACHED_SEQUENCES = 64
#: No conversation is shorter than this, for the number of sequences that are worth having.
_SHORT_CONVERSATION_TOKENS = 64
#: A beginning that another request is computing is waited for if that saves at least so many tokens.
MIN_AWAITED_TOKENS = 64
#: With streams a beginning is taken over by copying its whole sequence. To copy a token takes far less than
#: to compute one: so many that are wanted to one that is copied at least.
_MIN_COPIED_SHARE = 0.02
#: A longer conversation does not change its place, which is to copy it twice.
MAX_MOVED_TOKENS = 4096


def sequences_for(n_parallel: int, kv_tokens: int) -> int:
    """How many sequences a context should have: those that run, and more that only remember.

    Args:
        n_parallel: requests that run at a time, 1..256.
        kv_tokens: KV cells of the context.
    """
    cached = max(1, min(_CACHED_SEQUENCES, kv_tokens // _SHORT_CONVERSATION_TOKENS))
    return min(MAX_SEQUENCES, n_parallel + cached)


class Resident(NamedTuple):
    """A conversation in memory.

    Attributes:
        keys: names of its beginnings (see `mecroute.prefix_keys`), the shortest first.
        session: the caller's name for it, or None.
        tokens: how many it has.
        running: whether it is being answered.
    """

    keys: tuple[str, ...]
    session: str | None
    tokens: int
    running: bool


class SequenceMemory(Protocol):
    """What of a `DecodeContext` is needed here."""

    def keep_prefix(self, sequence: int, length: int) -> bool:
        """See `DecodeContext.keep_prefix`."""
        ...

    def share_prefix(self, source: int, target: int, length: int) -> bool:
        """See `DecodeContext.share_prefix`."""
        ...

    def exchange(self, one: int, other: int) -> tuple[bool, bool]:
        """See `DecodeContext.exchange`."""
        ...

    def clear(self) -> None:
        """See `DecodeContext.clear`."""
        ...


class Match(NamedTuple):
    """What is in memory of a prompt.

    Attributes:
        source: a sequence whose tokens begin like the prompt, or None.
        length: how many tokens of the prompt it holds.
        awaited: a sequence that will hold more of them when its own prompt is computed, or None.
        coming: how many that will be.
    """

    source: Slot | None
    length: int
    awaited: Slot | None
    coming: int

    @property
    def is_worth_waiting(self) -> bool:
        """Whether to wait for `awaited` rather than compute the same tokens beside it."""
        return self.awaited is not None and self.coming - self.length >= MIN_AWAITED_TOKENS


#: What is in memory of a prompt that nobody has asked before.
NOTHING = Match(None, 0, None, 0)


class KvMemory:
    """Sequences of the KV memory: some belong to running requests, the others are a cache of what ended.

    What a conversation shares with another one lies in the same cells, or with streams, where each sequence
    has cells of its own, is copied. What is idle is forgotten, the least recently used first, where its room
    or its sequence is needed, and never what a request runs on.

    Args:
        context: the memory itself.
        n_slots: its sequences; more than ever run at a time.
        kv_tokens: its cells.
        sharing: what of a sequence another one can take over.
        streams: whether each sequence has as many of the cells as a request may need for itself.

    Attributes:
        kv_tokens: its cells.
        streams: see above.
        max_idle_tokens: cells that may be kept for what is idle alone, where there is another place for it;
            None: all that are free.
        has_place: whether there is another place for what an idle slot holds.
        slots: all sequences.
        evictions: how many times an idle sequence was forgotten for its room or its place.
        on_evict: called with an idle slot that is about to be forgotten, while the memory still holds it.

    Not thread-safe: whoever calls holds the scheduler's lock. A running sequence's `tokens` may grow.
    """

    def __init__(
        self,
        context: SequenceMemory,
        *,
        n_slots: int,
        kv_tokens: int,
        sharing: PrefixSharing,
        streams: bool = False,
    ) -> None:
        self._context = context
        self.kv_tokens = kv_tokens
        self._sharing = sharing
        self.streams = streams
        self.max_idle_tokens: int | None = None
        self.has_place: Callable[[Slot], bool] = lambda _: False
        self._tree: RadixTree[Slot] = RadixTree()
        self.slots = [Slot(number) for number in range(n_slots)]
        self._uses = 0
        self._settled = 0
        self._grown_from: dict[Slot, int] = {}
        self.evictions = 0
        self.on_evict: Callable[[Slot], None] = lambda _: None

    # What there is

    def find(self, prompt: Sequence[int]) -> Match:
        """What is in memory of a prompt, or on its way there. Its last token never counts.

        That one is always computed: its logits choose the first token of the answer.
        """
        best: Slot | None = None
        best_rank = (0, False, 0)
        awaited, coming = None, 0
        for depth, slots in self._tree.matches(prompt[: len(prompt) - 1]):
            if depth <= best_rank[0]:
                break
            for slot in slots:
                held = len(slot.tokens)
                if slot.busy and held < depth and depth > coming and self._sharing == "any":
                    awaited, coming = slot, depth
                usable = min(held, depth)
                if not usable or (self._sharing == "whole" and usable < held):
                    continue
                if self.streams and usable < _MIN_COPIED_SHARE * held:
                    continue
                # Of two that hold as much: one that can be taken over as it is, then the one used last.
                rank = usable, usable == held and not slot.busy, slot.last_used
                if rank > best_rank:
                    best, best_rank = slot, rank
        length = best_rank[0]
        if coming <= length:
            awaited, coming = None, 0
        return Match(best, length, awaited, coming)

    def used_tokens(self) -> int:
        """KV cells in use, each counted once."""
        return self._settled + sum(len(slot.tokens) - before for slot, before in self._grown_from.items())

    def pinned_tokens(self) -> int:
        """Cells that running requests hold; the others can be freed."""
        return cells_of(slot for slot in self.slots if slot.busy)

    def conversations(self) -> list[Slot]:
        """The sequences that hold something, the most recently used first."""
        return sorted((slot for slot in self.slots if slot.tokens), key=_use, reverse=True)

    def residents(self) -> list[Resident]:
        """The conversations that are in memory, the most recently used first."""
        return [
            Resident(slot.resident_keys, slot.session, len(slot.tokens), slot.busy)
            for slot in self.conversations()
        ]

    # For requests

    def place(
        self,
        prompt: Sequence[int],
        keys: tuple[str, ...] = (),
        session: str | None = None,
        *,
        anew: bool = False,
    ) -> Slot:
        """Give a request a sequence that holds as much of its prompt as possible; one must be idle.

        Args:
            prompt: the request's tokens.
            keys, session: of its conversation; see `Slot`.
            anew: it is to hold none of them.

        Returns:
            The sequence, busy; its `tokens` are the part that need not be computed.
        """
        source, length, _, _ = NOTHING if anew else self.find(prompt)
        if source is not None and not source.busy and len(source.tokens) == length:
            slot = source
        elif self.streams:
            slot = self._stream_for(prompt, source, length)
        else:
            slot = self._idle_slot(other_than=source)
            if slot is source:
                self._cut(slot, length)
            else:
                self._forget(slot)
                if source is not None:
                    self._context.share_prefix(source.id, slot.id, length)
                    slot.share(source, length)
        if self.streams:
            self._bring_near(slot)
        slot.busy, slot.session = True, session
        slot.name(keys, len(prompt))
        self._use(slot)
        if self._sharing != "none":
            self._tree.put(slot, prompt)
        self._settle()
        return slot

    def release(self, slot: Slot) -> None:
        """A request has ended: what its sequence holds becomes part of the cache."""
        slot.busy = False
        slot.name(slot.resident_keys, 0)
        self._use(slot)
        if self._sharing == "none":
            self._forget(slot)
        else:
            self._remember(slot)
        self._settle()
        if self.max_idle_tokens is not None:
            self._clear_out(self.max_idle_tokens)

    def adopt(self, slot: Slot) -> None:
        """An idle sequence has been filled from elsewhere; it is the one used last."""
        self._use(slot)
        self._remember(slot)
        self._settle()

    def take_empty(self) -> Slot | None:
        """An idle sequence that holds nothing, for what comes from elsewhere; None if all are busy."""
        if all(slot.busy for slot in self.slots):
            return None
        slot = self._idle_slot(other_than=None)
        self._forget(slot)
        self._settle()
        return slot

    def make_room(self, cells: int) -> bool:
        """Forget idle sequences until there are `cells` free cells; False if there are not so many to be had.

        Args:
            cells: how many are needed.
        """
        if self.streams:  # every sequence has the cells it may need
            return any(not slot.busy for slot in self.slots)
        while self.kv_tokens - self.used_tokens() < cells:
            if not self.evict():
                return False
        return True

    def evict(self) -> bool:
        """Forget the idle sequence that was least recently used; False if none holds anything."""
        victim = self._least_recently_used()
        if victim is not None:
            self._evict(victim)
            self._settle()
        return victim is not None

    def forget(self, slot: Slot) -> None:
        """Drop what an idle sequence holds."""
        self._forget(slot)
        self._settle()

    def swap_ids(self, slot: Slot, idle: Slot) -> bool:
        """Let a sequence and an idle one change places; False if the first one cannot be copied.

        Neither loses what it holds, unless llama.cpp does not take the idle one's back.
        """
        moved, kept = self._context.exchange(slot.id, idle.id)
        if moved:
            slot.id, idle.id = idle.id, slot.id
        if not kept:
            self._tree.discard(idle)
            idle.clear()
        self._settle()
        return moved

    def clear(self) -> None:
        """Forget everything; requests that ran have ended."""
        self._context.clear()
        for slot in self.slots:
            self._tree.discard(slot)
            slot.clear()
            slot.busy = False
            self._use(slot)
        self._settle()

    # How

    def _remember(self, slot: Slot) -> None:
        """Make an idle sequence findable; of two that tell the same story the longer one stays."""
        tokens = slot.tokens
        self._tree.put(slot, tokens)
        if self._sharing == "any":
            for other in list(self._tree.ending_on(tokens)):
                if other is not slot and not other.busy and _may_stand_for(slot, other):
                    self._forget(other)
            for depth, slots in self._tree.matches(tokens)[:1]:
                for other in slots:
                    longer = depth == len(tokens) <= len(other.tokens) and other is not slot
                    if longer and _may_stand_for(other, slot):
                        if not other.busy and len(slot.resident_keys) > len(other.resident_keys):
                            other.name(slot.resident_keys, 0)
                        self._use(other)
                        self._forget(slot)
                        break

    def _clear_out(self, most: int) -> None:
        """Let go what idle sequences alone hold beyond so many cells, where there is another place for it."""
        for slot in reversed(self.conversations()):
            if self.used_tokens() - self.pinned_tokens() <= most:
                return
            if not slot.busy and self.has_place(slot):
                self._evict(slot)
                self._settle()

    def _stream_for(self, prompt: Sequence[int], source: Slot | None, length: int) -> Slot:
        """An idle sequence; it holds the first `length` tokens of a prompt, as `source` does, and no more."""
        idle = [slot for slot in self.slots if not slot.busy]
        slot = min((one for one in idle if not one.tokens), key=_id, default=None) or min(idle, key=_use)
        # One that begins with them itself only has to be cut.
        held = length if length and common_prefix(slot.tokens, list(prompt)) >= length else 0
        if len(slot.tokens) > held:
            self.evictions += 1
            self.on_evict(slot)
        if not held or not self._context.keep_prefix(slot.id, held):
            self._forget(slot)
            held = 0
            if source is not None and source is not slot:
                held = length if self._context.share_prefix(source.id, slot.id, length) else 0
        slot.clear()
        slot.tokens = list(prompt[:held])
        slot.cut(held)
        return slot

    def _bring_near(self, slot: Slot) -> None:
        """Give an idle sequence an id in a row with those that run; see `KvLineup`."""
        ids = [one.id for one in self.slots if one.busy]
        if not ids or len(slot.tokens) > MAX_MOVED_TOKENS:
            return
        first, last = min(ids), max(ids)
        near = [one for one in self.slots if not one.busy and first - 1 <= one.id <= last + 1]
        if slot in near or not near:
            return
        other = min(near, key=lambda one: (not first < one.id < last, len(one.tokens)))
        if len(other.tokens) <= MAX_MOVED_TOKENS:
            self.swap_ids(slot, other)

    def _idle_slot(self, *, other_than: Slot | None) -> Slot:
        idle = [slot for slot in self.slots if not slot.busy]
        empty = min((slot for slot in idle if not slot.tokens), key=_id, default=None)
        if empty is not None:
            return empty
        victim = min((slot for slot in idle if slot is not other_than), key=_use, default=None)
        if victim is None:
            assert other_than is not None
            return other_than
        self._evict(victim)
        return victim

    def _least_recently_used(self) -> Slot | None:
        return min((slot for slot in self.slots if slot.tokens and not slot.busy), key=_use, default=None)

    def _evict(self, slot: Slot) -> None:
        self.evictions += 1
        self.on_evict(slot)
        self._forget(slot)

    def _forget(self, slot: Slot) -> None:
        if slot.tokens:
            self._context.keep_prefix(slot.id, 0)  # removing all of it cannot fail
        self._tree.discard(slot)
        slot.clear()

    def _cut(self, slot: Slot, length: int) -> None:
        if len(slot.tokens) > length and not self._context.keep_prefix(slot.id, length):
            self._forget(slot)
        else:
            slot.cut(length)

    def _use(self, slot: Slot) -> None:
        self._uses += 1
        slot.last_used = self._uses

    def _settle(self) -> None:
        """Count the cells anew; until the next time, only running sequences grow."""
        self._grown_from = {slot: len(slot.tokens) for slot in self.slots if slot.busy}
        self._settled = cells_of(self.slots)


def _use(slot: Slot) -> int:
    return slot.last_used


def _id(slot: Slot) -> int:
    return slot.id


def _may_stand_for(longer: Slot, shorter: Slot) -> bool:
    """Whether no name of a session is lost when only the longer one of two stays."""
    return shorter.session is None or shorter.session == longer.session
