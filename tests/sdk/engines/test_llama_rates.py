from __future__ import annotations

import pytest

from mecroute.engines.llama.rates import Rate


def test_nothing_measured_is_none() -> None:
    rate = Rate()
    assert rate.per_s is None
    rate.add(0, 1.0)
    assert rate.per_s is None


def test_steps_weigh_by_their_time() -> None:
    rate = Rate(memory_s=1e9)
    rate.add(100, 1.0)
    for _ in range(10):
        rate.add(1, 0.1)
    assert rate.per_s == pytest.approx(110 / 2)


def test_the_rate_follows_a_change() -> None:
    rate = Rate(memory_s=1.0)
    for speed in (100, 10):
        for _ in range(100):
            rate.add(speed * 0.1, 0.1)
        assert rate.per_s == pytest.approx(speed, rel=0.01)
