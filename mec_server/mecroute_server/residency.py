"""Who stays in memory: making room for a model, and sending home those that nobody asks."""

from __future__ import annotations

import asyncio
import logging
import math
from collections import Counter
from collections.abc import Callable, Coroutine
from typing import Any

from mecroute.errors import NodeNotReadyError
from mecroute_server.budget import Candidate, MemoryBudget
from mecroute_server.errors import InsufficientMemoryError
from mecroute_server.footprint import Footprint
from mecroute_server.machine import memory_bytes
from mecroute_server.settings import ServerSettings
from mecroute_server.slot import LoadedModel, ModelSlot

_log = logging.getLogger(__name__)

#: The default budget: what is left is for the system, the page cache and other processes.
MEMORY_SHARE = 0.75
#: Of the time that a request waits for a model at most, the part for which a model that has just been loaded
#: serves before it makes room for another.
_TURN_SHARE = 0.25


class AbandonedError(Exception):
    """Everybody who waited for a model to be loaded has given up before that was begun."""


class Residency:
    """Keeps the models of a node within its memory budget. For one event loop.

    `MemoryBudget` says which model leaves for another; one that answers requests is never taken away from
    them. Where it has to leave all the same, because no idle one makes room enough, it ends what it does
    while its new requests wait for it to come back. So that models which do not fit together do not chase
    each other out for every request, each first serves for as long as its load took, unless it is idle.

    Args:
        settings: the node's settings.
        ready: the models that are in memory.
        spawn: runs something in the background.
    """

    def __init__(
        self,
        settings: ServerSettings,
        ready: Callable[[], list[ModelSlot]],
        spawn: Callable[[Coroutine[Any, Any, None]], object],
    ) -> None:
        self._settings = settings
        self._ready = ready
        self._spawn = spawn
        self.budget = MemoryBudget(
            settings.memory_budget_bytes or int(memory_bytes()[0] * MEMORY_SHARE), settings.vram_budget_bytes
        )
        #: Since the start, by reference and by what for: `memory` or `idle`.
        self.evictions: Counter[tuple[str, str]] = Counter()
        #: Engines that have left their slots and are not closed yet.
        self._retiring: set[LoadedModel] = set()
        #: The node is stopping: nothing is to make room for anything any more.
        self.closing = asyncio.Event()

    def appraise(self, slot: ModelSlot, loaded: LoadedModel) -> None:
        """Say anew what a model is worth: it has just been loaded or asked."""
        loaded.worth = self.budget.worth(
            heat=slot.heat.value(), load_s=loaded.load_s, footprint=self.budget.held(loaded)
        )

    async def make_room(self, slot: ModelSlot, need: Footprint, *, demanded: bool) -> None:
        """Have others leave until a model fits.

        Args:
            slot: the model that is to be loaded; not counted yet.
            need: what it will take.
            demanded: whether to give up when `slot.unwanted` is set.

        Raises:
            InsufficientMemoryError: it would not fit if every model that is not pinned left.
            NodeNotReadyError: what would have to leave is being worked on, or the node is stopping.
            AbandonedError: nobody waits for it any longer.
        """
        while not self.budget.fits(need):
            victims = self._choose_victims(slot, need)
            leaving = asyncio.create_task(self._ask_to_leave(victims))
            ends = [leaving, asyncio.create_task(self.closing.wait())]
            if demanded:
                ends.append(asyncio.create_task(slot.unwanted.wait()))
            try:
                await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
                if self.closing.is_set():
                    raise NodeNotReadyError("the node is stopping", retryable=True, tier="mec")
                if not leaving.done():
                    raise AbandonedError
                if any(loaded.in_flight for _, loaded in victims):
                    continue
                for other, loaded in victims:
                    self.budget.evicted(loaded.worth)
                    await self._evict(other, loaded, "memory", f"made room for {slot.ref}")
            finally:
                for task in ends:
                    task.cancel()
                for other, _ in victims:
                    other.leaving = False

    def _choose_victims(self, slot: ModelSlot, need: Footprint) -> list[tuple[ModelSlot, LoadedModel]]:
        """Who has to leave; nobody where it is enough to wait for one that is being closed."""
        there = {
            other.loaded: other
            for other in self._ready()
            if other is not slot and not other.pinned and other.loaded is not None
        }
        # One that is being deployed anew is left alone; one that only waits for its turn to be loaded is not.
        candidates = [
            Candidate(
                loaded,
                loaded.worth,
                busy=loaded.in_flight > 0 or bool(loaded.turn_left_s(self._turn_s(loaded))),
            )
            for loaded, other in there.items()
            if other.demand is not None or not other.lock.locked()
        ]
        chosen = self.budget.victims(need, candidates)
        if chosen is not None:
            keys = [candidate.key for candidate in chosen]
            return [(other, loaded) for loaded, other in there.items() if loaded in keys]
        if self._retiring:
            return []
        if self.budget.fits(need, list(there)):
            raise NodeNotReadyError(
                f"there is no room for '{slot.ref}' while other models are being deployed",
                retryable=True,
                tier="mec",
                model=slot.ref,
            )
        raise InsufficientMemoryError(
            slot.ref, need, self.budget, pinned=[other.ref for other in self._ready() if other.pinned]
        )

    async def _ask_to_leave(self, victims: list[tuple[ModelSlot, LoadedModel]]) -> None:
        """Wait until models that serve have had their turn, and then until they have nothing left to do."""
        for loaded in [] if victims else list(self._retiring)[:1]:
            await loaded.closed.wait()
        for _, loaded in victims:
            await loaded.turn_over(self._turn_s(loaded))
        for other, _ in victims:
            other.leaving = True
        for _, loaded in victims:
            await loaded.drained()

    def _turn_s(self, loaded: LoadedModel) -> float:
        return min(loaded.load_s, self._settings.load_wait_s * _TURN_SHARE)

    async def _evict(self, slot: ModelSlot, loaded: LoadedModel, reason: str, detail: str) -> None:
        """Close an engine that nothing uses."""
        if slot.loaded is not loaded:
            return  # an operator has taken it out meanwhile
        slot.take_out(detail)
        self.evictions[slot.ref, reason] += 1
        _log.info("%s left memory: %s", slot.ref, detail)
        await self.retire(loaded)

    def idle(self, slot: ModelSlot, loaded: LoadedModel) -> None:
        """A model has nothing to do: unload it when that stays so for as long as it is kept."""
        loaded.idle_at = asyncio.get_running_loop().time()
        self._watch_idle(slot, loaded)

    def _watch_idle(self, slot: ModelSlot, loaded: LoadedModel) -> None:
        keep_s = self._settings.keep_alive_s if slot.keep_alive_s is None else slot.keep_alive_s
        if keep_s is None or math.isinf(keep_s) or slot.pinned or slot.loaded is not loaded:
            return
        loop, due_at = asyncio.get_running_loop(), loaded.idle_at + keep_s
        timer = loaded.idle_timer
        # One timer for a model, however many requests it has: it looks again when it is early.
        if timer is not None and timer.when() <= due_at:
            return
        if timer is not None:
            timer.cancel()

        def look() -> None:
            loaded.idle_timer = None
            if loaded.in_flight or slot.lock.locked() or self.closing.is_set():
                return  # whatever goes on ends with another look, or with this engine
            if loop.time() < due_at or loaded.idle_at + keep_s > due_at:
                self._watch_idle(slot, loaded)
            elif slot.loaded is loaded and not slot.pinned:
                self._spawn(self._evict(slot, loaded, "idle", f"idle for {keep_s:g} s"))

        loaded.idle_timer = loop.call_at(due_at, look)

    def keep(self, slot: ModelSlot, seconds: float) -> None:
        """Keep a model for so long after its last request, in place of the node's setting.

        Args:
            slot: the model; one that is pinned stays whatever is said.
            seconds: >= 0; infinite: until another needs its room.
        """
        slot.keep_alive_s = seconds
        if slot.loaded is not None and not slot.loaded.in_flight:
            self._watch_idle(slot, slot.loaded)

    async def retire(self, loaded: LoadedModel) -> None:
        """Close an engine that has left its slot, when its last request has ended."""
        self._retiring.add(loaded)
        try:
            await loaded.drained()
            await asyncio.to_thread(loaded.engine.close)
        finally:
            self._retiring.discard(loaded)
            self.budget.release(loaded)
            loaded.closed.set()
