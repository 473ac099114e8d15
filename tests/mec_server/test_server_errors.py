"""Whatever goes wrong, the answer has OpenAI's error shape and says what to do."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from mecroute.errors import (
    ConfigError,
    DigestMismatchError,
    MecrouteError,
    NodeNotReadyError,
    OverloadedError,
    RemoteStoreError,
)
from mecroute_server.app import create_app
from mecroute_server.errors import error_response
from mecroute_server.run import NodeServer
from mecroute_server.settings import ServerSettings
from support.server import running_node

CHAT = "/v1/chat/completions"
HELLO = [{"role": "user", "content": "hi"}]


def error_of(answer: httpx.Response, status: int) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-request-id"]
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code", "hint"}
    assert error["message"]
    return dict(error)


@pytest.mark.parametrize("path", [CHAT, "/v1/completions", "/v1/embeddings", "/admin/models"])
@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b'{"model": NaN}',
        b"\xff\xfe\xff",
        b'{"model": "\\ud800"}',
        b"[" * 15_000,
        b'{"max_tokens": ' + b"9" * 5_000 + b"}",
        b"[]",
        b'"text"',
        b"null",
    ],
)
def test_a_body_that_is_no_json_object(http: httpx.Client, path: str, content: bytes) -> None:
    error = error_of(http.post(path, content=content), 400)
    assert error["code"] == "invalid_request"


def test_a_body_that_is_too_large(http: httpx.Client) -> None:
    error = error_of(http.post(CHAT, content=b" " * 20_001), 413)
    assert "20,000" in error["message"]
    assert error["code"] == "request_too_large"


def test_a_body_of_no_declared_length_that_grows_too_large(http: httpx.Client) -> None:
    def endless() -> Iterator[bytes]:
        for _ in range(200):
            yield b" " * 1_000

    error_of(http.post(CHAT, content=endless()), 413)


def test_the_server_still_serves_after_bodies_that_were_too_large(http: httpx.Client) -> None:
    for _ in range(5):
        error_of(http.post(CHAT, content=b" " * 2_000_000), 413)
    assert http.get("/healthz").status_code == 200


def test_an_unknown_model(http: httpx.Client) -> None:
    error = error_of(http.post(CHAT, json={"model": "tinny", "messages": HELLO}), 404)
    assert error["code"] == "model_not_found"
    assert "tiny" in error["message"] + error["hint"]


@pytest.mark.parametrize("model", [None, "", 3, ["tiny"]])
def test_no_model(http: httpx.Client, model: object) -> None:
    error = error_of(http.post(CHAT, json={"model": model, "messages": HELLO}), 400)
    assert "tiny" in error["hint"]


@pytest.mark.parametrize(
    "fields",
    [
        {"messages": []},
        {"messages": "hi"},
        {"messages": [{"role": "robot", "content": "hi"}]},
        {"temperature": "hot"},
        {"max_tokens": 0},
        {"n": 0},
        {"n": 120},
        {"grammar": "root ::= x"},
        {"response_format": {"type": "xml"}},
        {"logit_bias": {"99999": 1}},
        {"tools": [{"type": "function"}]},
        {"stream": "yes"},
        {"stream_options": 3, "stream": True},
        {"stream_options": 3},
    ],
)
def test_a_wrong_field_and_its_name(http: httpx.Client, fields: dict[str, object]) -> None:
    error = error_of(http.post(CHAT, json={"model": "tiny", "messages": HELLO, **fields}), 400)
    assert error["type"] == "invalid_request_error"
    assert next(iter(fields)) in error["message"]


def test_a_prompt_longer_than_the_context(http: httpx.Client) -> None:
    messages = [{"role": "user", "content": "word " * 400}]
    for stream in (False, True):
        error = error_of(http.post(CHAT, json={"model": "tiny", "messages": messages, "stream": stream}), 400)
        assert error["code"] == "context_length_exceeded"


def test_an_unknown_path_and_a_wrong_method(http: httpx.Client) -> None:
    assert error_of(http.get("/v2/chat"), 404)["code"] == "not_found"
    answer = http.get(CHAT)
    assert error_of(answer, 405)["code"] == "method_not_allowed"
    assert answer.headers["allow"] == "POST"


def test_refused_requests_leave_no_engine_busy(http: httpx.Client, node: NodeServer) -> None:
    slot = node.node.pool.find("tiny")
    assert slot.loaded is not None
    assert slot.loaded.in_flight == 0


def test_overload_is_answered_at_once(endless: Path, tmp_path: Path) -> None:
    settings = ServerSettings(
        port=0,
        registry_root=tmp_path,
        model_files=(endless,),
        context=32768,
        parallel=1,
        max_queue=0,
        threads=1,
    )
    ask = {"model": "endless", "messages": HELLO, "temperature": 0}
    with (
        running_node(settings) as server,
        httpx.Client(base_url=server.url, timeout=30) as http,
        http.stream("POST", CHAT, json={**ask, "stream": True}) as running,
    ):
        lines = running.iter_lines()  # kept: httpx closes the answer with its iterator
        next(lines)
        answer = http.post(CHAT, json=ask)
        error = error_of(answer, 429)
        assert error["type"] == "rate_limit_error"
        assert int(answer.headers["retry-after"]) >= 1
        assert int(answer.headers["retry-after-ms"]) >= 1
        assert http.get("/admin/node").json()["retry_after_s"] > 0


def test_an_engine_lost_in_mid_stream_ends_it_with_an_error(endless: Path, tmp_path: Path) -> None:
    settings = ServerSettings(
        port=0, registry_root=tmp_path, model_files=(endless,), context=32768, threads=1
    )
    ask = {"model": "endless", "messages": HELLO, "temperature": 0, "stream": True}
    with running_node(settings) as server, httpx.Client(base_url=server.url, timeout=30) as http:
        with http.stream("POST", CHAT, json=ask) as answer:
            lines = answer.iter_lines()
            next(lines)
            slot = server.node.pool.find("endless")
            assert slot.loaded is not None
            slot.loaded.engine.close()
            events = [line for line in lines if line]
        assert "data: [DONE]" not in events
        error = json.loads(events[-1].removeprefix("data: "))["error"]
        assert error["code"] == "tier_unreachable"
        error_of(http.post(CHAT, json={**ask, "stream": False}), 502)


def test_a_defect_is_answered_and_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    app = create_app(ServerSettings(registry_root=tmp_path))

    @app.get("/broken")
    async def broken() -> None:
        raise ZeroDivisionError("not for the caller's eyes")

    async def ask() -> httpx.Response:
        transport = httpx.ASGITransport(app, raise_app_exceptions=True, client=("127.0.0.1", 1))
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as http:
            return await http.get("/broken")

    with caplog.at_level(logging.ERROR):
        answer = asyncio.run(ask())
    error = error_of(answer, 500)
    assert "not for the caller's eyes" not in answer.text
    assert answer.headers["x-request-id"] in error["message"]
    assert "ZeroDivisionError" in caplog.text


@pytest.mark.parametrize(
    ("error", "status", "kind"),
    [
        (ConfigError("a"), 400, "invalid_request_error"),
        (NodeNotReadyError("a", retryable=True), 503, "service_unavailable_error"),
        (OverloadedError("a", retry_after_s=2.5), 429, "rate_limit_error"),
        (DigestMismatchError("a"), 422, "model_error"),
        (RemoteStoreError("a"), 502, "model_error"),
        (MecrouteError("a"), 500, "server_error"),
    ],
)
def test_each_error_has_its_status_and_type(error: MecrouteError, status: int, kind: str) -> None:
    answer = error_response(error)
    assert answer.status_code == status
    assert json.loads(bytes(answer.body))["error"]["type"] == kind
    if isinstance(error, OverloadedError):
        assert answer.headers["retry-after"] == "3"
        assert answer.headers["retry-after-ms"] == "2500"
