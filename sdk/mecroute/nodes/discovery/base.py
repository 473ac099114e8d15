"""What every source of nodes does, and which one a configuration means."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from mecroute.config.discovery import CamaraSource, DiscoverySource, DnsSrvSource, MdnsSource, S3Source
from mecroute.config.schema import StoreConfig


@dataclass(frozen=True, slots=True)
class FoundNode:
    """A node as a source tells of it; nothing of it is believed yet.

    Args:
        name: what it calls itself, or its address.
        url: where it is said to listen.
        zone, region: where it says it stands; None where it says nothing.
        rank: the lower, the sooner it is used where there are more than may be.
    """

    name: str
    url: str
    zone: str | None = None
    region: str | None = None
    rank: int = 0


@dataclass(frozen=True, slots=True)
class Found:
    """What one look found.

    Args:
        ttl_s: > 0; how long it may be relied on.
        notes: what was found and cannot be used, and why.
    """

    nodes: Sequence[FoundNode]
    ttl_s: float
    notes: tuple[str, ...] = ()


class Discovery(Protocol):
    """One source of nodes. For one event loop."""

    async def find(self) -> Found:
        """Look once.

        Raises:
            MecrouteError: the source cannot be asked; the message says which and why.
        """
        ...

    async def aclose(self) -> None:
        """Release what it holds."""
        ...


def open_discovery(source: DiscoverySource, store: StoreConfig) -> Discovery:
    """The source that a configuration means; nothing is asked yet.

    Args:
        store: `[store]`, whose endpoint and region an S3 source takes where it has none.

    Raises:
        MissingExtraError: the source needs a package that is not installed.
        UsageError: its settings are not usable.
    """
    if isinstance(source, DnsSrvSource):
        from mecroute.nodes.discovery.dns_srv import DnsSrv

        return DnsSrv(source)
    if isinstance(source, MdnsSource):
        from mecroute.nodes.discovery.mdns import Mdns

        return Mdns(source)
    if isinstance(source, S3Source):
        from mecroute.nodes.discovery.s3_directory import S3Directory

        return S3Directory(source, store)
    assert isinstance(source, CamaraSource)
    from mecroute.nodes.discovery.camara import Camara

    return Camara(source)
