"""Keeps the demand between runs: read at the start, written now and then and at the end."""

from __future__ import annotations

import asyncio
import copy
import time
from collections.abc import Callable
from pathlib import Path

from mecroute.placement.demand import Demand
from mecroute.placement.store import load_demand, save_demand

_EVERY_S = 60.0


class DemandKeeper:
    """Keeps one `Demand` in a file. For one event loop.

    Args:
        path: the SQLite file of the client's state.
        demand: what is kept; it begins with what the file holds.
        clock: monotonic seconds.
    """

    def __init__(self, path: Path, demand: Demand, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._path = path
        self._demand = demand
        self._clock = clock
        self._written_at = clock()
        self._writing: asyncio.Future[None] | None = None
        self._changed = False
        demand.restore(load_demand(path))

    def counted(self) -> None:
        """Something was counted; returns at once."""
        self._changed = True
        if self._clock() - self._written_at < _EVERY_S or (self._writing and not self._writing.done()):
            return
        self._written_at = self._clock()
        self._changed = False
        models = copy.deepcopy(self._demand.models())  # a thread writes it while this one counts on
        self._writing = asyncio.get_running_loop().run_in_executor(None, save_demand, self._path, models)

    async def aclose(self) -> None:
        """Write what is left."""
        if self._writing is not None:
            await asyncio.gather(self._writing, return_exceptions=True)
        if self._changed:
            self._changed = False
            await asyncio.to_thread(save_demand, self._path, self._demand.models())
