"""A micro-benchmark of the device: memory bandwidth, which bounds how fast a model can decode.

To decode one token, every weight is read once; decode speed is therefore at most bandwidth divided by
model size (Pope et al. 2022, "Efficiently Scaling Transformer Inference", section 2). The figure is
kept per hardware class, so that it is measured once and not at every start.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import os
import tempfile
import time
from functools import cache
from pathlib import Path

from mecroute.device.hardware import hardware_class
from mecroute_registry.paths import cache_dir

_BUFFER_BYTES = 64 * 1024 * 1024  # well past any cache of a device
_ROUNDS = 3


def measure_bandwidth() -> float:
    """Copy a buffer and return the best rate seen, in bytes read per second by one thread.

    Takes about 50 ms and 128 MiB for its time.
    """
    source = bytearray(_BUFFER_BYTES)
    target = bytearray(_BUFFER_BYTES)
    best = 0.0
    for _ in range(_ROUNDS):
        begun = time.perf_counter()
        target[:] = source
        best = max(best, _BUFFER_BYTES / (time.perf_counter() - begun))
    return best


@cache
def remembered_bandwidth() -> float | None:
    """The bandwidth measured earlier on this hardware class; None when it never was."""
    try:
        kept = json.loads(_file().read_text(encoding="utf-8"))
        value = float(kept[hardware_class()])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return value if value > 0 else None


def bandwidth() -> float:
    """The device's memory bandwidth in bytes per second, measured now if it never was."""
    known = remembered_bandwidth()
    if known is not None:
        return known
    measured = measure_bandwidth()
    # A read-only home is no reason to fail: it is then measured once per process.
    with contextlib.suppress(OSError):
        _remember(measured)
    remembered_bandwidth.cache_clear()
    return measured


class Measuring:
    """One measurement at a time for all who wait. For one event loop."""

    def __init__(self) -> None:
        self._task: asyncio.Task[float] | None = None

    async def within(self, seconds: float) -> float | None:
        """The bandwidth; None where there is no memory for measuring it, or it takes longer than this.

        It then goes on for the next who ask.
        """
        if self._task is None:
            self._task = asyncio.create_task(asyncio.to_thread(bandwidth))
        done, _ = await asyncio.wait({self._task}, timeout=None if seconds == math.inf else seconds)
        return self._task.result() if done and self._task.exception() is None else None


def _file() -> Path:
    return cache_dir() / "device.json"


def _remember(value: float) -> None:
    file = _file()
    file.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=file.parent, prefix=".device-")
    with os.fdopen(descriptor, "w", encoding="utf-8") as out:
        json.dump({hardware_class(): value}, out)
    Path(temporary).replace(file)
