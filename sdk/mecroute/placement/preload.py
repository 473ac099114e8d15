"""Loads the model that the device is likeliest to be asked for, while nobody asks for anything."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable

from mecroute.context import DeviceState
from mecroute.errors import MecrouteError
from mecroute.placement.demand import Demand
from mecroute_registry.facts import ModelVersion

_LOG = logging.getLogger("mecroute.placement")
LOOK_EVERY_S = 30.0
IDLE_S = 30.0
#: Demand is looked at so far ahead: loading takes seconds, and a morning's first request is to find it done.
HOURS_AHEAD = 0.5
#: Fewer than one request in two hours is no reason to hold memory.
_LEAST_PER_HOUR = 0.5
_MEMORY_FACTOR = 1.25  # weights, KV cache and work buffers, over the size of the file


class Preloader:
    """Looks now and then; see `likeliest` for what it loads. For one event loop.

    Args:
        models: the models of the local registry.
        loaded: references of those in memory; nothing is loaded beside another.
        load: loads one.
        device: the state of the machine.
    """

    def __init__(
        self,
        demand: Demand,
        *,
        models: Callable[[], Iterable[ModelVersion]],
        loaded: Callable[[], Iterable[str]],
        load: Callable[[ModelVersion], Awaitable[None]],
        device: Callable[[], DeviceState],
        battery_floor: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._demand = demand
        self._models = models
        self._loaded = loaded
        self._load = load
        self._device = device
        self._battery_floor = battery_floor
        self._clock = clock
        self._asked_at = clock()

    def asked(self) -> None:
        """Somebody asks for something: this is no time to load anything else."""
        self._asked_at = self._clock()

    async def run(self) -> None:
        """Look for ever; cancel it to stop."""
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            await self.look()

    async def look(self) -> str | None:
        """Load the likeliest model if the device is idle; returns its reference."""
        if self._clock() - self._asked_at < IDLE_S or tuple(self._loaded()):
            return None
        state = self._device()
        if state.throttled or (not state.charging and (state.battery or 0.0) < max(0.5, self._battery_floor)):
            return None
        model = likeliest(self._models(), self._demand, state.memory_available_bytes)
        if model is None:
            return None
        try:
            await self._load(model)
        except MecrouteError as error:
            _LOG.warning("%s was not loaded ahead: %s", model.ref, error.message)
            return None
        return model.ref


def likeliest(
    models: Iterable[ModelVersion], demand: Demand, memory_bytes: int | None
) -> ModelVersion | None:
    """The model that the device should have in memory soon: that of the most expected requests, if it fits
    in half of the free memory and there are any to speak of."""
    best: tuple[float, ModelVersion] | None = None
    for model in models:
        if "device" not in model.deployment_tiers or model.format != "gguf":
            continue
        if memory_bytes is not None and model.size_bytes * _MEMORY_FACTOR > memory_bytes / 2:
            continue
        expected = demand.expected_per_hour(model.ref, hours_ahead=HOURS_AHEAD)
        if expected >= _LEAST_PER_HOUR and (best is None or expected > best[0]):
            best = (expected, model)
    return best[1] if best is not None else None
