"""A caller that leaves frees its sequence, streamed or not, and while it waits in the queue."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from mecroute.engines.llama.engine import EngineStats
from mecroute_server.run import NodeServer
from mecroute_server.settings import ServerSettings
from support.server import running_node

ASK: dict[str, Any] = {"model": "endless", "messages": [{"role": "user", "content": "hi"}], "temperature": 0}


@pytest.fixture(scope="module")
def server(endless: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[NodeServer]:
    settings = ServerSettings(
        port=0,
        registry_root=tmp_path_factory.mktemp("registry"),
        model_files=(endless,),
        context=32768,
        parallel=1,
        max_queue=2,
        threads=1,
    )
    with running_node(settings) as server:
        yield server


def post_and_leave(
    server: NodeServer,
    once: Callable[[EngineStats], bool],
    path: str = "/v1/chat/completions",
    ask: dict[str, Any] = ASK,
    **fields: Any,
) -> None:
    """Send a request on a plain socket, and close it once the engine's state is as wanted."""
    url = urlsplit(server.url)
    assert url.hostname
    assert url.port
    content = httpx.Request("POST", server.url, json={**ask, **fields}).content
    head = f"POST {path} HTTP/1.1\r\nHost: {url.netloc}\r\nContent-Length: {len(content)}\r\n\r\n"
    with socket.create_connection((url.hostname, url.port)) as connection:
        connection.sendall(head.encode() + content)
        wait_until(server, once)


def wait_until(server: NodeServer, reached: Callable[[EngineStats], bool]) -> None:
    slot = server.node.pool.find("endless")
    assert slot.loaded is not None
    deadline = time.monotonic() + 30
    while not reached(slot.loaded.engine.stats()):
        assert time.monotonic() < deadline, slot.loaded.engine.stats()
        time.sleep(0.01)


def is_idle(server: NodeServer) -> bool:
    slot = server.node.pool.find("endless")
    assert slot.loaded is not None
    deadline = time.monotonic() + 30
    while slot.loaded.in_flight:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    stats = slot.loaded.engine.stats()
    return stats.queued == 0


@pytest.mark.parametrize("stream", [False, True])
def test_leaving_frees_the_sequence(server: NodeServer, stream: bool) -> None:
    post_and_leave(server, lambda stats: stats.running == 1, stream=stream)
    wait_until(server, lambda stats: stats.running == 0)
    assert is_idle(server)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("/v1/messages", {"messages": ASK["messages"], "max_tokens": 30_000}),
        ("/v1/responses", {"input": "hi"}),
        ("/api/chat", {"messages": ASK["messages"]}),
        ("/api/generate", {"prompt": "hi"}),
    ],
)
def test_so_it_does_for_every_api(
    server: NodeServer, path: str, fields: dict[str, Any], stream: bool
) -> None:
    ask = {"model": "endless", **fields}
    post_and_leave(server, lambda stats: stats.running == 1, path, ask, stream=stream)
    wait_until(server, lambda stats: stats.running == 0)
    assert is_idle(server)


@pytest.mark.parametrize("stream", [False, True])
def test_leaving_the_queue_frees_the_place_in_it(server: NodeServer, stream: bool) -> None:
    with httpx.Client(timeout=30) as http:
        url = f"{server.url}/v1/chat/completions"
        with http.stream("POST", url, json={**ASK, "stream": True}) as running:
            lines = running.iter_lines()  # kept: httpx closes the answer with its iterator
            next(lines)
            post_and_leave(server, lambda stats: stats.queued == 1, stream=stream)
            wait_until(server, lambda stats: stats.queued == 0)
            wait_until(server, lambda stats: stats.running == 1)
    wait_until(server, lambda stats: stats.running == 0)
    assert is_idle(server)


def test_callers_that_left_are_counted(server: NodeServer) -> None:
    post_and_leave(server, lambda stats: stats.running == 1, stream=True)
    wait_until(server, lambda stats: stats.running == 0)
    assert is_idle(server)
    sample = 'mecroute_cancelled_requests_total{model="endless"} '
    lines = httpx.get(f"{server.url}/metrics").text.splitlines()
    assert [float(line.removeprefix(sample)) >= 1 for line in lines if line.startswith(sample)] == [True]
