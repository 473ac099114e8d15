"""Links: round trip, jitter, loss and bandwidth as traffic shows them."""

from __future__ import annotations

import math
import random

import pytest

from mecroute.network.links import MIN_BODY_BYTES, Links, LinkState


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_nothing_is_known_before_anything_was_heard() -> None:
    assert Links().of("a") == LinkState()
    assert Links().overall() == LinkState()


def test_the_round_trip_settles_where_it_is_and_jitter_on_its_deviation() -> None:
    links, rng = Links(), random.Random(1)
    for _ in range(400):
        links.heard("a", rng.uniform(40, 60))
    state = links.of("a")
    assert state.rtt_ms == pytest.approx(50, abs=5)
    assert state.jitter_ms == pytest.approx(5, abs=3)
    assert state.loss == 0


def test_loss_follows_the_share_of_lost_exchanges() -> None:
    links, rng = Links(), random.Random(2)
    for _ in range(500):
        if rng.random() < 0.3:
            links.lost("a")
        else:
            links.heard("a")
    assert links.of("a").loss == pytest.approx(0.3, abs=0.2)
    for _ in range(60):
        links.heard("a")
    assert links.of("a").loss < 0.01


@pytest.mark.parametrize("absurd", [math.nan, math.inf, -1.0, 1e9])
def test_an_absurd_round_trip_is_left_out(absurd: float) -> None:
    links = Links()
    links.heard("a", 10)
    links.heard("a", absurd)
    assert links.of("a").rtt_ms == 10


def test_bandwidth_is_the_best_of_the_last_bodies_and_small_ones_tell_nothing() -> None:
    links = Links()
    links.received("a", MIN_BODY_BYTES - 1, 0.001)
    assert links.of("a").bandwidth_bytes_per_s is None
    for rate in (1e6, 5e6, 2e6):
        links.received("a", 1_000_000, 1_000_000 / rate)
    links.received("a", 1_000_000, 0.0)
    assert links.of("a").bandwidth_bytes_per_s == pytest.approx(5e6)
    for _ in range(10):
        links.received("a", 1_000_000, 1.0)
    assert links.of("a").bandwidth_bytes_per_s == pytest.approx(1e6)


def test_the_whole_network_is_what_was_heard_of_in_the_last_minute() -> None:
    clock = Clock()
    links = Links(clock=clock)
    links.heard("gone", 1000)
    clock.now += 120
    for remote, rtt in (("a", 10.0), ("b", 20.0), ("c", 90.0)):
        links.heard(remote, rtt)
    assert links.overall().rtt_ms == 20
    clock.now -= 3600  # the clock jumped back: nothing recent, and no exception
    assert links.overall() == LinkState()
