"""What the node's machine has and how busy it is, measured when asked."""

from __future__ import annotations

import re
import resource
import sys
import time
from pathlib import Path

import psutil

#: cgroup v2: what the container may use, which is often less than the machine has.
_CGROUP = Path("/sys/fs/cgroup")
#: CPU use over a shorter window than this is mostly noise.
_MIN_WINDOW_S = 0.5


class CpuMeter:
    """CPU use of the whole machine since the last look; for one thread."""

    def __init__(self) -> None:
        self._percent = 0.0
        self._read_at = time.monotonic()
        psutil.cpu_percent(interval=None)

    def percent(self) -> float:
        """CPU use in 0..100 over all CPUs; the same value again when asked within half a second."""
        now = time.monotonic()
        if now - self._read_at >= _MIN_WINDOW_S:
            self._percent = psutil.cpu_percent(interval=None)
            self._read_at = now
        return self._percent


def peak_memory_bytes() -> int:
    """The most memory this process ever had resident."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # getrusage(2): KiB on Linux, bytes on macOS


def memory_bytes() -> tuple[int, int]:
    """Total and available memory of this machine or container."""
    memory = psutil.virtual_memory()
    total, available = int(memory.total), int(memory.available)
    limit, used = _cgroup_number("memory.max"), _cgroup_number("memory.current")
    if limit is not None and used is not None and limit < total:
        reclaimable = _cgroup_inactive_file()
        return limit, max(0, min(available, limit - used + reclaimable))
    return total, available


def gpu_backend() -> str | None:
    """The GPU backend llama.cpp was built with and finds a device for (`CUDA`, `Metal`…); None on CPU only.

    Imports llama.cpp, so it takes part of a second the first time.
    """
    from mecroute.engines.llama.native import supports_gpu, system_info

    if not supports_gpu():
        return None
    named = [name for name in re.findall(r"(?:^|\| )(\w+) : ", system_info()) if name != "CPU"]
    return named[0] if named else "GPU"


def gpu_devices() -> list[dict[str, str | int]]:
    """The GPUs that llama.cpp finds: name, description, and memory in bytes; empty without any."""
    from mecroute.engines.llama import gpu

    return [
        {
            "name": device.name,
            "description": device.description,
            "memory_total_bytes": device.memory_total_bytes,
            "memory_free_bytes": device.memory_free_bytes,
        }
        for device in gpu.gpu_devices()
    ]


def _cgroup_number(name: str) -> int | None:
    try:
        return int((_CGROUP / name).read_text())
    except (OSError, ValueError):  # no cgroup v2, or "max"
        return None


def _cgroup_inactive_file() -> int:
    """Page cache the kernel gives back when asked: a model read once must not look like memory in use."""
    try:
        lines = (_CGROUP / "memory.stat").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("inactive_file ")), 0)
