"""Moves conversations out of the KV memory and into it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from mecroute.engines.llama.kv_memory import KvMemory
from mecroute.engines.llama.kv_slot import Slot
from mecroute.engines.llama.kv_state import StateLayout
from mecroute.engines.llama.prefix_ram import PrefixRam, Taken
from mecroute.errors import (
    InsufficientRoomError,
    InvalidSnapshotError,
    SessionConflictError,
    SessionNotFoundError,
)


class StateContext(Protocol):
    """What of a `DecodeContext` is needed here."""

    def decode_one(self, sequence: int) -> bool:
        """See `DecodeContext.decode_one`."""
        ...

    def read_state(self, sequence: int) -> memoryview:
        """See `DecodeContext.read_state`."""
        ...

    def write_state(self, sequence: int, state: memoryview) -> bool:
        """See `DecodeContext.write_state`."""
        ...


class KvTransfer:
    """Reads and writes whole conversations; only on the engine's thread, between steps.

    Args:
        context: the memory itself.
        memory: what it holds.
        ram: what has been taken out of it, and can be named too.
        n_ctx: tokens a conversation may have.
        sharing_any: whether the memory can take over any beginning of a sequence; nothing is moved otherwise.
    """

    def __init__(
        self, context: StateContext, memory: KvMemory, ram: PrefixRam, *, n_ctx: int, sharing_any: bool
    ) -> None:
        self._context = context
        self._memory = memory
        self._ram = ram
        self._n_ctx = n_ctx
        self._movable = sharing_any
        self._layout: StateLayout | None = None

    def layout(self) -> StateLayout:
        """How this context writes a sequence, found by writing one.

        Raises:
            SessionConflictError: in a form that is not known, or just now there is no sequence to try it on.
        """
        if self._layout is None and self._movable:
            slot = self._memory.take_empty() if self._memory.make_room(1) else None
            if slot is None:
                raise SessionConflictError("the KV memory is fully in use", hint="try again later")
            if self._context.decode_one(slot.id):
                slot.tokens = [0]
                self._layout = StateLayout.of_one_token(self._context.read_state(slot.id))
                self._memory.forget(slot)
            self._movable = self._layout is not None
        if self._layout is None:
            raise SessionConflictError(
                "this model's memory is of a kind that cannot be moved",
                hint="send the conversation's messages to the other node instead",
            )
        return self._layout

    def take(self, slot: Slot) -> Taken:
        """Copy what an idle sequence holds.

        Raises:
            SessionConflictError: it cannot be.
        """
        layout = self.layout()
        state = self._context.read_state(slot.id)
        if len(state) != layout.size_of(len(slot.tokens)):
            raise SessionConflictError("llama.cpp cannot write this conversation's memory")
        return Taken(tuple(slot.tokens), state, slot.resident_keys, slot.session)

    def take_named(self, name: str) -> Taken:
        """Copy the conversation of that name: a session's, or a key of one of its beginnings.

        Raises:
            SessionNotFoundError: there is none.
            SessionConflictError: it is being answered, or cannot be copied.
        """
        slots = self._memory.conversations()
        named = [slot for slot in slots if slot.session == name]
        named = named or [slot for slot in slots if slot.resident_keys[-1:] == (name,)]
        named = named or [slot for slot in slots if name in slot.resident_keys]
        if not named and (held := self._held(name)) is not None:
            return held
        if not named:
            raise SessionNotFoundError(
                f"no conversation '{name}' is in memory",
                hint="GET /admin/sessions lists those that are",
            )
        idle = [slot for slot in named if not slot.busy]
        if not idle or (named[0].session == name and named[0].busy):
            raise SessionConflictError(
                f"conversation '{name}' is being answered", hint="export it when the answer is complete"
            )
        return self.take(idle[0])

    def _held(self, name: str) -> Taken | None:
        held = self._ram.held()
        for fits in (
            lambda taken: taken.session == name,
            lambda taken: taken.keys[-1:] == (name,),
            lambda taken: name in taken.keys,
        ):
            for taken in filter(fits, held):
                return taken
        return None

    def put(
        self,
        tokens: Sequence[int],
        state: memoryview,
        *,
        keys: tuple[str, ...],
        session: str | None,
    ) -> None:
        """Take a conversation in as if it had been computed here.

        Args:
            tokens: its tokens, each of this model's vocabulary.
            state: as `take` gave it, and `StateLayout.flaw_in` has found no flaw in it.
            keys, session: its names.

        Raises:
            InvalidSnapshotError: llama.cpp does not take it.
            SessionConflictError: it is longer than the context.
            InsufficientRoomError: there is no room for it now.
        """
        count = len(tokens)
        if count >= self._n_ctx:
            raise SessionConflictError(
                f"the conversation has {count} tokens, and the context window {self._n_ctx}",
                hint="serve the model with a longer context",
            )
        if not self._memory.make_room(count):
            raise InsufficientRoomError(
                f"the KV memory has no room for {count} tokens beside what is being answered",
                hint="try again when fewer requests run",
            )
        slot = self._memory.take_empty()
        if slot is None:
            raise InsufficientRoomError("every sequence of the KV memory is in use", hint="try again later")
        if not self._context.write_state(slot.id, state):
            raise InvalidSnapshotError("llama.cpp does not accept the snapshot's state")
        slot.tokens = list(tokens)
        slot.cut(count)  # its cells begin here
        slot.name(keys, 0)
        slot.session = session
        self._memory.adopt(slot)
