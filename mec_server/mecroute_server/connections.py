"""Bounds what clients can hold: connections, half-sent headers, and answers that nobody reads.

uvicorn times only idle connections between two requests. This stands between its protocol and the socket.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Any, cast

from uvicorn.protocols.http.auto import AutoHTTPProtocol

_log = logging.getLogger(__name__)

#: h11 has such a bound of its own; httptools, which uvicorn takes where it is installed, has none.
MAX_HEADER_BYTES = 65_536
#: A client that is sending a body when its answer comes may go on for so long, to get to read that answer.
MAX_UNREAD_BODY_BYTES = 8_000_000
_FULL = (
    b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\nretry-after: 1\r\n"
    b"connection: close\r\ncontent-length: %d\r\n\r\n%s"
)
_FULL_BODY = (
    b'{"error":{"message":"this server has no connection left","type":"service_unavailable_error",'
    b'"param":null,"code":"too_many_connections","hint":"send it again in a moment"}}'
)


class ConnectionGuard:
    """Makes the protocol of each connection and ends the ones that hold it for nothing.

    Belongs to one event loop; give `protocol` to uvicorn as `http`, and run `watch` while it serves.

    Args:
        max_connections: open at once; the next one is answered 503 and closed.
        header_timeout_s: from a request's first byte (or the connection's beginning) to its headers' end.
        write_timeout_s: how long a client may take nothing of what is being sent to it.
    """

    def __init__(self, *, max_connections: int, header_timeout_s: float, write_timeout_s: float) -> None:
        self.max_connections = max_connections
        self.header_timeout_s = header_timeout_s
        self.write_timeout_s = write_timeout_s
        self.open: set[_Connection] = set()

    def protocol(self, **arguments: Any) -> asyncio.Protocol:
        """What uvicorn calls for each connection, with the arguments of its own protocol classes."""
        return _Connection(AutoHTTPProtocol, arguments, self)

    async def watch(self) -> None:
        """Look at every connection now and then, until cancelled."""
        pause_s = min(1.0, self.header_timeout_s / 4, self.write_timeout_s / 4)
        while True:
            await asyncio.sleep(pause_s)
            now = time.monotonic()
            for connection in list(self.open):
                if (reason := connection.stuck(now)) is not None:
                    _log.info("closing a connection: %s", reason)
                    connection.abort()


class _Connection(asyncio.Protocol):
    """Passes everything on to uvicorn's own protocol, and keeps the time."""

    def __init__(
        self, inner: Callable[..., asyncio.Protocol], arguments: dict[str, Any], guard: ConnectionGuard
    ) -> None:
        # Typed as Any: which of uvicorn's two protocols it is depends on what is installed.
        self._inner: Any = inner(**arguments)
        self._guard = guard
        self._transport: asyncio.Transport | None = None
        #: When the request began that has not had all its headers yet; None between two requests.
        self._began_at: float | None = time.monotonic()
        self._header_bytes = 0
        self._unsent = 0
        self._sent_at = time.monotonic()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport = cast(asyncio.Transport, transport)  # uvloop's is one in all but its bases
        if len(self._guard.open) >= self._guard.max_connections:
            transport.write(_FULL % (len(_FULL_BODY), _FULL_BODY))
            transport.close()
            return
        self._transport = transport
        self._guard.open.add(self)
        self._inner.connection_made(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._transport is not None:
            self._guard.open.discard(self)
            self._inner.connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._transport is None:
            return
        answering = self._answering()
        if not answering and self._began_at is None:
            self._began_at = time.monotonic()
            self._header_bytes = 0
        self._inner.data_received(data)
        if self._answering():
            self._began_at = None
            self._header_bytes = 0
        elif not answering:
            self._header_bytes += len(data)
            # After an answer that did not wait for the body (413, say), what comes is still that body.
            unread = self._inner.cycle is not None and self._inner.cycle.more_body
            if self._header_bytes > (MAX_UNREAD_BODY_BYTES if unread else MAX_HEADER_BYTES):
                self.abort()

    def eof_received(self) -> None:
        if self._transport is not None:
            self._inner.eof_received()

    def pause_writing(self) -> None:
        if self._transport is not None:
            self._inner.pause_writing()

    def resume_writing(self) -> None:
        if self._transport is not None:
            self._inner.resume_writing()

    def stuck(self, now: float) -> str | None:
        """Why the connection is to be closed, or None."""
        assert self._transport is not None
        unsent = self._transport.get_write_buffer_size()
        if unsent == 0 or unsent != self._unsent:
            self._unsent, self._sent_at = unsent, now
        elif now - self._sent_at > self._guard.write_timeout_s:
            return f"its client has taken nothing for {self._guard.write_timeout_s:g} s"
        began_at = None if self._answering() else self._began_at
        if began_at is not None and now - began_at > self._guard.header_timeout_s:
            return f"no complete request within {self._guard.header_timeout_s:g} s"
        return None

    def abort(self) -> None:
        """Close it without waiting for what is left to send."""
        if self._transport is not None:
            self._transport.abort()

    def _answering(self) -> bool:
        cycle = self._inner.cycle
        return cycle is not None and not cycle.response_complete
