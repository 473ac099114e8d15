"""Nodes that come and go while a client runs: time to live, bounds, names, and who may be used."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from mecroute import AsyncClient, Client, Config
from mecroute.config import DeviceConfig, DnsSrvSource, MdnsSource, NodeConfig, RegistryConfig, StateConfig
from mecroute.errors import NoEligibleTargetError, TierUnreachableError
from mecroute.network.links import Links
from mecroute.nodes.discovery import Found, FoundNode
from mecroute.nodes.discovery.follow import SourceWatch
from mecroute.nodes.fleet import Fleet
from support.dns_server import DnsServer, dns_server
from support.upstream import Upstream, upstream

HELLO = [{"role": "user", "content": "Tell me about the fox."}]
NAME = "_mecroute._tcp.edge.example."
REPORT = {
    "node": "n", "hardware": "test", "region": "eu-1",
    "models": [{"ref": "fox:1", "state": "ready", "context_length": 4096, "parallel": 4, "accuracy": 0.8,
                "prefill_tokens_per_s": 5000, "decode_tokens_per_s": 500}],
}  # fmt: skip


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


class Fake:
    """A source of nodes whose findings a test sets."""

    def __init__(self) -> None:
        self.found = Found((), 10.0)
        self.error: Exception | None = None
        self.asked = 0
        self.closed = False

    async def find(self) -> Found:
        self.asked += 1
        if self.error is not None:
            raise self.error
        return self.found

    async def aclose(self) -> None:
        self.closed = True


def nodes(*names: str) -> tuple[FoundNode, ...]:
    return tuple(FoundNode(name, f"https://{name}.example") for name in names)


def watch_of(fake: Fake, clock: Clock, **facts: Any) -> SourceWatch:
    source = MdnsSource.model_validate({"kind": "mdns", "name": "lan", **facts})
    return SourceWatch(source, lambda: fake, clock=clock)


def test_a_finding_holds_for_its_time_to_live_and_is_renewed_before() -> None:
    async def run() -> None:
        fake, clock = Fake(), Clock()
        fake.found = Found(nodes("a"), 10.0)
        watch = watch_of(fake, clock)
        assert watch.touch()
        await watch.wait()
        assert [n.name for n in watch.nodes] == ["lan.a"]
        clock.now += 7.9
        assert not watch.touch()
        assert fake.asked == 1, "it holds"
        clock.now += 0.2
        fake.error = TierUnreachableError("gone")
        assert not watch.touch(), "renewed behind the scenes"
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert fake.asked == 2
        assert watch.problem == "gone"
        assert [n.name for n in watch.nodes] == ["lan.a"], "a failed look does not forget what still holds"
        clock.now += 2
        assert watch.nodes == ()
        await watch.aclose()
        assert fake.closed

    asyncio.run(run())


def test_no_more_nodes_than_allowed_and_no_two_of_a_name() -> None:
    async def run() -> None:
        fake = Fake()
        fake.found = Found((*nodes("c", "a", "b"), FoundNode("A", "https://other.example")), 10.0)
        watch = watch_of(fake, Clock(), max_nodes=2)
        await watch.look()
        assert [n.name for n in watch.nodes] == ["lan.a", "lan.b"]
        assert any("max_nodes" in note for note in watch.notes)
        assert any("call themselves 'lan.a'" in note for note in watch.notes)

    asyncio.run(run())


def test_nodes_join_and_leave_and_the_configuration_s_word_comes_first() -> None:
    async def run() -> None:
        joined: list[str] = []
        left: list[str] = []
        fake, clock = Fake(), Clock()
        fake.found = Found((*nodes("a", "b"), FoundNode("copy", "https://static.example")), 10.0)
        config = Config(nodes=(NodeConfig(name="static", url="https://static.example"),))
        async with httpx.AsyncClient(transport=httpx.MockTransport(lambda _: httpx.Response(503))) as http:
            fleet = Fleet(
                config, lambda _: http, Links(), on_join=lambda n: joined.append(n.name), on_leave=left.append
            )
            fleet.sources = (watch_of(fake, clock),)
            await fleet.refresh()
            assert joined == ["static", "lan.a", "lan.b"], "one URL is one node"
            fake.found = Found(nodes("b"), 10.0)
            clock.now += 11
            await fleet.refresh()
            assert (left, [w.node.name for w in fleet.watches]) == (["lan.a"], ["static", "lan.b"])
            assert [w.source for w in fleet.watches] == ["config", "lan"]
            assert fleet.watch_of("lan.a") is None
            await fleet.aclose()

    asyncio.run(run())


@pytest.fixture
def dns() -> Iterator[DnsServer]:
    with dns_server() as server:
        yield server


@pytest.fixture
def mec() -> Iterator[Upstream]:
    with upstream(report=REPORT) as up:
        yield up


def config(tmp_path: Path, dns: DnsServer, **facts: Any) -> Config:
    source = {"kind": "dns-srv", "name": "dns", "domain": "edge.example", "server": dns.address, **facts}
    return Config(
        registry=RegistryConfig(path=tmp_path / "registry"),
        device=DeviceConfig(enabled=False),
        state=StateConfig(enabled=False),
        discovery=(DnsSrvSource.model_validate(source),),
    )


def tell(dns: DnsServer, mec: Upstream) -> None:
    port = mec.url.rpartition(":")[2]
    dns.records[NAME, "SRV"] = (5, [f"1 1 {port} localhost."])
    dns.records[NAME, "TXT"] = (5, ['"tls=0" "region=eu-1"'])


def test_a_client_answers_from_a_node_that_it_found(tmp_path: Path, dns: DnsServer, mec: Upstream) -> None:
    tell(dns, mec)
    with Client(config(tmp_path, dns, output_usd_per_mtok=1000)) as client:
        reply = client.chat.completions.create(messages=HELLO)
        assert reply.mecroute.tier == "mec"
        assert (reply.mecroute.node or "").startswith("dns.localhost")
        assert reply.mecroute.outcome.cost_usd == pytest.approx(9 * 1000 / 1e6)
        assert "authorization" not in mec.headers[0]


def test_a_found_node_s_claimed_region_satisfies_no_residency(
    tmp_path: Path, dns: DnsServer, mec: Upstream
) -> None:
    tell(dns, mec)
    asked = {"residency": "eu"}
    with Client(config(tmp_path, dns)) as client, pytest.raises(NoEligibleTargetError, match="residency"):
        client.chat.completions.create(messages=HELLO, requirements=asked)
    assert not mec.requests
    with Client(config(tmp_path, dns, region="eu-1", api_key="k")) as client:
        assert client.chat.completions.create(messages=HELLO, requirements=asked).mecroute.tier == "mec"
    assert mec.headers[0]["authorization"] == "Bearer k"


def test_a_privacy_floor_holds_for_found_nodes(tmp_path: Path, dns: DnsServer, mec: Upstream) -> None:
    tell(dns, mec)
    with Client(config(tmp_path, dns)) as client, pytest.raises(NoEligibleTargetError, match="privacy"):
        client.chat.completions.create(messages=HELLO, requirements={"privacy": "device"})
    assert not mec.requests


def test_a_node_that_left_meanwhile_fails_over_with_a_reason(
    tmp_path: Path, dns: DnsServer, mec: Upstream
) -> None:
    tell(dns, mec)

    async def run() -> None:
        async with AsyncClient(config(tmp_path, dns)) as client:
            pipeline = (await client._runtime()).pipeline
            decision = await client.route(messages=HELLO)
            assert decision.primary is not None
            fleet = (await client._runtime()).fleet
            assert fleet is not None
            fleet._leave(fleet.watches[0])
            from mecroute.errors import AllTargetsFailedError
            from mecroute.execution import Execution
            from mecroute.request import ingest
            from mecroute.routing.dispatch import Dispatch

            request = ingest("chat", model="auto", body={"messages": HELLO})
            with pytest.raises(AllTargetsFailedError, match="not there any more"):
                await Execution(request, decision, pipeline._tiers, pipeline.monitor, Dispatch()).complete()

    asyncio.run(run())


def test_without_any_node_the_refusal_says_so(tmp_path: Path, dns: DnsServer) -> None:
    with Client(config(tmp_path, dns)) as client, pytest.raises(NoEligibleTargetError, match="no target"):
        client.chat.completions.create(messages=HELLO)
