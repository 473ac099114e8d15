"""Tells others where this node is: by mDNS on the local network, and in a directory of nodes in S3.

Serving never depends on it: what cannot be told is logged, and tried again.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from mecroute.errors import ConfigError, MecrouteError, MissingExtraError
from mecroute.nodes.discovery.mdns import SERVICE

if TYPE_CHECKING:
    from zeroconf import ServiceInfo
    from zeroconf.asyncio import AsyncZeroconf

_log = logging.getLogger(__name__)
#: A directory entry without a heartbeat counts as gone after so long; it is renewed three times in that time.
DIRECTORY_TTL_S = 30.0
_LOOK_S = 0.5


@dataclass(frozen=True, slots=True)
class Announcement:
    """Where this node is to be told of.

    Args:
        mdns: whether on the local network.
        directory_uri: `s3://bucket/prefix` of a directory of nodes; its endpoint and AWS region as for a
            store.
        advertise_url: where others reach this node; default: where it listens.
    """

    mdns: bool = False
    directory_uri: str | None = None
    directory_endpoint_url: str | None = None
    directory_region: str | None = None
    advertise_url: str | None = None

    @property
    def wanted(self) -> bool:
        """Whether it is to be told of anywhere."""
        return self.mdns or self.directory_uri is not None


class Announcer:
    """Announces one node while it serves. For one event loop.

    Args:
        announcement: where.
        node, zone, region: what is said of it.
        url: where it listens.
        stopping: whether the node is about to stop; it is then no longer announced.

    Raises:
        ConfigError: the address it listens on means nothing to others, and no other is given.
        MissingExtraError: a package that this needs is not installed.
    """

    def __init__(
        self,
        announcement: Announcement,
        *,
        node: str,
        zone: str | None,
        region: str | None,
        url: str,
        stopping: Callable[[], bool],
    ) -> None:
        self._announcement = announcement
        self._node, self._zone, self._region = node, zone, region
        self.url = (announcement.advertise_url or url).rstrip("/")
        self._stopping = stopping
        self._listens_on = urlsplit(url).hostname or ""
        host = urlsplit(self.url).hostname or ""
        if announcement.directory_uri is not None and _is_any(host):
            raise ConfigError(
                f"a node that listens on {host} cannot be listed by that address",
                hint="set [server] advertise_url to where others reach it",
            )
        if announcement.mdns:
            try:
                import zeroconf.asyncio  # noqa: F401 - only whether it is there
            except ImportError as error:
                raise MissingExtraError("discovery", "announcing a node on the local network") from error

    async def run(self) -> None:
        """Announce until the node stops or this is cancelled, and then take it back."""
        async with contextlib.AsyncExitStack() as stack:
            if self._announcement.mdns:
                await stack.enter_async_context(self._on_the_local_network())
            if self._announcement.directory_uri is not None:
                await stack.enter_async_context(self._in_the_directory())
            while not self._stopping():  # noqa: ASYNC110 - several things set it, none of them an event
                await asyncio.sleep(_LOOK_S)

    @contextlib.asynccontextmanager
    async def _on_the_local_network(self) -> AsyncIterator[None]:
        from zeroconf import Error, InterfaceChoice
        from zeroconf.asyncio import AsyncZeroconf

        here = _is_loopback(self._listens_on)
        zeroconf: AsyncZeroconf | None = None
        info: ServiceInfo | None = None
        try:
            zeroconf = AsyncZeroconf(interfaces=[self._listens_on] if here else InterfaceChoice.Default)
            info = self._service()
            await zeroconf.async_register_service(info, allow_name_change=True)
        except (Error, OSError, RuntimeError, ValueError) as error:
            _log.warning("node '%s' cannot be announced by mDNS: %s", self._node, error)
            info = None
        try:
            yield
        finally:
            if zeroconf is not None:
                if info is not None:
                    # Sends the goodbye, by which others know it at once.
                    await (await zeroconf.async_unregister_service(info))
                await zeroconf.async_close()

    def _service(self) -> ServiceInfo:
        from zeroconf import ServiceInfo, get_all_addresses  # type: ignore[attr-defined] # public by its docs

        parts = urlsplit(self.url)
        host = parts.hostname or ""
        port = parts.port or (443 if parts.scheme == "https" else 80)
        if _is_any(self._listens_on):
            addresses = [a for a in get_all_addresses() if not _is_loopback(a)]
        else:
            addresses = [self._listens_on]
        facts = {"tls": "1" if parts.scheme == "https" else "0"}
        facts |= {k: v for k, v in (("zone", self._zone), ("region", self._region)) if v}
        if self._announcement.advertise_url is not None:
            facts["host"] = host
        return ServiceInfo(
            SERVICE,
            f"{self._node}.{SERVICE}",
            port=port,
            parsed_addresses=addresses,
            properties=facts,
            server=f"{self._node}.local.",
        )

    @contextlib.asynccontextmanager
    async def _in_the_directory(self) -> AsyncIterator[None]:
        from mecroute_registry.remote.node_directory import NodeDirectory, NodeEntry

        told = self._announcement
        directory = NodeDirectory(
            told.directory_uri or "", endpoint_url=told.directory_endpoint_url, region=told.directory_region
        )
        entry = NodeEntry(self._node, self.url, DIRECTORY_TTL_S, self._zone, self._region)

        async def beat() -> None:
            failed = False
            while True:
                try:
                    await asyncio.to_thread(directory.put, entry)
                    failed = False
                except MecrouteError as error:
                    if not failed:
                        _log.warning("node '%s' cannot be listed: %s", self._node, error.message)
                    failed = True
                await asyncio.sleep(DIRECTORY_TTL_S / 3)

        beating = asyncio.create_task(beat())
        try:
            yield
        finally:
            beating.cancel()
            await asyncio.gather(beating, return_exceptions=True)
            with contextlib.suppress(MecrouteError):  # it runs out by itself
                await asyncio.to_thread(directory.remove, self._node)


def _is_any(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return False


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
