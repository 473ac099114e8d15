"""Nodes that list themselves in a folder of an S3 bucket, with a heartbeat."""

from __future__ import annotations

import asyncio

from mecroute.config.discovery import S3Source
from mecroute.config.schema import StoreConfig
from mecroute.nodes.discovery.base import Found, FoundNode
from mecroute_registry.remote.node_directory import NodeDirectory

#: Listing costs a request; a node's own time to live is seldom shorter.
_TTL_S = 10.0


class S3Directory:
    """Lists the live entries of a node directory; see `Discovery`."""

    def __init__(self, source: S3Source, store: StoreConfig) -> None:
        self._directory = NodeDirectory(
            source.uri,
            endpoint_url=source.endpoint_url or store.endpoint_url,
            region=source.store_region or store.region,
        )

    async def find(self) -> Found:
        """List once; see `Discovery`."""
        entries = await asyncio.to_thread(self._directory.live)
        return Found([FoundNode(e.node, e.url, e.zone, e.region) for e in entries], _TTL_S)

    async def aclose(self) -> None:
        """Nothing is held."""
