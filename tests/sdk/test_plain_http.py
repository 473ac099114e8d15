"""HTTP/1.1 straight on the event loop: framing, connections that are kept, and every way they break."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import httpx
import pytest

from mecroute.tiers.plain_http import PlainHttp

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"


def against(
    serve: Serve, use: Callable[[PlainHttp, httpx.Request], Awaitable[object]], **limits: float
) -> object:
    """Run `use` with a transport and a request for a server that does as told."""

    async def run() -> object:
        async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                await serve(reader, writer)
            except (asyncio.IncompleteReadError, ConnectionError):
                pass
            finally:
                writer.close()

        server = await asyncio.start_server(handle, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        timeout = httpx.Timeout(limits.get("read", 5.0)).as_dict()
        request = httpx.Request(
            "POST", f"http://127.0.0.1:{port}/v1/x?y=1", content=b"{}", extensions={"timeout": timeout}
        )
        async with PlainHttp() as transport:
            try:
                return await asyncio.wait_for(use(transport, request), 10)
            finally:
                server.close()

    return asyncio.run(run())


async def read_request(reader: asyncio.StreamReader) -> bytes:
    return await reader.readuntil(b"\r\n\r\n") + await reader.readexactly(2)


async def get(transport: PlainHttp, request: httpx.Request) -> tuple[int, bytes]:
    response = await transport.handle_async_request(request)
    content = await response.aread()
    await response.aclose()
    return response.status_code, content


async def twice(transport: PlainHttp, request: httpx.Request) -> list[tuple[int, bytes]]:
    return [await get(transport, request), await get(transport, request)]


def test_a_connection_is_kept_for_the_next_request() -> None:
    connections, heads = [], []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.append(writer)
        while True:
            heads.append(await read_request(reader))
            writer.write(OK)

    assert against(serve, twice) == [(200, b"ok"), (200, b"ok")]
    assert len(connections) == 1
    assert heads[0].startswith(b"POST /v1/x?y=1 HTTP/1.1\r\n")
    assert heads[0].endswith(b"{}")


@pytest.mark.parametrize(
    "last",
    [
        b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\nok",  # says that it will close
        b"HTTP/1.0 200 OK\r\n\r\nok",  # a body up to the end
        OK,  # closes without a word
        OK + OK,  # an answer that nobody asked for
    ],
)
def test_a_connection_that_is_closed_is_not_used_again(last: bytes) -> None:
    connections = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.append(writer)
        await read_request(reader)
        writer.write(last)
        await writer.drain()

    async def use(transport: PlainHttp, request: httpx.Request) -> list[tuple[int, bytes]]:
        first = await get(transport, request)
        await asyncio.sleep(0.05)
        return [first, await get(transport, request)]

    assert against(serve, use) == [(200, b"ok"), (200, b"ok")]
    assert len(connections) == 2


def test_chunks_come_as_they_are_sent_and_what_is_said_before_the_answer_is_left_out() -> None:
    read = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(b"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\nHTTP/1.1 200 OK\r\n")
        writer.write(b"transfer-encoding: chunked\r\n\r\n4\r\nab\ncd"[:-1] + b"\r\n")
        await read.wait()
        writer.write(b"3\r\nde\n\r\n0\r\n\r\n")

    async def use(transport: PlainHttp, request: httpx.Request) -> list[str]:
        response = await transport.handle_async_request(request)
        lines = []
        async for line in response.aiter_lines():
            lines.append(line)
            read.set()
        return lines

    assert against(serve, use) == ["ab", "cde"]


def test_an_answer_larger_than_what_is_held_arrives_whole() -> None:
    size = 5_000_000

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % size + b"x" * size)
        await writer.drain()

    async def use(transport: PlainHttp, request: httpx.Request) -> int:
        response = await transport.handle_async_request(request)
        await asyncio.sleep(0.1)
        return len(await response.aread())

    assert against(serve, use) == size


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (b"", httpx.RemoteProtocolError),
        (b"no HTTP at all\r\n\r\n", httpx.RemoteProtocolError),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhalf", httpx.RemoteProtocolError),
        (b"HTTP/1.1 200 OK\r\nx: " + b"y" * 200_000, httpx.RemoteProtocolError),
    ],
)
def test_nonsense_and_half_answers_are_errors_of_httpx(answer: bytes, error: type[Exception]) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(answer)
        await writer.drain()

    with pytest.raises(error):
        against(serve, get)


def test_silence_ends_with_a_timeout_and_the_connection_is_closed() -> None:
    gone = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        await reader.read()  # until the other side is gone
        gone.set()

    async def use(transport: PlainHttp, request: httpx.Request) -> None:
        with pytest.raises(httpx.ReadTimeout):
            await get(transport, request)
        await asyncio.wait_for(gone.wait(), 5)

    against(serve, use, read=0.05)
    assert gone.is_set()


def test_an_answer_given_up_closes_its_connection() -> None:
    gone = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhalf")
        await reader.read()
        gone.set()

    async def use(transport: PlainHttp, request: httpx.Request) -> None:
        response = await transport.handle_async_request(request)
        await response.aclose()
        await asyncio.wait_for(gone.wait(), 5)

    against(serve, use)
    assert gone.is_set()


def test_where_nobody_listens_the_connection_is_refused() -> None:
    async def run() -> None:
        server = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        server.close()
        await server.wait_closed()
        async with PlainHttp() as transport:
            await transport.handle_async_request(httpx.Request("GET", f"http://127.0.0.1:{port}/"))

    with pytest.raises(httpx.ConnectError):
        asyncio.run(run())


@pytest.mark.parametrize(
    ("proxy", "url", "taken"),
    [
        (None, "http://node:8100/v1", True),
        (None, "https://node/v1", False),
        ("http://proxy:3128", "http://node:8100/v1", False),
    ],
)
def test_tls_and_proxies_are_left_to_httpx(
    monkeypatch: pytest.MonkeyPatch, proxy: str | None, url: str, taken: bool
) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    if proxy is not None:
        monkeypatch.setenv("http_proxy", proxy)
    assert PlainHttp().takes(httpx.URL(url)) is taken
