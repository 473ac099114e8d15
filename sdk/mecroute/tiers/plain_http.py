"""HTTP/1.1 without TLS straight on the event loop, for nodes and services that are reached without a proxy.

`httpx` asks `httpcore`, which asks `anyio`, which asks `asyncio`; on loopback these layers take most of a
call. Here a connection is an `asyncio.Protocol`, and h11 (which httpx stands on as well) reads and writes the
messages. What comes out is an `httpx.Response`, and what fails raises httpx's own errors.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any, cast
from urllib.request import getproxies

import h11
import httpx

#: A connection that has been idle for longer is closed rather than used again.
_IDLE_S = 30.0
_IDLE_KEPT = 64
#: Longest head of an answer, and how much of a body may wait to be read.
_MAX_HEAD_BYTES = 100 * 1024
_MAX_WAITING_BYTES = 1 << 20


class PlainHttp(httpx.AsyncBaseTransport):
    """Keeps connections and sends requests over them. For one event loop.

    Raises (on use):
        httpx.TransportError: as httpx's own transport does.
    """

    def __init__(self) -> None:
        self._idle: dict[tuple[str, int], list[tuple[float, _Connection]]] = {}
        self._direct = not ({"http", "all"} & getproxies().keys())

    def takes(self, url: httpx.URL) -> bool:
        """Whether such a URL can be reached here: without TLS, and without a proxy in the environment."""
        return self._direct and url.scheme == "http"

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request whose body is there already; returns at the answer's head."""
        limits: Mapping[str, float | None] = request.extensions.get("timeout") or {}
        origin = (request.url.host, request.url.port or 80)
        connection = self._take(origin) or await _connect(origin, limits.get("connect"))
        try:
            await connection.send(request, limits.get("write"))
            head = await connection.head(limits.get("read"))
        except BaseException as error:
            connection.close()
            if isinstance(error, h11.RemoteProtocolError):
                raise httpx.RemoteProtocolError(str(error), request=request) from error
            if isinstance(error, h11.LocalProtocolError):
                raise httpx.LocalProtocolError(str(error), request=request) from error
            raise
        body = _Body(connection, limits.get("read"), lambda: self._give_back(origin, connection))
        return httpx.Response(
            head.status_code, headers=head.headers.raw_items(), stream=body, request=request
        )

    async def aclose(self) -> None:
        """Close the connections that nobody uses; the others close with their answers."""
        idle, self._idle = self._idle, {}
        for connections in idle.values():
            for _, connection in connections:
                connection.close()
        await asyncio.sleep(0)  # asyncio lets go of a socket one turn later

    def _take(self, origin: tuple[str, int]) -> _Connection | None:
        idle = self._idle.get(origin)
        while idle:
            since, connection = idle.pop()
            if not connection.lost and time.monotonic() - since < _IDLE_S:
                return connection
            connection.close()
        return None

    def _give_back(self, origin: tuple[str, int], connection: _Connection) -> None:
        idle = self._idle.setdefault(origin, [])
        idle.append((time.monotonic(), connection))
        if len(idle) > _IDLE_KEPT:
            idle.pop(0)[1].close()


class _Connection(asyncio.Protocol):
    """One connection; carries one exchange after the other.

    Attributes:
        lost: whether it cannot be used any more.
    """

    def __init__(self) -> None:
        self.lost = False
        self._messages = h11.Connection(h11.CLIENT, max_incomplete_event_size=_MAX_HEAD_BYTES)
        self._transport: asyncio.Transport | None = None
        self._error: Exception | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._unread_bytes = 0
        self._is_paused = self._is_full = False

    async def send(self, request: httpx.Request, timeout_s: float | None) -> None:
        """Write a request."""
        assert self._transport is not None
        messages = self._messages
        head = h11.Request(method=request.method, target=request.url.raw_path, headers=request.headers.raw)
        data = messages.send(head) or b""
        if content := request.content:
            data += messages.send(h11.Data(data=content)) or b""
        data += messages.send(h11.EndOfMessage()) or b""
        self._transport.write(data)
        while self._is_full and not self.lost:
            await self._wait(timeout_s, httpx.WriteTimeout)

    async def head(self, timeout_s: float | None) -> h11.Response:
        """The head of the answer; whatever is said before it (100, 103) is left out."""
        while True:
            event = await self._event(timeout_s)
            if isinstance(event, h11.Response):
                return event
            if not isinstance(event, h11.InformationalResponse):
                raise httpx.RemoteProtocolError("the server closed the connection without an answer")

    async def data(self, timeout_s: float | None) -> bytes | None:
        """The next piece of the answer's body; None at its end."""
        while True:
            event = await self._event(timeout_s)
            if isinstance(event, h11.Data):
                return bytes(event.data)
            if isinstance(event, h11.EndOfMessage):
                return None
            if isinstance(event, h11.ConnectionClosed):
                raise httpx.RemoteProtocolError("the server closed the connection within an answer")

    def renew(self) -> bool:
        """Make ready for the next exchange; False where there can be none."""
        messages = self._messages
        is_done = messages.our_state is h11.DONE and messages.their_state is h11.DONE
        if self.lost or not is_done or messages.trailing_data[0]:
            return False  # what came unasked would be taken for the next answer
        messages.start_next_cycle()
        return True

    def close(self) -> None:
        """Let go of it at once."""
        self.lost = True
        if self._transport is not None:
            self._transport.abort()

    async def _event(self, timeout_s: float | None) -> Any:
        while True:
            event = self._messages.next_event()
            if event is not h11.NEED_DATA and event is not h11.PAUSED:
                return event
            if self.lost:
                raise httpx.ReadError(f"the connection was lost: {self._error or 'closed'}")
            self._unread_bytes = 0
            if self._is_paused and self._transport is not None:
                self._is_paused = False
                self._transport.resume_reading()
            await self._wait(timeout_s, httpx.ReadTimeout)

    async def _wait(self, timeout_s: float | None, expired: type[httpx.TimeoutException]) -> None:
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(timeout_s):
                await self._waiter
        except TimeoutError as error:
            raise expired(f"nothing happened for {timeout_s:g} s") from error
        finally:
            self._waiter = None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    # What asyncio calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's are of no such class

    def data_received(self, data: bytes) -> None:
        if self._messages.their_state is h11.IDLE or self._messages.our_state is h11.IDLE:
            self.close()  # nobody has asked anything
            return
        self._messages.receive_data(data)
        self._unread_bytes += len(data)
        if self._unread_bytes > _MAX_WAITING_BYTES and not self._is_paused and self._transport is not None:
            self._is_paused = True
            self._transport.pause_reading()
        self._wake()

    def eof_received(self) -> None:
        self._messages.receive_data(b"")
        self.lost = True
        self._wake()

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost, self._error = True, exc
        self._wake()

    def pause_writing(self) -> None:
        self._is_full = True

    def resume_writing(self) -> None:
        self._is_full = False
        self._wake()


class _Body(httpx.AsyncByteStream):
    """The body of one answer; its connection is free again at its end, and closed where it is given up."""

    def __init__(
        self, connection: _Connection, timeout_s: float | None, give_back: Callable[[], None]
    ) -> None:
        self._connection: _Connection | None = connection
        self._timeout_s = timeout_s
        self._give_back = give_back

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while (connection := self._connection) is not None:
            try:
                data = await connection.data(self._timeout_s)
            except h11.RemoteProtocolError as error:
                raise httpx.RemoteProtocolError(str(error)) from error
            if data is None:
                self._connection = None
                if connection.renew():
                    self._give_back()
                else:
                    connection.close()
            else:
                yield data

    async def aclose(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()


async def _connect(origin: tuple[str, int], timeout_s: float | None) -> _Connection:
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(timeout_s):
            _, connection = await loop.create_connection(_Connection, *origin)
    except TimeoutError as error:
        raise httpx.ConnectTimeout(f"no connection within {timeout_s} s") from error
    except OSError as error:
        raise httpx.ConnectError(str(error)) from error
    return connection
