"""Sending a request and taking its answer: measured for what they are, predicted, varying as the way does."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from mecroute import AsyncClient, Client, Config, DeviceReading
from mecroute.config import DeviceConfig, NodeConfig, RegistryConfig, StateConfig
from mecroute.context import NetworkState, RequestFeatures
from mecroute.device import state as device_state
from mecroute.device.hardware import default_threads, hardware_class
from mecroute.network.links import BURST_BYTES, Links
from mecroute.predict.latency import Workload, predict_latency
from mecroute.predict.residuals import NO_CORRECTION, Correction
from mecroute.predict.transfer import (
    ASSUMED_UPLOAD_BYTES_PER_S,
    NOTHING_SENT,
    Transfer,
    transfer_notes,
    transfer_of,
)
from mecroute.request import ingest
from mecroute.target import Target, TargetState
from mecroute_registry.facts import ModelFacts, Profile
from mecroute_registry.store import Registry
from mecroute_server.run import NodeServer
from mecroute_server.settings import ServerSettings
from support.server import SAYS, running_node
from support.tcp_proxy import faulty_proxy
from support.tiny_gguf import write_tiny_gguf

HELLO = [{"role": "user", "content": "Tell me about the fox."}]
NODE = TargetState(
    Target("mec", "m:1", node="n1"), frozenset({"chat"}), frozenset(), 4096, prefill_tokens_per_s=1000,
    decode_tokens_per_s=50, round_trip_ms=20, reached_over_network=True,
)  # fmt: skip
MEGABYTE = Transfer(upload_bytes=1_000_000 + BURST_BYTES)


def p50(state: TargetState, transfer: Transfer) -> float:
    return predict_latency(state, Workload(100, 50, transfer=transfer), NO_CORRECTION).p50_ms


def test_sending_takes_the_bytes_over_the_rate_of_that_way_else_of_the_network_else_assumed() -> None:
    alone = p50(NODE, NOTHING_SENT)
    assert p50(NODE, Transfer(upload_bytes=BURST_BYTES)) == alone
    measured = replace(NODE, upload_bytes_per_s=2e6)
    elsewhere = MEGABYTE._replace(upload_bytes_per_s=0.5e6)
    assert p50(measured, elsewhere) == pytest.approx(alone + 500)
    assert p50(NODE, elsewhere) == pytest.approx(alone + 2000)
    assert p50(NODE, MEGABYTE) == pytest.approx(alone + 1e9 / ASSUMED_UPLOAD_BYTES_PER_S)
    told = [
        " ".join(transfer_notes(*pair))
        for pair in ((measured, elsewhere), (NODE, elsewhere), (NODE, MEGABYTE))
    ]
    assert "2.00 MB/s (measured there)" in told[0]
    assert "0.50 MB/s (measured elsewhere)" in told[1]
    assert "assumed" in told[2]


def test_within_this_machine_nothing_is_sent_anywhere() -> None:
    here = replace(NODE, reached_over_network=False)
    assert p50(here, MEGABYTE) == p50(here, NOTHING_SENT)


@pytest.mark.parametrize("nonsense", [math.nan, math.inf, -1.0, 0.0])
def test_nonsense_about_the_way_counts_as_unknown(nonsense: float) -> None:
    state = replace(
        NODE, jitter_ms=nonsense, loss=nonsense, upload_bytes_per_s=nonsense, download_bytes_per_s=nonsense
    )
    work = Workload(100, 50, transfer=MEGABYTE._replace(answer_bytes=10**6, upload_bytes_per_s=nonsense))
    plain = Workload(100, 50, transfer=MEGABYTE._replace(answer_bytes=10**6))
    assert predict_latency(state, work, NO_CORRECTION) == predict_latency(NODE, plain, NO_CORRECTION)


def test_many_vectors_take_their_time_to_come_and_a_short_answer_takes_none() -> None:
    def taking(request: Any, output_tokens: int) -> Transfer:
        features = RequestFeatures(0, (), 10, output_tokens)
        return transfer_of(request, features, 100, NetworkState(bandwidth_bytes_per_s=1e6))

    vectors = taking(ingest("embed", model="auto", body={"input": ["a text"] * 500}), 0)
    assert p50(NODE, vectors) - p50(NODE, NOTHING_SENT) == pytest.approx(4000, rel=0.05)
    chat = ingest("chat", model="auto", body={"messages": HELLO})
    assert p50(NODE, taking(chat, 50)) == p50(NODE, NOTHING_SENT)


def test_a_stream_comes_no_faster_than_its_way() -> None:
    chat = ingest("chat", model="auto", body={"messages": HELLO}, stream=True)
    features = RequestFeatures(0, (), 10, 50)
    fast, slow = (
        transfer_of(chat, features, 100, NetworkState(bandwidth_bytes_per_s=rate)) for rate in (1e6, 1e3)
    )
    assert p50(NODE, fast) == p50(NODE, NOTHING_SENT)  # 50 tokens/s take 11.5 kB/s
    assert p50(NODE, slow) == pytest.approx(20 + 100 + 50 * 230)  # round trip, prefill, events


def test_jitter_and_loss_widen_the_tail_and_leave_the_median() -> None:
    work = Workload(100, 50)
    plain = predict_latency(NODE, work, NO_CORRECTION)
    shaky = predict_latency(replace(NODE, jitter_ms=200), work, NO_CORRECTION)
    lossy = predict_latency(replace(NODE, loss=0.3), work, NO_CORRECTION)
    for wider in (shaky, lossy):
        assert wider.ttft_ms == plain.ttft_ms
        assert wider.p50_ms == plain.p50_ms
        assert wider.ttft_p95_ms > plain.ttft_p95_ms + 200
        assert wider.p95_ms > plain.p95_ms
    assert predict_latency(replace(NODE, loss=0.04), work, NO_CORRECTION) == plain  # below one in twenty
    # What was observed of the target holds what the way did; it is not counted twice.
    learned = Correction(ttft_spread=1.5)
    assert predict_latency(replace(NODE, jitter_ms=30), work, learned) == predict_latency(NODE, work, learned)
    assert "jitter 200 ms" in " ".join(transfer_notes(replace(NODE, jitter_ms=200), NOTHING_SENT))


def test_a_large_request_tells_the_rate_and_nothing_of_the_round_trip() -> None:
    links = Links()
    for _ in range(5):
        links.heard("n", 30.0, sent_bytes=500)
    for _ in range(5):
        links.heard("n", 30.0 + 1000.0, sent_bytes=1_000_000 + BURST_BYTES)
    state = links.of("n")
    assert state.rtt_ms == 30
    assert state.upload_bytes_per_s == pytest.approx(1e6)
    assert links.overall().upload_bytes_per_s == pytest.approx(1e6)
    links.heard("n", 40.0, sent_bytes=30_000)  # neither the one nor the other can be told from it
    assert (links.of("n").rtt_ms, links.of("n").upload_bytes_per_s) == (30, pytest.approx(1e6))


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NodeServer]:
    folder = tmp_path_factory.mktemp("node")
    model = write_tiny_gguf(folder / "tiny.gguf", says=SAYS)
    settings = ServerSettings(
        port=0, node="edge-1", registry_root=folder / "registry", model_files=(model,), threads=1, parallel=2
    )
    with running_node(settings) as server:
        yield server


def test_a_slow_way_up_is_measured_by_the_calls_that_go_over_it(node: NodeServer, tmp_path: Path) -> None:
    async def run(url: str, slow: Any) -> tuple[float, float]:
        config = Config(
            registry=RegistryConfig(path=tmp_path / "registry"),
            state=StateConfig(path=tmp_path / "s.sqlite3"),
            device=DeviceConfig(enabled=False), nodes=(NodeConfig(name="edge-1", url=url),),
        )  # fmt: skip
        async with AsyncClient(config) as client:
            for _ in range(3):
                await client.chat.completions.create(messages=HELLO, max_tokens=2)
            slow()
            for _ in range(2):
                await client.chat.completions.create(
                    messages=HELLO, max_tokens=2, metadata={"image": "A" * 400_000}
                )
            link = (await client._runtime()).links.of("edge-1")
            assert link.rtt_ms is not None
            assert link.upload_bytes_per_s is not None
            return link.rtt_ms, link.upload_bytes_per_s

    with faulty_proxy(node.url) as proxy:
        rtt_ms, rate = asyncio.run(run(proxy.url, lambda: proxy.slow_down(None, sent_bytes_per_s=2e5)))
    # Twice 2 s on the way up: taken for round trips, each would have moved the mean by an eighth of it.
    assert rtt_ms < 300
    assert 0.5e5 < rate < 4e5


class Host:
    def __init__(self, **facts: Any) -> None:
        self.reading = DeviceReading(**facts)

    def read(self) -> DeviceReading:
        return self.reading


def test_a_device_that_is_slowed_down_for_heat_is_predicted_to_be_slower(tmp_path: Path) -> None:
    registry = Registry(tmp_path / "registry")
    facts = ModelFacts(name="tiny", version="1", deployment_tiers=("device",))
    model = registry.register(write_tiny_gguf(tmp_path / "tiny.gguf", says=SAYS), facts)
    profile = Profile(
        hardware=hardware_class(), tier="device", measured_at=datetime.now(UTC), threads=default_threads(),
        prompt_tokens=100, output_tokens=50, runs=5, prefill_tokens_per_s=1000, decode_tokens_per_s=100,
        ttft_ms_p50=100, ttft_ms_p95=120, latency_ms_p50=600, latency_ms_p95=700,
    )  # fmt: skip
    registry.add_profile(model, profile)
    config = Config(
        registry=RegistryConfig(path=tmp_path / "registry"), state=StateConfig(path=tmp_path / "s.sqlite3")
    )

    def predicted(**facts: Any) -> tuple[float, str]:
        with Client(config, device_probe=Host(**facts)) as client:
            primary = client.route(messages=HELLO, max_tokens=20).primary
            assert primary is not None
            assert primary.parts is not None
            return primary.parts.decode_ms, " ".join(primary.notes)

    cool, _ = predicted(throttled=False)
    assert predicted(throttled=True, speed_share=0.5)[0] == pytest.approx(2 * cool)
    assumed, notes = predicted(throttled=True)
    assert assumed == pytest.approx(cool / device_state.ASSUMED_THROTTLED_SHARE)
    assert "times 0.60 while the processor is slowed down for heat" in notes


@pytest.mark.parametrize(
    ("limit", "share"), [("1500000", 0.5), ("3000000", 0.6), ("", 0.6), ("nonsense", 0.6)]
)
def test_how_far_a_processor_is_slowed_down_is_read_from_the_kernel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str, share: float
) -> None:
    zone, cpu = tmp_path / "thermal_zone0", tmp_path / "cpu0" / "cpufreq"
    zone.mkdir()
    cpu.mkdir(parents=True)
    (zone / "temp").write_text("95000\n")
    (zone / "trip_point_0_type").write_text("passive\n")
    (zone / "trip_point_0_temp").write_text("95000\n")
    (cpu / "scaling_max_freq").write_text(limit)
    (cpu / "cpuinfo_max_freq").write_text("3000000\n")
    monkeypatch.setattr(device_state, "_THERMAL", tmp_path)
    monkeypatch.setattr(device_state, "_CPUFREQ", tmp_path)
    state = device_state.read_device_state()
    assert (state.throttled, state.speed_share) == (True, share)
    (zone / "temp").write_text("60000\n")
    state = device_state.read_device_state()
    assert (state.throttled, state.speed_share) == (False, 1.0)
