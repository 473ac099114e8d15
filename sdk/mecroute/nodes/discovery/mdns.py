"""Nodes on the local network, by mDNS and DNS-SD (RFC 6762, RFC 6763): `_mecroute._tcp.local.`

Untested on a real local network: the tests run over the loopback interface.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from mecroute.config.discovery import MdnsSource
from mecroute.errors import MissingExtraError, TierUnreachableError
from mecroute.nodes.discovery.base import Found, FoundNode

if TYPE_CHECKING:
    from zeroconf import ServiceInfo, ServiceStateChange, Zeroconf
    from zeroconf.asyncio import AsyncServiceBrowser, AsyncZeroconf

SERVICE = "_mecroute._tcp.local."
_ASK_MS = 1500
#: How long the first look waits for announcements; later ones read what has been heard since.
_FIRST_S = 0.5
#: Reading what was heard costs nothing, and is how nodes appear and disappear.
_TTL_S = 2.0
_MAX_HEARD = 256


class Mdns:
    """Listens for announcements from the first look on; see `Discovery`."""

    def __init__(self, source: MdnsSource) -> None:
        try:
            import zeroconf.asyncio  # noqa: F401 - only whether it is there
        except ImportError as error:
            raise MissingExtraError("discovery", "finding nodes on the local network") from error
        self._source = source
        self._zeroconf: AsyncZeroconf | None = None
        self._browser: AsyncServiceBrowser | None = None
        self._heard: dict[str, FoundNode] = {}
        self._asking: set[asyncio.Task[None]] = set()

    async def find(self) -> Found:
        """What has been heard; see `Discovery`."""
        if self._zeroconf is None:
            self._listen()
            await asyncio.sleep(_FIRST_S)
        if self._asking:
            await asyncio.wait(tuple(self._asking), timeout=_FIRST_S)
        return Found(tuple(self._heard.values()), _TTL_S)

    async def aclose(self) -> None:
        """Stop listening."""
        for task in self._asking:
            task.cancel()
        await asyncio.gather(*self._asking, return_exceptions=True)
        if self._browser is not None:
            await self._browser.async_cancel()
        if self._zeroconf is not None:
            await self._zeroconf.async_close()
        self._browser = self._zeroconf = None

    def _listen(self) -> None:
        from zeroconf import InterfaceChoice
        from zeroconf.asyncio import AsyncServiceBrowser, AsyncZeroconf

        interfaces = list(self._source.interfaces) or InterfaceChoice.Default
        try:
            self._zeroconf = AsyncZeroconf(interfaces=interfaces)
        except (OSError, RuntimeError, ValueError) as error:
            raise TierUnreachableError(
                f"mDNS cannot be used here: {error}",
                hint=f"set interfaces of [[discovery]] '{self._source.name}', or remove it",
                retryable=True,
                tier="mec",
            ) from error
        self._browser = AsyncServiceBrowser(self._zeroconf.zeroconf, SERVICE, handlers=[self._on_change])

    def _on_change(
        self, zeroconf: Zeroconf, service_type: str, name: str, state_change: ServiceStateChange
    ) -> None:
        from zeroconf import ServiceStateChange

        if state_change is ServiceStateChange.Removed:
            self._heard.pop(name, None)
            return
        if len(self._heard) + len(self._asking) >= _MAX_HEARD and name not in self._heard:
            return
        task = asyncio.ensure_future(self._ask(zeroconf, service_type, name))
        self._asking.add(task)
        task.add_done_callback(self._asking.discard)

    async def _ask(self, zeroconf: Zeroconf, service_type: str, name: str) -> None:
        from zeroconf.asyncio import AsyncServiceInfo

        info = AsyncServiceInfo(service_type, name)
        if await info.async_request(zeroconf, _ASK_MS) and (node := read_service(info)) is not None:
            self._heard[name] = node


def read_service(info: ServiceInfo) -> FoundNode | None:
    """The node that an announcement tells of; None where it says neither where nor how."""
    facts = {
        key.decode("utf-8", "replace"): (value or b"").decode("utf-8", "replace")
        for key, value in info.properties.items()
    }
    addresses = info.parsed_addresses()
    if not addresses or not info.port:
        return None
    if facts.get("tls") == "0":
        address = addresses[0]
        url = f"http://[{address}]:{info.port}" if ":" in address else f"http://{address}:{info.port}"
    else:
        # A certificate is made out to a name, so the node says under which it is to be asked.
        host = facts.get("host") or (info.server or "").rstrip(".")
        url = f"https://{host}:{info.port}"
    return FoundNode(
        name=info.name.removesuffix(f".{SERVICE}"),
        url=url,
        zone=facts.get("zone") or None,
        region=facts.get("region") or None,
    )
