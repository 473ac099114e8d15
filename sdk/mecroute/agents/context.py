"""The context agent: what is known of the request, the user, the device and the network."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

from mecroute.config.network import NetworkConfig
from mecroute.context import Context, DeviceState, NetworkState, RequestFeatures
from mecroute.device.probe import DeviceReading, Probes
from mecroute.device.state import ASSUMED_THROTTLED_SHARE, read_device_state, read_network_state
from mecroute.network.links import Links
from mecroute.predict.complexity import request_features
from mecroute.predict.topics import Topics
from mecroute.request import Request, message_text

#: Battery, memory and routes change slowly; reading them costs more than a whole decision.
_REFRESH_S = 1.0
_DEVICE_FIELDS = (
    *("memory_available_bytes", "battery", "charging", "throttled"),
    *("bandwidth_bytes_per_s", "speed_share"),
)
#: Values of a request that are looked through for how much has to be sent.
_MAX_VALUES = 10_000
_ANY_TEXT = "What is said here?"


class ContextAgent:
    """Assesses each request. Safe to use from one event loop; reads of the machine are shared.

    Args:
        usual_output_tokens: looks up a user's mean answer length; None where unknown.
        read_device, read_network: where the state of the machine comes from.
        probes: what the host knows better; it wins over what is read.
        links: the network as traffic shows it.
        network: `[network]`.
        clock: monotonic seconds.
        difficulty: a learned difficulty (0..1) of a text; see `predict/difficulty.py`.
        read_features: reads a request; a simulation, whose requests have no text, has its own.
        topics: names what a request is about; None: nothing does.
    """

    def __init__(
        self,
        *,
        usual_output_tokens: Callable[[str | None], float | None],
        read_device: Callable[[], DeviceState] = read_device_state,
        read_network: Callable[[], NetworkState] = read_network_state,
        probes: Probes | None = None,
        links: Links | None = None,
        network: NetworkConfig | None = None,
        clock: Callable[[], float] = time.monotonic,
        difficulty: Callable[[str], float] | None = None,
        read_features: Callable[[Request], RequestFeatures] | None = None,
        topics: Topics | None = None,
    ) -> None:
        self._read_features = read_features
        self._topics = topics
        self._difficulty = difficulty
        self._usual_output_tokens = usual_output_tokens
        self._read_device = read_device
        self._read_network = read_network
        self._probes = probes or Probes()
        self._links = links or Links()
        self._network_config = network or NetworkConfig()
        self._clock = clock
        self._read_at = float("-inf")
        self._device: DeviceState | None = None
        self._network = NetworkState()

    def prepare(self) -> None:
        """Read the files and the state of the machine that the first request needs."""
        self._machine()
        if self._difficulty is not None:
            self._difficulty(_ANY_TEXT)
        if self._topics is not None:
            self._topics.prepare()

    def assess(self, request: Request) -> Context:
        """Everything the router is told about this request besides the targets."""
        device, network = self._machine()
        if self._read_features is not None:
            features = self._read_features(request)
        else:
            features = request_features(
                request,
                usual_output_tokens=self._usual_output_tokens(request.user),
                difficulty=self._difficulty,
            )
        return Context(features=features, device=device, network=network, upload_bytes=upload_bytes(request))

    async def assess_fully(self, request: Request, *, may_encode: bool) -> Context:
        """As `assess`, with the topic as the kind of a request that names no other.

        Args:
            request: the request.
            may_encode: whether a model may read it.
        """
        context = self.assess(request)
        features = context.features
        if self._topics is None or features.kind is not None or request.task not in ("chat", "completion"):
            return context
        kind = await self._topics.kind(asked_text(request), may_encode=may_encode)
        return replace(context, features=replace(features, kind=kind))

    def device_state(self) -> DeviceState:
        """The device as it is now, or was within the last second."""
        return self._machine()[0]

    def _machine(self) -> tuple[DeviceState, NetworkState]:
        now = self._clock()
        if self._device is None or not 0 <= now - self._read_at < _REFRESH_S:
            reading = self._probes.read()
            self._device = _with_reading(self._read_device(), reading)
            self._network = self._network_now(reading)
            self._read_at = now
        return self._device, self._network

    def _network_now(self, reading: DeviceReading) -> NetworkState:
        base, link, config = self._read_network(), self._links.overall(), self._network_config
        metered = config.metered if config.metered is not None else bool(reading.metered)
        return replace(
            base,
            offline=base.offline if reading.offline is None else reading.offline,
            metered=metered,
            upload_limit_bytes=config.metered_max_bytes if metered else None,
            rtt_ms=link.rtt_ms,
            jitter_ms=link.jitter_ms,
            loss=link.loss,
            bandwidth_bytes_per_s=link.bandwidth_bytes_per_s,
            upload_bytes_per_s=link.upload_bytes_per_s,
        )


def _with_reading(device: DeviceState, reading: DeviceReading) -> DeviceState:
    told = {name: value for name in _DEVICE_FIELDS if (value := getattr(reading, name)) is not None}
    if "throttled" in told and "speed_share" not in told:
        told["speed_share"] = ASSUMED_THROTTLED_SHARE if told["throttled"] else 1.0
    return replace(device, **told) if told else device


def asked_text(request: Request) -> str:
    """What a chat's user said last, or what is to be completed."""
    if request.task != "chat":
        return request.text()
    said = (m for m in reversed(request.body["messages"]) if m.get("role") == "user")
    return message_text(next(said, {}))


def upload_bytes(request: Request) -> int:
    """About how many bytes a request has to send: its texts, images and other parts (UTF-8).

    Of ten thousand values in it the average stands for the rest.
    """
    total, left = 0, _MAX_VALUES
    waiting: list[object] = [request.body]
    while waiting and left:
        left -= 1
        value = waiting.pop()
        if isinstance(value, str):
            total += len(value) if value.isascii() else len(value.encode("utf-8", "replace"))
        elif isinstance(value, dict):
            waiting.extend(value.keys())
            waiting.extend(value.values())
        elif isinstance(value, list | tuple):
            if value and type(value[0]) in (int, float):
                total += 8 * len(value)  # a tensor: it is not looked through number by number
            else:
                waiting.extend(value)
        else:
            total += 8
    if waiting:
        total += total * len(waiting) // _MAX_VALUES
    return total
