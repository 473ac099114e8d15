"""Reads the state of this machine: memory, battery, heat, and whether it has a network at all.

Linux is read from `/proc` and `/sys`, so that the base install needs nothing; elsewhere psutil is used
where it is installed, and what cannot be read is None.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

from mecroute.context import DeviceState, NetworkState
from mecroute.device.bandwidth import remembered_bandwidth
from mecroute.device.hardware import hardware_class

_POWER = Path("/sys/class/power_supply")
_THERMAL = Path("/sys/class/thermal")
_ROUTES = Path("/proc/net/route")
_ROUTES_V6 = Path("/proc/net/ipv6_route")
_RTF_UP = 0x1  # linux/route.h
_RTF_REJECT = 0x200
_CPUFREQ = Path("/sys/devices/system/cpu")
#: What is left of a processor's speed while it is slowed down for heat, where nobody tells how much: phones
#: settle between a half and three quarters.
ASSUMED_THROTTLED_SHARE = 0.6
#: A sensor this close to its own passive trip point means the processor is being slowed.
_TRIP_MARGIN_MILLIDEGREES = 1000


def read_device_state() -> DeviceState:
    """The device as it is now. Takes well under a millisecond on Linux; never raises."""
    battery, charging = _battery()
    throttled = _throttled()
    return DeviceState(
        hardware=hardware_class(),
        memory_available_bytes=available_memory_bytes(),
        battery=battery,
        charging=charging,
        throttled=throttled,
        speed_share=_speed_share() if throttled else 1.0,
        bandwidth_bytes_per_s=remembered_bandwidth(),
    )


def read_network_state() -> NetworkState:
    """Whether this host has a default route; where that cannot be read it is taken to have one."""
    if not _ROUTES.exists():
        return NetworkState(offline=False)
    return NetworkState(offline=not (_default_route_v4() or _default_route_v6()))


def available_memory_bytes() -> int | None:
    """Memory that a process may still take without swapping, in bytes; None where unknown."""
    if sys.platform == "linux":
        free = _meminfo_available()
        return _within_cgroup(free)
    try:
        psutil = importlib.import_module("psutil")
    except ImportError:
        return None
    return int(psutil.virtual_memory().available)


def _meminfo_available() -> int | None:
    for line in _read(Path("/proc/meminfo")).splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return None


def _within_cgroup(free: int | None) -> int | None:
    """A container's own limit, where it is tighter than what the machine has free (cgroup v2)."""
    limit, used = _read(Path("/sys/fs/cgroup/memory.max")), _read(Path("/sys/fs/cgroup/memory.current"))
    if not limit.strip().isdigit() or not used.strip().isdigit():
        return free
    left = max(0, int(limit) - int(used))
    return left if free is None else min(free, left)


def _battery() -> tuple[float | None, bool]:
    if not _POWER.is_dir():
        return _battery_elsewhere()
    for supply in sorted(_POWER.iterdir()):
        if _read(supply / "type").strip() != "Battery" or _read(supply / "scope").strip() == "Device":
            continue  # scope Device: the battery of a mouse or a keyboard
        capacity = _read(supply / "capacity").strip()
        if capacity.isdigit():
            return min(1.0, int(capacity) / 100), _read(supply / "status").strip() != "Discharging"
    return None, True


def _battery_elsewhere() -> tuple[float | None, bool]:
    """On macOS and Windows, where psutil is installed."""
    if sys.platform == "linux":
        return None, True
    try:
        psutil = importlib.import_module("psutil")
    except ImportError:
        return None, True
    state = psutil.sensors_battery()
    if state is None:
        return None, True
    return min(1.0, max(0.0, state.percent / 100)), bool(state.power_plugged)


def _throttled() -> bool:
    if not _THERMAL.is_dir():
        return False
    for zone in _THERMAL.glob("thermal_zone*"):
        temperature = _read(zone / "temp").strip()
        if not temperature.lstrip("-").isdigit():
            continue
        for kind in zone.glob("trip_point_*_type"):
            if _read(kind).strip() != "passive":
                continue
            trip = _read(kind.with_name(kind.name.replace("_type", "_temp"))).strip()
            if trip.isdigit() and int(trip) > 0 and int(temperature) >= int(trip) - _TRIP_MARGIN_MILLIDEGREES:
                return True
    return False


def _speed_share() -> float:
    """What the kernel's limit leaves of the processors' full clock (on the slowest of them)."""
    shares = []
    for limit in _CPUFREQ.glob("cpu[0-9]*/cpufreq/scaling_max_freq"):
        now, full = _read(limit).strip(), _read(limit.with_name("cpuinfo_max_freq")).strip()
        if now.isdigit() and full.isdigit() and 0 < int(now) <= int(full):
            shares.append(int(now) / int(full))
    least = min(shares, default=1.0)
    return least if least < 1 else ASSUMED_THROTTLED_SHARE  # the limit is in the firmware, and not told


def _default_route_v4() -> bool:
    for line in _read(_ROUTES).splitlines()[1:]:
        fields = line.split()
        if len(fields) > 7 and fields[1] == "00000000" and fields[7] == "00000000":
            flags = int(fields[3], 16)
            if flags & _RTF_UP and not flags & _RTF_REJECT:
                return True
    return False


def _default_route_v6() -> bool:
    for line in _read(_ROUTES_V6).splitlines():
        fields = line.split()
        if len(fields) > 9 and fields[0] == "0" * 32 and fields[1] == "00" and fields[9] != "lo":
            return True
    return False


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""
