"""When a request may have KV cells, and what it finds in them: the scheduler asks, between two steps."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from mecroute.engines.llama.awaiting import DISK_PATIENCE_S, Awaiting, Computing
from mecroute.engines.llama.generation import Generation
from mecroute.engines.llama.kv_lineup import KvLineup
from mecroute.engines.llama.kv_memory import NOTHING, KvMemory, Match, Resident
from mecroute.engines.llama.kv_slot import Slot
from mecroute.engines.llama.kv_spill import KvSpill
from mecroute.engines.llama.prefill import left_of_prompt
from mecroute.engines.llama.sequence import PREFILLING, Sequence
from mecroute.engines.llama.speculation import MAX_DRAFT_TOKENS

#: Cells that a sequence which generates may need for a step.
_MAX_DECODE_ROWS = 1 + MAX_DRAFT_TOKENS


class Residency:
    """Puts requests and what is in memory of their prompts together.

    A request may have to wait here, in a slot: for a beginning that another one is computing, or for one that
    is being read from the disk.

    Args:
        memory: the KV memory.
        spill: where conversations are that have left it.

    Not thread-safe: whoever calls holds the scheduler's lock.
    """

    def __init__(self, memory: KvMemory, spill: KvSpill) -> None:
        self.memory = memory
        self.spill = spill
        self._lineup = KvLineup(memory)
        self._awaiting: list[Awaiting] = []

    @property
    def waiting(self) -> list[Generation]:
        """The requests that wait here."""
        return [awaiting.generation for awaiting in self._awaiting]

    @property
    def has_waiting(self) -> bool:
        """Whether a request waits here."""
        return bool(self._awaiting)

    @property
    def patience_s(self) -> float | None:
        """When to look again though nothing runs; None: not before something happens."""
        return DISK_PATIENCE_S if self._awaiting else None

    def residents(self) -> list[Resident]:
        """The conversations that need not be computed again, the one used last first."""
        return self.memory.residents() + self.spill.residents()

    def left_to_compute(self, generation: Generation) -> int:
        """How many tokens of its prompt would have to be computed, if it came now."""
        prompt = generation.request.prompt
        if generation.request.scores_prompt:
            return len(prompt)
        match = self.memory.find(prompt)
        here = match.coming if match.is_worth_waiting else match.length
        return len(prompt) - max(here, self.spill.length(prompt[:-1], beyond=here))

    def fits(self, generation: Generation, running: Iterable[Sequence]) -> bool:
        """Whether the room it may come to need is not promised to others; caches give way."""
        match = self._find(generation)
        needed = _room(generation)
        if match.source is not None and match.source.busy:
            needed -= match.length
        needed += sum(sequence.room - len(sequence.slot.tokens) for sequence in running)
        needed += sum(_room(other) for other in self.waiting)
        return self.memory.pinned_tokens() + needed <= self.memory.kv_tokens

    def may_start(self, generation: Generation, *, prefill_tokens_per_s: float | None) -> bool:
        """Whether all that is to be had of its prompt is in memory; if not, it waits here."""
        return self._may_start(generation, prefill_tokens_per_s, try_disk=True)

    def ended(self) -> Iterator[Awaiting]:
        """Take out those that have waited long enough; each is to be resumed before the next is asked for."""
        for awaiting in [one for one in self._awaiting if one.is_over]:
            self._awaiting.remove(awaiting)
            yield awaiting

    def may_resume(self, awaiting: Awaiting, *, prefill_tokens_per_s: float | None) -> bool:
        """Whether one that has waited may start; if not, it waits here for something else.

        Where what was waited for did not come, the first one then computes it and the others wait for that.
        """
        if awaiting.fetch is not None:
            self.spill.take_in(awaiting.fetch)
        try_disk = awaiting.fetch is None
        return self._may_start(awaiting.generation, prefill_tokens_per_s, try_disk=try_disk)

    def place(self, generation: Generation) -> Slot:
        """Give it a sequence, which holds what is in memory of its prompt."""
        request = generation.request
        return self.memory.place(
            request.prompt, request.prefix_keys, request.session, anew=request.scores_prompt
        )

    def make_room(self, running: Iterable[Sequence], n_batch: int) -> None:
        """Forget what is idle, as far as the next step may need its cells."""
        if self.memory.streams:
            return  # every sequence has the cells it may need
        wanted = 0
        for sequence in running:
            wanted += _MAX_DECODE_ROWS if sequence.next_token != PREFILLING else left_of_prompt(sequence)
        self.memory.make_room(min(wanted, n_batch))

    def line_up(self, running: Iterable[Sequence]) -> None:
        """See that sequences which generate are computed together; see `KvLineup`."""
        if self.memory.streams:
            self._lineup.tidy([one.slot for one in running if one.next_token != PREFILLING])

    def expire(self, now: float) -> list[Generation]:
        """Take out those whose deadline has passed.

        Args:
            now: time.perf_counter().
        """
        return self._take_out(lambda one: (one.request.submitter.deadline_at or now + 1) <= now)

    def drop_cancelled(self) -> None:
        """Take out those that nobody wants any more."""
        self._take_out(lambda one: one.cancelled)

    def abandon(self) -> list[Generation]:
        """Take out all."""
        return self._take_out(lambda _: True)

    def _find(self, generation: Generation) -> Match:
        """What a request may take over of its prompt."""
        request = generation.request
        return NOTHING if request.scores_prompt else self.memory.find(request.prompt)

    def _take_out(self, which: Callable[[Generation], bool]) -> list[Generation]:
        out = [one for one in self._awaiting if which(one.generation)]
        self._awaiting = [one for one in self._awaiting if one not in out]
        return [one.generation for one in out]

    def _may_start(self, generation: Generation, speed: float | None, *, try_disk: bool) -> bool:
        if generation.request.scores_prompt:
            return True
        prompt = generation.request.prompt
        match = self.memory.find(prompt)
        if match.awaited is not None and match.is_worth_waiting:
            self._awaiting.append(Awaiting(generation, Computing(match.awaited, match.coming)))
            return False
        self.spill.recall(prompt[:-1], beyond=match.length)
        if try_disk:
            held = self.memory.find(prompt).length
            fetch = self.spill.fetch(prompt[:-1], beyond=held, prefill_tokens_per_s=speed)
            if fetch is not None:
                self._awaiting.append(Awaiting(generation, fetch))
                return False
        return True


def _room(generation: Generation) -> int:
    """Cells that a request may come to need."""
    return generation.room
