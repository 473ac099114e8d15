"""Deadlines and Retry-After between the client and its targets, over real HTTP."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest

from mecroute import Client, Config
from mecroute.agents.monitor import MonitorAgent
from mecroute.config import CloudConfig, DeviceConfig, NodeConfig, RegistryConfig, StateConfig
from mecroute.device.probe import DeviceReading
from mecroute.errors import (
    AllTargetsFailedError,
    DeadlineExceededError,
    NodeNotReadyError,
    NoEligibleTargetError,
    OverloadedError,
    TargetTooSlowError,
)
from mecroute.nodes.headers import DEADLINE_HEADER, deadline_value
from mecroute.state.store import StateStore
from support.upstream import Upstream, upstream

HELLO = [{"role": "user", "content": "Tell me about the fox."}]
REPORT = {
    "node": "n",
    "models": [
        {
            "ref": "fox:1", "state": "ready", "context_length": 4096, "parallel": 4, "accuracy": 0.8,
            "prefill_tokens_per_s": 5000, "decode_tokens_per_s": 500,
        }
    ],
}  # fmt: skip


@pytest.fixture
def mec() -> Iterator[Upstream]:
    with upstream(report=REPORT) as up:
        yield up


@pytest.fixture
def cloud() -> Iterator[Upstream]:
    with upstream() as up:
        yield up


def client_of(tmp_path: Path, mec: Upstream, cloud: Upstream | None = None) -> Client:
    clouds = ()
    if cloud is not None:
        clouds = (CloudConfig(name="c1", base_url=f"{cloud.url}/v1", model="big", continues_prefix=True),)
    return Client(
        Config(
            registry=RegistryConfig(path=tmp_path / "registry"),
            device=DeviceConfig(enabled=False),
            state=StateConfig(enabled=False),
            nodes=(NodeConfig(name="n1", url=mec.url),),
            cloud=clouds,
        )
    )


def ask(client: Client, *, stream: bool = False, **fields: Any) -> Any:
    answer = client.chat.completions.create(messages=HELLO, stream=stream, **fields)
    if stream:
        list(answer)
        return answer
    return answer


@pytest.mark.parametrize("stream", [False, True])
def test_a_node_is_told_what_is_left_of_the_deadline(tmp_path: Path, mec: Upstream, stream: bool) -> None:
    with client_of(tmp_path, mec) as client:
        ask(client, stream=stream, requirements={"deadline_ms": 20_000})
        ask(client, stream=stream)
    assert 0 < float(mec.headers[0][DEADLINE_HEADER]) < 20_000
    assert DEADLINE_HEADER not in mec.headers[1]


def test_the_next_node_is_told_less_and_a_cloud_nothing(
    tmp_path: Path, mec: Upstream, cloud: Upstream
) -> None:
    mec.status, mec.delay_s = 500, 0.2
    with client_of(tmp_path, mec, cloud) as client:
        ask(client, requirements={"deadline_ms": 20_000})
    assert DEADLINE_HEADER in mec.headers[0]
    assert DEADLINE_HEADER not in cloud.headers[0]


def test_a_deadline_is_sent_as_a_node_reads_it() -> None:
    assert deadline_value(1500.25) == "1500.250"
    assert deadline_value(1e-9) == "0.001"
    assert deadline_value(1e15) == "86400000.000"


def test_a_node_that_is_too_slow_for_a_deadline_is_passed_over_and_does_not_rest(
    tmp_path: Path, mec: Upstream, cloud: Upstream
) -> None:
    mec.status, mec.error_code = 504, "deadline_exceeded"
    with client_of(tmp_path, mec, cloud) as client:
        reply = ask(client, requirements={"deadline_ms": 20_000})
        assert reply.mecroute.tier == "cloud"
        decision = client.route(messages=HELLO)
    assert "mec" in [candidate.target.tier for candidate in decision.candidates]


def test_nobody_who_can_make_the_deadline_is_an_error_that_says_so(tmp_path: Path, mec: Upstream) -> None:
    mec.status, mec.error_code = 504, "deadline_exceeded"
    with client_of(tmp_path, mec) as client, pytest.raises(AllTargetsFailedError) as caught:
        ask(client, requirements={"deadline_ms": 20_000})
    assert isinstance(caught.value.attempts[0][1], TargetTooSlowError)


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({"retry-after": "7"}, 7),
        ({"retry-after": "9", "retry-after-ms": "2500"}, 2.5),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "-3"}, 0),
        ({"retry-after": "soon"}, None),
    ],
)
@pytest.mark.parametrize(("status", "kind"), [(429, OverloadedError), (503, NodeNotReadyError)])
def test_retry_after_reaches_the_caller(
    tmp_path: Path,
    mec: Upstream,
    headers: dict[str, str],
    expected: float | None,
    status: int,
    kind: type[OverloadedError | NodeNotReadyError],
) -> None:
    mec.status, mec.error_headers = status, headers
    with client_of(tmp_path, mec) as client, pytest.raises(AllTargetsFailedError) as caught:
        ask(client)
    ((_, error),) = caught.value.attempts
    assert isinstance(error, kind)
    if expected is None and status == 429:
        expected = 1.0  # an overloaded error always says when
    assert error.retry_after_s == expected
    assert caught.value.retry_after_s == expected
    if expected is not None:
        assert f"retry after {expected:.1f} s" in str(caught.value)


def test_a_date_to_retry_after_is_understood(tmp_path: Path, mec: Upstream) -> None:
    mec.status, mec.error_headers = 503, {"retry-after": formatdate(time.time() + 100, usegmt=True)}
    with client_of(tmp_path, mec) as client, pytest.raises(AllTargetsFailedError) as caught:
        ask(client)
    assert caught.value.retry_after_s is not None
    assert 90 < caught.value.retry_after_s <= 100


def test_a_target_rests_for_as_long_as_it_asks(tmp_path: Path) -> None:
    now = 0.0
    monitor = MonitorAgent(StateStore(None, enabled=False), clock=lambda: now)
    monitor.failed("mec/n1/fox:1", "busy", retry_after_s=20)
    now = 19
    assert monitor.resting("mec/n1/fox:1")
    now = 20
    assert monitor.resting("mec/n1/fox:1") is None
    monitor.failed("mec/n1/fox:1", "busy", retry_after_s=1e9)
    now = 1000
    assert monitor.resting("mec/n1/fox:1") is None


def test_a_target_that_named_several_times_rests_until_the_first(tmp_path: Path) -> None:
    now = 0.0
    monitor = MonitorAgent(StateStore(None, enabled=False), clock=lambda: now)
    for told_s in (20.0, 40.0):  # to two requests, so that they do not come back together
        monitor.failed("mec/n1/fox:1", "busy", retry_after_s=told_s)
    now = 19
    assert monitor.resting("mec/n1/fox:1")
    now = 20
    assert monitor.resting("mec/n1/fox:1") is None
    monitor.failed("mec/n1/fox:1", "busy", retry_after_s=30)
    now = 49
    assert monitor.resting("mec/n1/fox:1")


@pytest.mark.parametrize("stream", [False, True])
def test_a_node_that_says_nothing_is_not_waited_for_past_a_deadline(
    tmp_path: Path, stream: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A clear refusal within the deadline; and where another target is there, its answer."""
    monkeypatch.setattr("mecroute.nodes.watch.FIRST_WAIT_S", 60.0)
    with socket.create_server(("127.0.0.1", 0)) as mute, upstream() as cloud:
        node = NodeConfig(name="mute", url=f"http://127.0.0.1:{mute.getsockname()[1]}")
        alone = Config(
            registry=RegistryConfig(path=tmp_path / "registry"),
            state=StateConfig(path=tmp_path / "s.sqlite3"),
            device=DeviceConfig(enabled=False), nodes=(node,),
        )  # fmt: skip
        both = alone.model_copy(
            update={"cloud": (CloudConfig(name="c", base_url=f"{cloud.url}/v1", model="m"),)}
        )
        told = {"messages": HELLO, "stream": stream, "requirements": {"deadline_ms": 3000}}
        with Client(alone) as client:
            begun = time.monotonic()
            with pytest.raises((NoEligibleTargetError, DeadlineExceededError)) as caught:
                client.chat.completions.create(**told)
            assert time.monotonic() - begun < 30, (
                "the usual wait for a node that was never heard of is 60 s here"
            )
            assert "mute" in str(caught.value)
        with Client(both) as client:
            reply = client.chat.completions.create(**told)
            if stream:
                assert [chunk for chunk in reply if chunk.choices]
            assert reply.mecroute.tier == "cloud"


def test_sources_that_found_no_node_are_named(tmp_path: Path) -> None:
    source = {
        "kind": "camara", "name": "operator", "root": "http://127.0.0.1:9", "token_env": "NO_TOKEN",
        "zones": {"z": "https://n.example"},
    }  # fmt: skip
    config = Config.model_validate(
        {
            "registry": {"path": tmp_path / "registry"},
            "state": {"path": tmp_path / "s.sqlite3"},
            "device": {"enabled": False},
            "discovery": [source],
        }
    )
    told = "discovery 'operator': .*NO_TOKEN"
    with Client(config) as client, pytest.raises(NoEligibleTargetError, match=told):
        client.chat.completions.create(messages=HELLO)


class SlowHost:
    """A host that takes its time to say how the device is when it is first asked."""

    seconds = 2.0

    def __init__(self) -> None:
        self._left_s = self.seconds

    def read(self) -> DeviceReading:
        time.sleep(self._left_s)
        self._left_s = 0.0
        return DeviceReading(battery=0.5)


def test_what_the_first_call_needs_once_is_done_on_entering(tmp_path: Path, mec: Upstream) -> None:
    config = Config(
        registry=RegistryConfig(path=tmp_path / "registry"),
        device=DeviceConfig(enabled=False),
        state=StateConfig(enabled=False),
        nodes=(NodeConfig(name="n", url=mec.url),),
    )
    soon = {"deadline_ms": SlowHost.seconds * 1000 * 0.9}
    client = Client(config, device_probe=SlowHost())
    with pytest.raises(DeadlineExceededError):
        client.route(messages=HELLO, requirements=soon)
    client.close()
    with Client(config, device_probe=SlowHost()) as client:
        assert client.route(messages=HELLO, requirements=soon).primary is not None
