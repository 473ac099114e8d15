"""What a host knows of its machine better than this process can: a phone's battery, heat and network."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, fields
from importlib.metadata import entry_points
from typing import Any, Protocol, runtime_checkable

from mecroute.numbers import finite

_LOG = logging.getLogger("mecroute.device")
ENTRY_POINT_GROUP = "mecroute.device_probes"


@dataclass(frozen=True, slots=True)
class DeviceReading:
    """What a probe tells; None is what it does not know, and is then read from the system.

    Args:
        memory_available_bytes: >= 0; memory that a model may still take.
        battery: charge, 0..1.
        charging: whether it is on mains power.
        throttled: whether the processor is being slowed down for heat.
        speed_share: above 0, at most 1; what is left of its usual speed.
        bandwidth_bytes_per_s: > 0; memory bandwidth of one thread, which bounds how fast a model decodes.
        offline: whether there is no network.
        metered: whether bytes on the network cost.
    """

    memory_available_bytes: int | None = None
    battery: float | None = None
    charging: bool | None = None
    throttled: bool | None = None
    bandwidth_bytes_per_s: float | None = None
    offline: bool | None = None
    metered: bool | None = None
    speed_share: float | None = None


@runtime_checkable
class DeviceProbe(Protocol):
    """Implemented by a host; passed to `Client`, or named by an entry point of `mecroute.device_probes`.

    `read` is called at most once a second, on the client's event loop: it must return at once, from what the
    host was told before. What it raises, and values out of range, are reported once and otherwise ignored.
    """

    def read(self) -> DeviceReading:
        """The state now."""
        ...


class Probes:
    """Reads several probes and puts together what they tell; the first that knows something counts.

    Args:
        given: those of the host; those of entry points come after them.
    """

    def __init__(self, given: Sequence[DeviceProbe] = ()) -> None:
        self._given = tuple(given)
        self._all: tuple[tuple[str, DeviceProbe], ...] | None = None
        self._told: set[str] = set()

    def read(self) -> DeviceReading:
        """What is known now; never raises."""
        if self._all is None:
            named = tuple((type(probe).__qualname__, probe) for probe in self._given)
            self._all = (*named, *self._installed())
        known: dict[str, Any] = {}
        for name, probe in self._all:
            try:
                reading = probe.read()
            except Exception as error:  # noqa: BLE001 - foreign code: routing goes on without it
                self._report(name, "it", f"raised {type(error).__name__}: {error}")
                continue
            if not isinstance(reading, DeviceReading):
                self._report(name, "it", f"returned {type(reading).__name__}, not DeviceReading")
                continue
            for field in fields(DeviceReading):
                value = getattr(reading, field.name)
                if value is None or field.name in known:
                    continue
                if _is_sound(field.name, value):
                    known[field.name] = value
                else:
                    self._report(name, field.name, f"is {value!r}")
        return DeviceReading(**known)

    def _installed(self) -> tuple[tuple[str, DeviceProbe], ...]:
        found = []
        for point in entry_points(group=ENTRY_POINT_GROUP):
            try:
                made = point.load()()
            except Exception as error:  # noqa: BLE001 - foreign code: routing goes on without it
                self._report(point.name, "it", f"cannot be made: {type(error).__name__}: {error}")
                continue
            found.append((point.name, made))
        return tuple(found)

    def _report(self, probe: str, what: str, problem: str) -> None:
        key = f"{probe}.{what}"
        if key not in self._told:
            self._told.add(key)
            _LOG.warning("the device probe '%s' is not believed: %s %s", probe, what, problem)


def _is_sound(name: str, value: object) -> bool:
    if name in ("charging", "throttled", "offline", "metered"):
        return isinstance(value, bool)
    number = finite(value)
    if number is None:
        return False
    if name == "battery":
        return 0 <= number <= 1
    if name == "speed_share":
        return 0 < number <= 1
    return number > 0 if name == "bandwidth_bytes_per_s" else number >= 0
