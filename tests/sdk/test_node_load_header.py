"""The load that answers carry: what is written is read back, and what is mangled is ignored."""

from __future__ import annotations

import pytest

from mecroute.network.traffic import network_ms
from mecroute.nodes.load_header import ModelLoad


@pytest.mark.parametrize(
    "load", [ModelLoad(3, 0, 8, 812.5, 41.2), ModelLoad(0, 0, 1), ModelLoad(8, 64, 8, None, 3.0)]
)
def test_a_load_survives_the_header(load: ModelLoad) -> None:
    assert ModelLoad.parse(load.encode()) == load


@pytest.mark.parametrize(
    "text",
    [
        None,
        "",
        "r=1",
        "r=1;q=0;p=0",
        "r=-1;q=0;p=1",
        "r=1e3;q=0;p=1",
        "r=9999999;q=0;p=1",
        "x" * 300,
        "r=²;q=0;p=1",
    ],
)
def test_what_is_no_load_is_none(text: str | None) -> None:
    assert ModelLoad.parse(text) is None


@pytest.mark.parametrize("rate", ["nan", "inf", "-5", "0", "fast"])
def test_a_rate_that_no_machine_has_is_left_out(rate: str) -> None:
    assert ModelLoad.parse(f"r=1;q=0;p=1;pf={rate};de=5") == ModelLoad(1, 0, 1, None, 5.0)


@pytest.mark.parametrize(
    ("headers", "waited_ms", "expected"),
    [
        ({"server-timing": "total;dur=80.5"}, 100, 19.5),
        ({"server-timing": "cache;dur=1, total;dur=90"}, 100, 10),
        ({"openai-processing-ms": "60"}, 100, 40),
        ({"server-timing": "total;dur=120"}, 100, None),
        ({"server-timing": "total;dur=nan"}, 100, None),
        ({}, 100, None),
    ],
)
def test_the_network_s_part_of_a_wait(
    headers: dict[str, str], waited_ms: float, expected: float | None
) -> None:
    assert network_ms(headers, waited_ms) == (pytest.approx(expected) if expected is not None else None)
