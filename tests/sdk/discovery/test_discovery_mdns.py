"""Nodes on the local network, by real mDNS over the loopback interface."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import AsyncIterator, Callable, Sequence

import pytest
from zeroconf import ServiceInfo

from mecroute.config import MdnsSource
from mecroute.config.schema import StoreConfig
from mecroute.nodes.discovery import Discovery, FoundNode, open_discovery
from mecroute.nodes.discovery.mdns import SERVICE, read_service
from mecroute_server.announce import Announcement, Announcer

LOOPBACK = "127.0.0.1"


def can_multicast() -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(LOOPBACK))
            probe.sendto(b"", ("224.0.0.251", 5353))
        except OSError:
            return False
    return True


needs_multicast = pytest.mark.skipif(not can_multicast(), reason="no multicast on the loopback interface")


@contextlib.asynccontextmanager
async def announced(name: str, url: str) -> AsyncIterator[Callable[[], None]]:
    """A node that is announced; the function yielded makes it stop."""
    stopping = False

    def stop() -> None:
        nonlocal stopping
        stopping = True

    announcer = Announcer(
        Announcement(mdns=True), node=name, zone="hall", region=None, url=url, stopping=lambda: stopping
    )
    task = asyncio.create_task(announcer.run())
    try:
        yield stop
    finally:
        stop()
        await task


async def until(discovery: Discovery, wanted: Callable[[Sequence[FoundNode]], bool]) -> Sequence[FoundNode]:
    ends_at = time.monotonic() + 30
    while not wanted(nodes := (await discovery.find()).nodes):
        assert time.monotonic() < ends_at, f"still {nodes}"
        await asyncio.sleep(0.05)
    return nodes


@needs_multicast
def test_nodes_that_announce_themselves_appear_and_disappear() -> None:
    async def run() -> None:
        source = MdnsSource(kind="mdns", name="lan", interfaces=(LOOPBACK,))
        discovery = open_discovery(source, StoreConfig())
        try:
            async with announced("mec-a", f"http://{LOOPBACK}:8101") as stop_a:
                await until(discovery, lambda nodes: [n.name for n in nodes] == ["mec-a"])
                async with announced("mec-b", f"http://{LOOPBACK}:8102"):
                    nodes = await until(discovery, lambda nodes: len(nodes) == 2)
                    by_name = {n.name: n for n in nodes}
                    assert by_name["mec-a"] == FoundNode("mec-a", f"http://{LOOPBACK}:8101", zone="hall")
                    assert by_name["mec-b"].url == f"http://{LOOPBACK}:8102"
                    stop_a()
                    await until(discovery, lambda nodes: [n.name for n in nodes] == ["mec-b"])
                await until(discovery, lambda nodes: not nodes)
        finally:
            await discovery.aclose()

    asyncio.run(run())


def service(**facts: object) -> ServiceInfo:
    settings = {
        "port": 8100, "parsed_addresses": ["10.0.0.5"], "properties": {"tls": "1"}, "server": "mec-1.local.",
        **facts,
    }  # fmt: skip
    return ServiceInfo(SERVICE, f"mec-1.{SERVICE}", **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("facts", "url"),
    [
        ({}, "https://mec-1.local:8100"),
        ({"properties": {"tls": "1", "host": "edge.example"}}, "https://edge.example:8100"),
        ({"properties": {}}, "https://mec-1.local:8100"),
        ({"properties": {"tls": "0"}}, "http://10.0.0.5:8100"),
        ({"properties": {"tls": "0"}, "parsed_addresses": ["fe80::1"]}, "http://[fe80::1]:8100"),
        ({"properties": {"tls": b"\xff\xfe"}}, "https://mec-1.local:8100"),
    ],
)
def test_an_announcement_says_how_the_node_is_reached(facts: dict[str, object], url: str) -> None:
    found = read_service(service(**facts))
    assert found is not None
    assert found.url == url


@pytest.mark.parametrize("facts", [{"port": 0}, {"parsed_addresses": []}])
def test_an_announcement_that_says_not_where_is_none(facts: dict[str, object]) -> None:
    assert read_service(service(**facts)) is None
