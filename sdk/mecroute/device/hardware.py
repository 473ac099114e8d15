"""The hardware class: the key under which profiles and micro-benchmarks are kept."""

from __future__ import annotations

import os
import platform


def usable_cpus() -> int:
    """CPUs this process may run on (at least 1); smaller than the machine's count in a container."""
    if hasattr(os, "sched_getaffinity"):
        return max(1, len(os.sched_getaffinity(0)))
    return max(1, os.cpu_count() or 1)


def hardware_class() -> str:
    """Name this machine's hardware class: system, architecture and usable CPUs, as `linux-x86_64-2c`."""
    return f"{platform.system().lower()}-{platform.machine().lower()}-{usable_cpus()}c"
