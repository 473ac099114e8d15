"""Which models may be in memory together, and which of them leave it first."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from mecroute_server.footprint import Footprint

#: Demand counts half after this long.
HEAT_HALF_LIFE_S = 600.0
#: A load is worth avoiding even where it took no measurable time.
_LEAST_LOAD_S = 0.01
_GIB = float(1 << 30)


class Heat:
    """Demand for a model: requests, each of which counts half after `HEAT_HALF_LIFE_S`."""

    __slots__ = ("_at", "_value")

    def __init__(self) -> None:
        self._value = 0.0
        self._at = 0.0

    def add(self, now: float | None = None) -> None:
        """One request has come; `now` is time.monotonic()."""
        now = time.monotonic() if now is None else now
        self._value = self.value(now) + 1
        self._at = now

    def value(self, now: float | None = None) -> float:
        """The decayed number of requests."""
        now = time.monotonic() if now is None else now
        return self._value * math.exp2(-max(0.0, now - self._at) / HEAT_HALF_LIFE_S)


@dataclass(frozen=True, slots=True)
class Candidate:
    """A model that could leave memory.

    Attributes:
        key: under which its memory is held.
        worth: see `MemoryBudget.worth`.
        busy: whether it answers requests, which would have to end first.
    """

    key: object
    worth: float
    busy: bool = False


class MemoryBudget:
    """Counts what is held of two kinds of memory, and chooses what has to go. For one event loop.

    Eviction is GreedyDual-Size-Frequency (Cherkasova, "Improving WWW Proxies Performance with
    Greedy-Dual-Size-Frequency Caching Policy", HP Labs HPL-98-69R1, 1998): the model of the lowest worth
    leaves, where at each request

        worth = clock + heat x load_s / size_GiB

    and the clock is set to the worth of what was evicted last, so that what was worth much once and is not
    asked for any more grows old. `heat` (decayed demand) stands for GDSF's frequency, the time it takes to
    load for its cost.

    Args:
        ram_bytes: > 0.
        vram_bytes: >= 0, or None for no bound.
    """

    def __init__(self, ram_bytes: int, vram_bytes: int | None = None) -> None:
        self.ram_bytes = ram_bytes
        self.vram_bytes = vram_bytes
        self._held: dict[object, Footprint] = {}
        self._clock = 0.0

    def hold(self, key: object, footprint: Footprint) -> None:
        """Count memory as taken under a key, in place of what the key held before."""
        self._held[key] = footprint

    def release(self, key: object) -> None:
        """Count it as free; a key that holds nothing is ignored."""
        self._held.pop(key, None)

    @contextmanager
    def reserved(self, footprint: Footprint) -> Iterator[None]:
        """Hold memory while something is loaded that has no key of its own yet."""
        key = object()
        self.hold(key, footprint)
        try:
            yield
        finally:
            self.release(key)

    def held(self, key: object) -> Footprint:
        """What is held under a key."""
        return self._held.get(key, Footprint(0))

    @property
    def resident(self) -> Footprint:
        """Everything that is held."""
        held = self._held.values()
        return Footprint(sum(one.ram_bytes for one in held), sum(one.vram_bytes for one in held))

    def fits(self, need: Footprint, without: Sequence[object] = ()) -> bool:
        """Whether there is room, were the memory of `without` free."""
        freed = [self.held(key) for key in without]
        now = self.resident
        ram = now.ram_bytes - sum(one.ram_bytes for one in freed) + need.ram_bytes
        vram = now.vram_bytes - sum(one.vram_bytes for one in freed) + need.vram_bytes
        return ram <= self.ram_bytes and (
            self.vram_bytes is None or not need.vram_bytes or vram <= self.vram_bytes
        )

    def worth(self, *, heat: float, load_s: float, footprint: Footprint) -> float:
        """What keeping a model is worth now."""
        size = max(1, footprint.ram_bytes + footprint.vram_bytes) / _GIB
        return self._clock + heat * max(load_s, _LEAST_LOAD_S) / size

    def victims(self, need: Footprint, candidates: Sequence[Candidate]) -> list[Candidate] | None:
        """What has to leave so that `need` fits: idle models first, each group in the order of worth.

        Returns:
            As few of them as that order allows, none where there is room already; None where all of them
            would not be enough.
        """
        chosen: list[Candidate] = []
        for candidate in sorted(candidates, key=lambda one: (one.busy, one.worth)):
            if self.fits(need, [one.key for one in chosen]):
                break
            chosen.append(candidate)
        if not self.fits(need, [one.key for one in chosen]):
            return None
        # A small one that was chosen first is spared where a larger one after it makes room enough alone; the
        # one that is worth most is asked first.
        for candidate in sorted(chosen, key=lambda one: (not one.busy, -one.worth)):
            rest = [one for one in chosen if one is not candidate]
            if self.fits(need, [one.key for one in rest]):
                chosen = rest
        return chosen

    def evicted(self, worth: float) -> None:
        """A model of that worth was evicted to make room: the clock moves on."""
        self._clock = max(self._clock, worth)
