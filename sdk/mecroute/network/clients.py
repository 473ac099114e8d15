"""One `httpx.AsyncClient` for each way to make a TLS connection."""

from __future__ import annotations

from typing import Any

import httpx

from mecroute.network.tls import ClientTls


class HttpClients:
    """Clients that share connections, by what they show and trust. For one event loop.

    Args:
        options: of `httpx.AsyncClient`, for every one of them.
    """

    def __init__(self, **options: Any) -> None:
        self._options = options
        self._clients: dict[ClientTls | None, httpx.AsyncClient] = {None: httpx.AsyncClient(**options)}

    def of(self, tls: ClientTls | None) -> httpx.AsyncClient:
        """The client for remotes with these files; None: nothing is shown, and the system trusted.

        Raises:
            ConfigError: a file cannot be used.
        """
        client = self._clients.get(tls)
        if client is None:
            assert tls is not None
            client = self._clients[tls] = httpx.AsyncClient(verify=tls.context(), **self._options)
        return client

    async def aclose(self) -> None:
        """Close every connection."""
        for client in self._clients.values():
            await client.aclose()
