"""The context agent: what is known of the request, the user, the device and the network."""

from __future__ import annotations

import time
from collections.abc import Callable

from mecroute.context import Context, DeviceState, NetworkState
from mecroute.device.state import read_device_state, read_network_state
from mecroute.predict.complexity import request_features
from mecroute.request import Request

#: Battery, memory and routes change slowly; reading them costs more than a whole decision.
_REFRESH_S = 1.0


class ContextAgent:
    """Assesses each request. Safe to use from one event loop; reads of the machine are shared.

    Args:
        usual_output_tokens: looks up a user's mean answer length; None where unknown.
        read_device, read_network: where the state of the machine comes from; a host that knows better
            (a phone's own battery API, say) passes its own.
        clock: monotonic seconds.
        difficulty: a learned difficulty (0..1) of a text; see `predict/difficulty.py`.
    """

    def __init__(
        self,
        *,
        usual_output_tokens: Callable[[str | None], float | None],
        read_device: Callable[[], DeviceState] = read_device_state,
        read_network: Callable[[], NetworkState] = read_network_state,
        clock: Callable[[], float] = time.monotonic,
        difficulty: Callable[[str], float] | None = None,
    ) -> None:
        self._difficulty = difficulty
        self._usual_output_tokens = usual_output_tokens
        self._read_device = read_device
        self._read_network = read_network
        self._clock = clock
        self._read_at = float("-inf")
        self._device: DeviceState | None = None
        self._network = NetworkState()

    def assess(self, request: Request) -> Context:
        """Everything the router is told about this request besides the targets."""
        device, network = self._machine()
        features = request_features(
            request,
            usual_output_tokens=self._usual_output_tokens(request.user),
            difficulty=self._difficulty,
        )
        return Context(features=features, device=device, network=network)

    def _machine(self) -> tuple[DeviceState, NetworkState]:
        now = self._clock()
        if self._device is None or not 0 <= now - self._read_at < _REFRESH_S:
            self._device, self._network = self._read_device(), self._read_network()
            self._read_at = now
        return self._device, self._network
