"""Slow, silent and greedy clients, over real sockets: each is bounded, and others are served meanwhile."""

from __future__ import annotations

import json
import resource
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from uvicorn.protocols.http.h11_impl import H11Protocol

from mecroute_server.connections import MAX_HEADER_BYTES
from mecroute_server.run import NodeServer
from mecroute_server.settings import ServerSettings
from support.server import running_node

ASK: dict[str, Any] = {"model": "endless", "prompt": "x", "temperature": 0}
MAX_CONNECTIONS = 20


@pytest.fixture(scope="module", params=["auto", "h11"])
def server(
    request: pytest.FixtureRequest, endless: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[NodeServer]:
    """A node whose patience is short, on the parser that uvicorn prefers and on the one it always has."""
    settings = ServerSettings(
        port=0,
        registry_root=tmp_path_factory.mktemp("registry"),
        model_files=(endless,),
        context=65536,
        parallel=2,
        threads=1,
        max_connections=MAX_CONNECTIONS,
        header_timeout_s=1.0,
        body_timeout_s=1.0,
        write_timeout_s=1.0,
        request_timeout_s=3,
    )
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "h11":
            patch.setattr("mecroute_server.connections.AutoHTTPProtocol", H11Protocol)
        with running_node(settings) as server:
            yield server


def connect(server: NodeServer, *, receive_buffer: int | None = None) -> socket.socket:
    url = urlsplit(server.url)
    assert url.hostname
    assert url.port
    connection = socket.socket()
    if receive_buffer is not None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    connection.settimeout(20)
    connection.connect((url.hostname, url.port))
    return connection


def everything(connection: socket.socket) -> bytes:
    """What the server sends until it closes the connection."""
    received = bytearray()
    try:
        while piece := connection.recv(65536):
            received += piece
    except ConnectionResetError:
        pass
    return bytes(received)


def post(path: str, body: bytes, *, length: int | None = None) -> bytes:
    length = len(body) if length is None else length
    return f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n\r\n".encode() + body


def is_refused(connection: socket.socket, pieces: list[bytes], *, pause_s: float) -> bool:
    """Whether the server closes the connection before it has got all the pieces."""
    try:
        for piece in pieces:
            connection.sendall(piece)
            time.sleep(pause_s)
    except OSError:
        return True
    return False


def wait_until(reached: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not reached():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def answers(server: NodeServer) -> bool:
    return httpx.get(f"{server.url}/healthz").status_code == 200


@pytest.mark.parametrize("sent", [b"", b"GET", b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX-Half: "])
def test_a_half_sent_request_is_given_up(server: NodeServer, sent: bytes) -> None:
    with connect(server) as connection:
        connection.sendall(sent)
        assert answers(server)
        assert everything(connection) == b""


def test_headers_that_dribble_are_given_up(server: NodeServer) -> None:
    with connect(server) as connection:
        connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n")
        # Each line comes in time; all of them together do not.
        assert is_refused(connection, [b"X-Line: a\r\n"] * 400, pause_s=0.05)


def test_a_second_request_that_is_half_sent_is_given_up(server: NodeServer) -> None:
    with connect(server) as connection:
        connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert connection.recv(65536).startswith(b"HTTP/1.1 200")
        connection.sendall(b"GET /heal")
        assert everything(connection) == b""


def test_an_idle_connection_between_requests_is_left_alone(server: NodeServer) -> None:
    with httpx.Client(base_url=server.url) as http:
        assert http.get("/healthz").status_code == 200
        kept = [open for open in server._server.guard.open if open._began_at is None]
        assert kept
        time.sleep(2.0)  # twice as long as headers may take
        assert set(kept) <= server._server.guard.open
        assert http.get("/healthz").status_code == 200


@pytest.mark.parametrize("first", [b"", b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"])
def test_endless_headers_are_given_up(server: NodeServer, first: bytes) -> None:
    with connect(server) as connection:
        connection.sendall(first)
        if first:
            assert connection.recv(65536).startswith(b"HTTP/1.1 200")
        connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX-Long: ")
        assert is_refused(connection, [b"a" * 1000] * (100 * MAX_HEADER_BYTES // 1000), pause_s=0)


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/embeddings", "/admin/models"])
def test_a_half_sent_body_gets_408(server: NodeServer, path: str) -> None:
    with connect(server) as connection:
        connection.sendall(post(path, b'{"model": "end', length=1000))
        answer = everything(connection)
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 408")
    assert b"connection: close" in head.lower()
    assert json.loads(body)["error"]["code"] == "request_timeout"


def test_a_dribbling_chunked_body_gets_408(server: NodeServer) -> None:
    with connect(server) as connection:
        connection.sendall(
            b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        received = b""
        connection.settimeout(0.05)
        deadline = time.monotonic() + 20
        while b"\r\n\r\n" not in received:
            assert time.monotonic() < deadline
            try:
                connection.sendall(b"1\r\n \r\n")
                received += connection.recv(65536)
            except TimeoutError:
                pass
    assert received.startswith(b"HTTP/1.1 408")


def test_a_client_that_does_not_read_is_cut_off(server: NodeServer) -> None:
    def unsent() -> bool:
        return any(open._unsent for open in server._server.guard.open)

    with connect(server, receive_buffer=4096) as connection:
        connection.sendall(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n" * 5000)
        wait_until(unsent)
        assert answers(server)
        wait_until(lambda: not unsent())
        wait_until(lambda: not server._server.guard.open)
        assert everything(connection).count(b"HTTP/1.1 200") < 5000


def test_a_stream_that_nobody_reads_is_ended_and_its_sequence_freed(endless: Path, tmp_path: Path) -> None:
    settings = ServerSettings(
        port=0, registry_root=tmp_path, model_files=(endless,), context=65536, parallel=1, threads=1,
        write_timeout_s=0.5,
    )  # fmt: skip
    # So much a token that no buffer between the two holds it all for long.
    more = {"stream": True, "logprobs": True, "top_logprobs": 20, "max_tokens": 60_000}
    ask = {"model": "endless", "messages": [{"role": "user", "content": "x"}], "temperature": 0, **more}
    with running_node(settings) as server, connect(server, receive_buffer=4096) as connection:
        slot = server.node.pool.find("endless")
        assert slot.loaded is not None
        stats = slot.loaded.engine.stats
        connection.sendall(post("/v1/chat/completions", json.dumps(ask).encode()))
        wait_until(lambda: stats().running == 1)
        wait_until(lambda: stats().running == 0)
        wait_until(lambda: slot.loaded is not None and slot.loaded.in_flight == 0)
        assert b"[DONE]" not in everything(connection)
        short = httpx.post(f"{server.url}/v1/completions", json={**ASK, "max_tokens": 3}, timeout=30)
        assert short.status_code == 200


def test_connections_are_bounded(server: NodeServer) -> None:
    with ExitStack() as stack:
        wait_until(lambda: not server._server.guard.open)
        crowd = [stack.enter_context(connect(server)) for _ in range(MAX_CONNECTIONS * 10)]
        refused = 0
        for connection in crowd[MAX_CONNECTIONS:]:
            answer = everything(connection)
            assert answer.startswith(b"HTTP/1.1 503")
            assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["code"] == "too_many_connections"
            refused += 1
        assert refused == MAX_CONNECTIONS * 9
    wait_until(lambda: not server._server.guard.open)  # the silent ones were given up
    assert answers(server)


def test_connections_leave_files_for_the_rest(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (600, hard))
    try:
        with NodeServer(ServerSettings(port=0, registry_root=tmp_path)) as server:
            assert server._server.guard.max_connections == 600 - 128
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_plain_answer_has_a_time_limit(server: NodeServer) -> None:
    answer = httpx.post(f"{server.url}/v1/completions", json={**ASK, "max_tokens": 60_000}, timeout=30)
    assert answer.status_code == 504
    assert answer.json()["error"]["code"] == "time_limit_exceeded"
    slot = server.node.pool.find("endless")
    assert slot.loaded is not None
    wait_until(lambda: slot.loaded is not None and slot.loaded.engine.stats().running == 0)


def test_a_streamed_answer_has_a_time_limit(server: NodeServer) -> None:
    ask = {**ASK, "max_tokens": 60_000, "stream": True}
    with httpx.stream("POST", f"{server.url}/v1/completions", json=ask, timeout=30) as answer:
        assert answer.status_code == 200
        events = [line for line in answer.iter_lines() if line]
    assert "data: [DONE]" not in events
    assert json.loads(events[-1].removeprefix("data: "))["error"]["code"] == "time_limit_exceeded"
    slot = server.node.pool.find("endless")
    wait_until(lambda: slot.loaded is not None and slot.loaded.in_flight == 0)


def test_websockets_are_not_spoken(server: NodeServer) -> None:
    with connect(server) as connection:
        connection.sendall(
            b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade, close\r\n"
            b"Upgrade: websocket\r\n"
            b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
        )
        assert b" 101 " not in everything(connection).splitlines()[0]
