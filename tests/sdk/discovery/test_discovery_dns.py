"""Nodes by DNS-SRV, against a real DNS server on loopback."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from mecroute.config import DnsSrvSource
from mecroute.config.schema import StoreConfig
from mecroute.errors import ConfigError, TierUnreachableError
from mecroute.nodes.discovery import Found, open_discovery
from mecroute.nodes.discovery import dns_srv as module
from support.dns_server import DnsServer, dns_server

NAME = "_mecroute._tcp.edge.example."


@pytest.fixture
def dns() -> Iterator[DnsServer]:
    with dns_server() as server:
        yield server


def find(server: str, domain: str = "edge.example") -> Found:
    source = DnsSrvSource(kind="dns-srv", name="dns", domain=domain, server=server)

    async def run() -> Found:
        return await open_discovery(source, StoreConfig()).find()

    return asyncio.run(run())


def test_the_records_of_a_domain_become_nodes(dns: DnsServer) -> None:
    dns.records[NAME, "SRV"] = (
        60,
        ["20 5 8100 far.edge.example.", "10 1 8100 light.edge.example.", "10 9 8443 heavy.edge.example."],
    )
    dns.records[NAME, "TXT"] = (60, ['"zone=hall" "region=eu-1"'])
    found = find(dns.address)
    assert found.ttl_s == 60
    by_rank = sorted(found.nodes, key=lambda n: n.rank)
    assert [n.url for n in by_rank] == [
        "https://heavy.edge.example:8443", "https://light.edge.example:8100", "https://far.edge.example:8100",
    ]  # fmt: skip
    assert {(n.zone, n.region) for n in found.nodes} == {("hall", "eu-1")}


def test_plain_http_must_be_said(dns: DnsServer) -> None:
    dns.records[NAME, "SRV"] = (60, ["10 1 8100 mec-1.edge.example."])
    assert find(dns.address).nodes[0].url.startswith("https://")
    dns.records[NAME, "TXT"] = (60, ['"tls=0"'])
    assert find(dns.address).nodes[0].url == "http://mec-1.edge.example:8100"


@pytest.mark.parametrize(("told", "kept"), [(0, 5), (1_000_000, 3600), (300, 300)])
def test_the_time_to_live_is_kept_within_reason(dns: DnsServer, told: int, kept: float) -> None:
    dns.records[NAME, "SRV"] = (told, ["10 1 8100 mec-1.edge.example."])
    assert find(dns.address).ttl_s == kept


def test_a_domain_without_nodes_is_no_failure(dns: DnsServer) -> None:
    found = find(dns.address)
    assert not found.nodes
    assert NAME in found.notes[0]
    dns.records[NAME, "TXT"] = (60, ['"tls=0"'])
    assert "no SRV record" in find(dns.address).notes[0]
    dns.records[NAME, "SRV"] = (60, ["0 0 0 ."])
    assert not find(dns.address).nodes


def test_a_server_that_is_silent_is_named(dns: DnsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_LIFETIME_S", 0.3)
    dns.silent = True
    with pytest.raises(TierUnreachableError, match=r"_mecroute\._tcp\.edge\.example"):
        find(dns.address)


def test_a_server_that_is_no_address_is_a_mistake_of_the_configuration() -> None:
    with pytest.raises(ConfigError, match="nameserver"):
        find("not_an_address")
