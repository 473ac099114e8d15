"""Engines that are loaded once for everybody who waits, whoever fails or leaves in between."""

from __future__ import annotations

import asyncio
import threading

import pytest

from mecroute.tiers.shared_loads import SharedLoads


class Engine:
    def __init__(self) -> None:
        self.closed = False

    def close(self) -> None:
        self.closed = True


def test_who_tries_again_after_a_failure_is_not_forgotten_by_the_others_who_failed() -> None:
    made: list[Engine] = []
    fails = threading.Event()

    def load() -> Engine:
        if not fails.is_set():
            fails.set()
            raise OSError("its file is gone")
        made.append(Engine())
        return made[-1]

    async def patient(loads: SharedLoads[Engine]) -> Engine:
        try:
            return await loads.get("m", load)
        except OSError:
            return await loads.get("m", load)

    async def run() -> None:
        loads: SharedLoads[Engine] = SharedLoads()
        found = await asyncio.gather(*(patient(loads) for _ in range(5)))
        assert len(made) == 1
        assert set(found) == set(made)
        assert loads.loaded() == {"m": made[0]}
        await loads.aclose()
        assert made[0].closed

    asyncio.run(run())


def test_a_load_that_failed_with_nobody_waiting_is_tried_again_for_the_first_who_asks() -> None:
    attempts: list[Engine] = []

    def load() -> Engine:
        attempts.append(Engine())
        if len(attempts) == 1:
            raise OSError("its file is not there yet")
        return attempts[-1]

    async def run() -> None:
        loads: SharedLoads[Engine] = SharedLoads()
        ahead = loads.begin("m", load)
        await asyncio.wait((ahead,))
        assert isinstance(ahead.exception(), OSError)
        assert loads.begin("m", load) is ahead  # one more request does not try it again
        assert "m" in loads
        first, second = await asyncio.gather(loads.get("m", load), loads.get("m", load))
        assert first is second is attempts[1]
        assert len(attempts) == 2
        await loads.aclose()

    asyncio.run(run())


def test_what_is_still_being_loaded_at_the_end_is_unloaded_too() -> None:
    engine, go = Engine(), threading.Event()

    def load() -> Engine:
        assert go.wait(30)
        return engine

    async def run() -> None:
        loads: SharedLoads[Engine] = SharedLoads()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(loads.get("m", load), 0.01)
        asyncio.get_running_loop().call_later(0.05, go.set)
        await loads.aclose()
        assert engine.closed

    asyncio.run(run())
