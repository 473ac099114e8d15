"""Cloud health by status codes: a pause that was asked for is kept, within reason."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from mecroute import Client, Config
from mecroute.config import CloudConfig, DeviceConfig, RegistryConfig, StateConfig
from mecroute.errors import AllTargetsFailedError, NoEligibleTargetError
from mecroute.network.health import CloudHealth
from support.upstream import Upstream, upstream

HELLO = [{"role": "user", "content": "Tell me about the fox."}]


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize(
    ("status", "headers", "pause_s", "said"),
    [
        (429, {"retry-after": "20"}, 20, "rate limit"),
        (429, {}, 1, "rate limit"),
        (429, {"retry-after": "Wed, 21 Oct 2026 07:28:00 GMT"}, 1, "rate limit"),
        (429, {"retry-after": "999999999"}, 300, "rate limit"),
        (429, {"retry-after": "-5"}, 1, "rate limit"),
        (401, {}, 60, "API key"),
        (403, {}, 60, "API key"),
    ],
)
def test_a_pause_is_kept_and_ends(status: int, headers: dict[str, str], pause_s: float, said: str) -> None:
    clock = Clock()
    health = CloudHealth(clock=clock)
    health.answered("c", status, headers)
    assert said in (health.problem("c") or "")
    clock.now += pause_s - 0.1
    assert health.problem("c")
    clock.now += 0.2
    assert health.problem("c") is None
    assert health.problem("other") is None


def test_a_success_ends_it_and_a_clock_that_jumps_back_does_too() -> None:
    clock = Clock()
    health = CloudHealth(clock=clock)
    health.answered("c", 401, {})
    health.answered("c", 200, {})
    assert health.problem("c") is None
    health.answered("c", 401, {})
    clock.now -= 10_000
    assert health.problem("c") is None


@pytest.mark.parametrize("status", [500, 503, 400, 404])
def test_other_errors_are_no_pause(status: int) -> None:
    health = CloudHealth()
    health.answered("c", status, {"retry-after": "60"})
    assert health.problem("c") is None


@pytest.fixture
def cloud() -> Iterator[Upstream]:
    with upstream() as up:
        yield up


def test_a_cloud_that_refuses_the_key_is_not_asked_again_at_once(tmp_path: Path, cloud: Upstream) -> None:
    config = Config(
        registry=RegistryConfig(path=tmp_path / "registry"),
        device=DeviceConfig(enabled=False),
        state=StateConfig(enabled=False),
        cloud=(CloudConfig(name="c", base_url=f"{cloud.url}/v1", model="big"),),
    )
    cloud.status = 401
    with Client(config) as client:
        with pytest.raises(AllTargetsFailedError, match="401"):
            client.chat.completions.create(messages=HELLO)
        with pytest.raises(NoEligibleTargetError, match="does not accept the API key"):
            client.chat.completions.create(messages=HELLO)
    assert len(cloud.requests) == 1
