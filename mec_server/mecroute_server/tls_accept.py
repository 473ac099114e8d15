"""Accepts TLS connections: handshakes are bounded in number and time, as requests' headers are.

asyncio's own servers leave a client a minute for its handshake, on connections that nobody counts until then.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from collections.abc import Callable

from mecroute_server.connections import ConnectionGuard

_log = logging.getLogger(__name__)

#: After the system could not give us a connection (no file left, say), how long until the next try.
_PAUSE_S = 0.1


class TlsAcceptor:
    """Takes connections from a listening socket and hands those over that have shaken hands.

    Args:
        listener: not blocking; stays open.
        tls: what connections are secured with.
        guard: knows how many may be open, and how long a handshake may take.
        protocol: makes the protocol of a connection that is secured.

    Belongs to one event loop.
    """

    def __init__(
        self,
        listener: socket.socket,
        tls: ssl.SSLContext,
        guard: ConnectionGuard,
        protocol: Callable[[], asyncio.Protocol],
    ) -> None:
        self._listener = listener
        self._tls = tls
        self._guard = guard
        self._protocol = protocol
        self._handshakes: set[asyncio.Task[None]] = set()
        self._accepting = asyncio.get_running_loop().create_task(self._accept())

    async def close(self) -> None:
        """Take no more, and drop those that have not shaken hands."""
        left = [self._accepting, *self._handshakes]
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, _ = await loop.sock_accept(self._listener)
            except OSError as error:
                _log.warning("cannot accept a connection: %s", error)
                await asyncio.sleep(_PAUSE_S)
                continue
            if len(self._guard.open) + len(self._handshakes) >= self._guard.max_connections:
                connection.close()  # to say more it would have to shake hands first
                continue
            handshake = loop.create_task(self._shake_hands(connection))
            self._handshakes.add(handshake)
            handshake.add_done_callback(self._handshakes.discard)

    async def _shake_hands(self, connection: socket.socket) -> None:
        try:
            await asyncio.get_running_loop().connect_accepted_socket(
                self._protocol,
                connection,
                ssl=self._tls,
                ssl_handshake_timeout=self._guard.header_timeout_s,
            )
        except OSError as error:  # ssl.SSLError and asyncio's own timeout are such
            _log.info("closing a connection: no TLS handshake: %s", error)
