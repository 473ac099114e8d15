"""The context agent: what a host's probe may say, and what the network's state does to a decision."""

from __future__ import annotations

import importlib.metadata
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mecroute import Client, Config, DeviceReading
from mecroute.agents.context import ContextAgent, upload_bytes
from mecroute.config import DeviceConfig, NetworkConfig, NodeConfig, RegistryConfig, StateConfig
from mecroute.context import DeviceState, NetworkState
from mecroute.device.probe import DeviceProbe, Probes
from mecroute.errors import NoEligibleTargetError
from mecroute.network.links import Links
from mecroute.request import Request, ingest
from support.upstream import Upstream, upstream

HELLO = [{"role": "user", "content": "Tell me about the fox."}]
SYSTEM = DeviceState("test", memory_available_bytes=8_000_000_000, battery=0.9)


class Host:
    """A probe whose reading a test sets."""

    def __init__(self, **facts: Any) -> None:
        self.reading: Any = DeviceReading(**facts)
        self.error: Exception | None = None
        self.reads = 0

    def read(self) -> DeviceReading:
        self.reads += 1
        if self.error is not None:
            raise self.error
        return self.reading  # type: ignore[no-any-return]


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def request(**facts: Any) -> Request:
    return ingest("chat", model="auto", body={"messages": HELLO, **facts})


def agent(*hosts: Host, **facts: Any) -> ContextAgent:
    return ContextAgent(
        usual_output_tokens=lambda _: None,
        read_device=lambda: SYSTEM,
        read_network=NetworkState,
        probes=Probes(hosts),
        **facts,
    )


def test_what_a_host_knows_wins_and_what_it_does_not_is_read() -> None:
    host = Host(battery=0.1, charging=False, throttled=True, offline=True)
    context = agent(host).assess(request())
    assert (context.device.battery, context.device.charging, context.device.throttled) == (0.1, False, True)
    assert context.device.memory_available_bytes == SYSTEM.memory_available_bytes
    assert context.network.offline
    assert isinstance(host, DeviceProbe)


def test_a_host_is_asked_once_a_second_and_again_when_the_clock_jumps_back() -> None:
    host, clock = Host(), Clock()
    asking = agent(host, clock=clock)
    for _ in range(50):
        asking.assess(request())
    assert host.reads == 1
    clock.now += 1.1
    asking.assess(request())
    clock.now -= 500
    asking.assess(request())
    assert host.reads == 3


@pytest.mark.parametrize(
    "facts",
    [
        {"battery": math.nan}, {"battery": 1.5}, {"battery": "full"}, {"battery": True},
        {"memory_available_bytes": -1}, {"memory_available_bytes": math.inf}, {"charging": 1},
        {"throttled": "yes"}, {"bandwidth_bytes_per_s": 0.0}, {"offline": "no"},
    ],
)  # fmt: skip
def test_what_no_machine_has_is_reported_once_and_ignored(
    facts: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    clock = Clock()
    asking = agent(Host(**facts), clock=clock)
    for _ in range(5):
        clock.now += 2
        context = asking.assess(request())
    assert context.device == SYSTEM
    assert not context.network.offline
    assert caplog.text.count("is not believed") == 1
    assert next(iter(facts)) in caplog.text


@pytest.mark.parametrize("fault", ["raises", "returns"])
def test_a_probe_that_fails_is_reported_once_and_the_next_one_counts(
    fault: str, caplog: pytest.LogCaptureFixture
) -> None:
    broken, clock = Host(), Clock()
    if fault == "raises":
        broken.error = RuntimeError("no sensor")
    else:
        broken.reading = {"battery": 0.2}
    asking = agent(broken, Host(battery=0.4), clock=clock)
    for _ in range(3):
        clock.now += 2
        assert asking.assess(request()).device.battery == 0.4
    assert caplog.text.count("is not believed") == 1


def test_probes_are_found_by_their_entry_point(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Point:
        def __init__(self, name: str, made: Any) -> None:
            self.name = name
            self._made = made

        def load(self) -> Any:
            if isinstance(self._made, Exception):
                raise self._made
            return lambda: self._made

    points = [Point("missing", ImportError("no phone")), Point("phone", Host(battery=0.3))]

    def entry_points(*, group: str) -> list[Point]:
        assert group == "mecroute.device_probes"
        return points

    monkeypatch.setattr("mecroute.device.probe.entry_points", entry_points)
    assert Probes().read().battery == 0.3
    assert Probes([Host(battery=0.7)]).read().battery == 0.7, "what the host passed comes first"
    assert "no phone" in caplog.text
    assert importlib.metadata.entry_points is not entry_points


def test_the_network_is_what_traffic_showed() -> None:
    links = Links()
    links.heard("a", 30.0)
    network = agent(links=links).assess(request()).network
    assert (network.rtt_ms, network.loss, network.metered) == (30.0, 0.0, False)


@pytest.mark.parametrize(
    ("setting", "told", "expected"),
    [(None, None, False), (None, True, True), (False, True, False), (True, None, True), (True, False, True)],
)
def test_the_setting_on_a_metered_network_wins_over_the_host(
    setting: bool | None, told: bool | None, expected: bool
) -> None:
    network = NetworkConfig(metered=setting, metered_max_bytes=10)
    assert agent(Host(metered=told), network=network).assess(request()).network.metered is expected


def test_how_much_a_request_has_to_send() -> None:
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 50_000}}
    messages = [{"role": "user", "content": [{"type": "text", "text": "äöü"}, image]}]
    assert 50_000 < upload_bytes(ingest("chat", model="auto", body={"messages": messages})) < 50_500
    assert upload_bytes(request()) < 200


@pytest.fixture
def mec() -> Iterator[Upstream]:
    model = {"ref": "fox:1", "state": "ready", "context_length": 400_000, "parallel": 4,
             "prefill_tokens_per_s": 5000, "decode_tokens_per_s": 500}  # fmt: skip
    with upstream(report={"node": "n", "models": [model]}) as up:
        yield up


@pytest.mark.parametrize("metered", [True, False])
def test_a_large_request_stays_off_a_metered_network(tmp_path: Path, mec: Upstream, metered: bool) -> None:
    """The node of the test is on this machine; its address is written so that it does not look so."""
    port = mec.url.rpartition(":")[2]
    config = Config(
        registry=RegistryConfig(path=tmp_path / "registry"),
        device=DeviceConfig(enabled=False),
        state=StateConfig(enabled=False),
        nodes=(NodeConfig(name="n", url=f"http://0.0.0.0:{port}"),),
        network=NetworkConfig(metered_max_bytes=10_000),
    )
    large = [{"role": "user", "content": "fox " * 5000}]
    with Client(config, device_probe=Host(metered=metered, offline=False)) as client:
        assert client.chat.completions.create(messages=HELLO).mecroute.tier == "mec"
        if not metered:
            assert client.chat.completions.create(messages=large).mecroute.tier == "mec"
            return
        with pytest.raises(NoEligibleTargetError, match="metered.*at most 10000"):
            client.chat.completions.create(messages=large)
    assert len(mec.requests) == 1
