"""The hardware class: the key under which profiles and micro-benchmarks are kept."""

from __future__ import annotations

import importlib
import os
import platform


def usable_cpus() -> int:
    """CPUs this process may run on (at least 1); smaller than the machine's count in a container."""
    if hasattr(os, "sched_getaffinity"):
        return max(1, len(os.sched_getaffinity(0)))
    return max(1, os.cpu_count() or 1)


def default_threads() -> int:
    """Threads a model gets when none are asked for: the physical cores among the usable CPUs.

    Hyperthreads share the units that matrix multiplication keeps busy, so more would not help. Without
    psutil (the `device` extra) every usable CPU counts.
    """
    try:
        psutil = importlib.import_module("psutil")
    except ImportError:
        return usable_cpus()
    return max(1, min(usable_cpus(), psutil.cpu_count(logical=False) or usable_cpus()))


def hardware_class() -> str:
    """Name this machine's hardware class: system, architecture and usable CPUs, as `linux-x86_64-2c`."""
    return f"{platform.system().lower()}-{platform.machine().lower()}-{usable_cpus()}c"
