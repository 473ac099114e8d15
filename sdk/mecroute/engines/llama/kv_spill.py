"""Where conversations go that leave the KV memory, and how they come back: memory first, then the disk."""

from __future__ import annotations

from collections.abc import Sequence

from mecroute.engines.llama.kv_memory import KvMemory, Resident
from mecroute.engines.llama.kv_slot import Slot
from mecroute.engines.llama.kv_transfer import KvTransfer
from mecroute.engines.llama.prefix_disk import Fetch, PrefixDisk
from mecroute.engines.llama.prefix_ram import PrefixRam, Taken
from mecroute.errors import MecrouteError

#: Cells that idle conversations may keep in a KV memory without streams while there is another place for
#: them. Attention runs over every cell in use, also those of others: on a model of 135 million parameters
#: 1,400 idle cells made a lone answer 5 to 9% slower than 200 did, and to bring 500 tokens back takes 2 ms.
MAX_IDLE_TOKENS = 256


class KvSpill:
    """Copies conversations out of the KV memory and back; only on the engine's thread, between steps.

    What takes long happens in the disk's thread. Here a conversation is copied within memory, at some GB/s.

    Args:
        memory: tells when it forgets one.
        transfer: copies.
        ram: holds what is forgotten.
        disk: gets what that has no room for; None: it is gone.

    Attributes:
        recalls: how many conversations came back from memory.
    """

    def __init__(
        self, memory: KvMemory, transfer: KvTransfer, ram: PrefixRam, disk: PrefixDisk | None
    ) -> None:
        self._memory = memory
        self._transfer = transfer
        self._ram = ram
        self._disk = disk
        self.recalls = 0

    def prepare(self) -> None:
        """Find out whether this model's memory can be copied at all; before anything is in it."""
        try:
            self._transfer.layout()
        except MecrouteError:
            return
        self._memory.on_evict = self._keep
        self._memory.has_place = self._has_place
        self._ram.on_drop = self._drop
        if not self._memory.streams:
            self._memory.max_idle_tokens = MAX_IDLE_TOKENS

    @property
    def disk_hits(self) -> int:
        """How many conversations came back from the disk."""
        return self._disk.hits if self._disk is not None else 0

    @property
    def disk_hit_tokens(self) -> int:
        """How many tokens they had."""
        return self._disk.hit_tokens if self._disk is not None else 0

    @property
    def ram_bytes(self) -> int:
        """Bytes of the conversations held in memory beside the KV memory."""
        return self._ram.size_bytes

    def residents(self) -> list[Resident]:
        """The conversations held in memory beside the KV memory, the last one first."""
        return [Resident(taken.keys, taken.session, len(taken.tokens), False) for taken in self._ram.held()]

    def length(self, prompt: Sequence[int], *, beyond: int) -> int:
        """How many tokens of a prompt `recall` would bring back."""
        return self._ram.length(prompt, beyond=beyond)

    def recall(self, prompt: Sequence[int], *, beyond: int) -> None:
        """Bring back what memory holds of a prompt, if that is more than is in the KV memory.

        Args:
            prompt: tokens without the last one, which is always computed.
            beyond: how many of them are in the KV memory.
        """
        taken = self._ram.pop(prompt, beyond=beyond)
        if taken is None:
            return
        if self._put(taken):
            self.recalls += 1
        else:
            self._ram.put(taken)

    def fetch(
        self, prompt: Sequence[int], *, beyond: int, prefill_tokens_per_s: float | None
    ) -> Fetch | None:
        """Begin to bring it from the disk; see `PrefixDisk.find`."""
        if self._disk is None:
            return None
        return self._disk.find(prompt, beyond=beyond, prefill_tokens_per_s=prefill_tokens_per_s)

    def take_in(self, fetch: Fetch) -> None:
        """Put what came from the disk into the KV memory, unless another request has, or it does not fit."""
        snapshot = fetch.snapshot
        if snapshot is None or fetch.is_used or self._disk is None:
            return
        fetch.is_used = True
        came = self._put(Taken(snapshot.tokens, snapshot.state, snapshot.keys, snapshot.session))
        self._disk.used(fetch, tokens=len(snapshot.tokens) if came else 0)

    def keep_all(self) -> None:
        """Bring everything to the disk, the most recently used last: the engine is about to end."""
        if self._disk is None:
            return
        for slot in reversed(self._memory.conversations()):
            if not slot.busy:
                self._keep(slot)
        while (taken := self._ram.pop_oldest()) is not None:
            self._drop(taken)

    def _put(self, taken: Taken) -> bool:
        try:
            self._transfer.put(taken.tokens, taken.state, keys=taken.keys, session=taken.session)
        except MecrouteError:
            return False
        return True

    def _has_place(self, slot: Slot) -> bool:
        return self._transfer.layout().size_of(len(slot.tokens)) <= self._ram.max_bytes

    def _keep(self, slot: Slot) -> None:
        try:
            self._ram.put(self._transfer.take(slot))
        except MecrouteError:
            return

    def _drop(self, taken: Taken) -> None:
        if self._disk is not None and self._disk.wants(taken.tokens, len(taken.state)):
            self._disk.keep(taken)
