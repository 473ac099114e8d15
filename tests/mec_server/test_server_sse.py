"""Streams that wait show signs of life, and streams that break say so."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from mecroute.errors import TierUnreachableError
from mecroute_server.settings import ServerSettings
from mecroute_server.sse import EventStream
from support.server import SAYS, running_node


def test_a_stream_in_the_queue_is_kept_alive(
    endless: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mecroute_server.generation._FIRST_CHUNK_S", 0.01)
    monkeypatch.setattr("mecroute_server.sse._HEARTBEAT_S", 0.05)
    settings = ServerSettings(
        port=0, registry_root=tmp_path, model_files=(endless,), context=32768, parallel=1, threads=1
    )
    ask = {"model": "endless", "prompt": "x", "temperature": 0, "stream": True}
    with (
        running_node(settings) as server,
        httpx.Client(base_url=server.url, timeout=60) as http,
        http.stream("POST", "/v1/completions", json={**ask, "max_tokens": 30_000}) as first,
    ):
        running = first.iter_lines()
        next(running)
        with http.stream("POST", "/v1/completions", json={**ask, "max_tokens": len(SAYS)}) as second:
            assert second.status_code == 200
            lines = second.iter_lines()
            assert next(lines) == ": waiting"
            first.close()  # the caller of the first leaves, and the second has its turn
            events = [line.removeprefix("data: ") for line in lines if line.startswith("data: ")]
        assert events.pop() == "[DONE]"
        assert "".join(json.loads(event)["choices"][0]["text"] for event in events) == SAYS


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (TierUnreachableError("the engine is gone"), "tier_unreachable"),
        (KeyError("secret"), "internal_error"),
    ],
)
def test_a_stream_that_breaks_ends_with_an_error_event(error: Exception, code: str) -> None:
    ends: list[bool] = []

    async def chunks() -> AsyncIterator[dict[str, Any]]:
        yield {"n": 1}
        raise error

    sent = asyncio.run(_drive(EventStream(chunks(), on_end=ends.append)))
    first, last = [json.loads(part.removeprefix("data: ")) for part in sent.split("\n\n") if part]
    assert first == {"n": 1}
    assert last["error"]["code"] == code
    assert "secret" not in sent
    assert ends == [False]


def test_a_complete_stream_ends_with_done() -> None:
    ends: list[bool] = []

    async def chunks() -> AsyncIterator[dict[str, Any]]:
        yield {"text": "ä\n"}

    sent = asyncio.run(_drive(EventStream(chunks(), on_end=ends.append)))
    assert sent == 'data: {"text":"ä\\n"}\n\ndata: [DONE]\n\n'
    assert ends == [True]


async def _drive(stream: EventStream) -> str:
    """Send a stream to a caller that stays; the body it gets."""
    body: list[bytes] = []

    async def receive() -> dict[str, Any]:
        await asyncio.Event().wait()
        raise AssertionError

    async def send(message: Any) -> None:
        if message["type"] == "http.response.body":
            body.append(message["body"])

    await stream({"type": "http", "asgi": {"spec_version": "2.3"}}, receive, send)
    return b"".join(body).decode()
