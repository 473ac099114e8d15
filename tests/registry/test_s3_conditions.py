"""Writers of one index, on a service that honours conditional writes as AWS does, and on others.

The server here is a real HTTP server that keeps objects in memory and checks no signatures.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar, Literal
from urllib.parse import parse_qs

import pytest

from mecroute_registry import ModelFacts, Registry, RemoteStoreError
from mecroute_registry.remote import RemoteStore, open_remote
from support.gguf_bytes import write_model

Conditions = Literal["honoured", "ignored", "refused", "always lost"]


INDEX = "/bucket/models/index.json"


class _Server(ThreadingHTTPServer):
    def __init__(self, conditions: Conditions) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.conditions = conditions
        self.objects: dict[str, bytes] = {}
        self.lock = threading.Lock()
        self.lost = 0

    def refusal(self, path: str, if_match: str | None, if_none_match: str | None) -> HTTPStatus | None:
        """The status with which a write is refused; call under the lock."""
        if (if_match is None and if_none_match is None) or self.conditions == "ignored":
            return None
        if self.conditions == "refused":
            return HTTPStatus.NOT_IMPLEMENTED
        there = self.objects.get(path)
        holds = there is None if if_none_match else there is not None and _etag(there) == if_match
        if holds and self.conditions == "honoured":
            return None
        self.lost += 1
        return HTTPStatus.PRECONDITION_FAILED


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server
    codes: ClassVar = {
        HTTPStatus.NOT_FOUND: "NoSuchKey",
        HTTPStatus.PRECONDITION_FAILED: "PreconditionFailed",
        HTTPStatus.NOT_IMPLEMENTED: "NotImplemented",
    }

    def do_PUT(self) -> None:
        data = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        with self.server.lock:
            refusal = self.server.refusal(
                self.path, self.headers.get("If-Match"), self.headers.get("If-None-Match")
            )
            if refusal is None:
                self.server.objects[self.path] = data
        self._answer(refusal or HTTPStatus.OK, data)

    def do_GET(self) -> None:
        path, _, query = self.path.partition("?")
        wanted = parse_qs(query)
        if wanted.get("list-type"):
            prefix = f"{path}/{wanted['prefix'][0]}"
            keys = [key.removeprefix(f"{path}/") for key in self.server.objects if key.startswith(prefix)]
            items = "".join(f"<Contents><Key>{key}</Key></Contents>" for key in keys)
            self._answer(HTTPStatus.OK, f"<ListBucketResult>{items}</ListBucketResult>".encode())
            return
        data = self.server.objects.get(self.path)
        self._answer(HTTPStatus.NOT_FOUND if data is None else HTTPStatus.OK, data or b"")

    do_HEAD = do_GET

    def _answer(self, status: HTTPStatus, data: bytes) -> None:
        body = data if self.command != "PUT" else b""
        if status in self.codes:
            body = f"<Error><Code>{self.codes[status]}</Code><Message>no</Message></Error>".encode()
        self.send_response(status)
        self.send_header("ETag", _etag(data))
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


def _etag(data: bytes) -> str:
    return f'"{hashlib.md5(data, usedforsecurity=False).hexdigest()}"'


@pytest.fixture
def server(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[_Server]:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "any")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "any")
    with _Server(request.param) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def _push(server: _Server, tmp_path: Path, facts: ModelFacts, number: int) -> None:
    registry = Registry(tmp_path / f"r{number}")
    file = write_model(tmp_path / f"{number}.gguf", seed=number)
    model = registry.register(file, facts.model_copy(update={"version": f"v{number}"}))
    _store(server).push(registry, model)


def _store(server: _Server) -> RemoteStore:
    return open_remote("s3://bucket/models", endpoint_url=f"http://127.0.0.1:{server.server_port}")


@pytest.mark.parametrize("server", ["honoured"], indirect=True)
def test_a_writer_that_lost_the_race_writes_again(server: _Server, tmp_path: Path, facts: ModelFacts) -> None:
    errors: list[BaseException] = []

    def push(number: int) -> None:
        try:
            _push(server, tmp_path, facts, number)
        except BaseException as error:  # noqa: BLE001 - shown by the assertion in the main thread
            errors.append(error)

    threads = [threading.Thread(target=push, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert [model.version for model in _store(server).list()] == ["v0", "v1", "v2", "v3"]


@pytest.mark.parametrize("server", ["refused"], indirect=True)
def test_a_service_without_conditions_can_be_used(server: _Server, tmp_path: Path, facts: ModelFacts) -> None:
    _push(server, tmp_path, facts, 0)
    _push(server, tmp_path, facts, 1)
    assert [model.version for model in _store(server).list()] == ["v0", "v1"]


@pytest.mark.parametrize("server", ["always lost"], indirect=True)
def test_a_race_that_is_never_won_ends(server: _Server, tmp_path: Path, facts: ModelFacts) -> None:
    with pytest.raises(RemoteStoreError, match="other writers keep changing it") as caught:
        _push(server, tmp_path, facts, 0)
    assert caught.value.retryable
    assert server.lost == 10
    assert INDEX not in server.objects


@pytest.mark.parametrize("server", ["ignored"], indirect=True)
def test_an_update_of_the_index_that_was_lost_is_made_good(
    server: _Server, tmp_path: Path, facts: ModelFacts
) -> None:
    _push(server, tmp_path, facts, 0)
    before = server.objects[INDEX]
    _push(server, tmp_path, facts, 1)
    # What a writer does that read the index before the second push and writes it after that.
    server.objects[INDEX] = before
    assert [model.version for model in _store(server).list()] == ["v0", "v1"]
    _push(server, tmp_path, facts, 2)
    assert len(json.loads(server.objects[INDEX])["manifests"]) == 3


@pytest.mark.parametrize("server", ["honoured"], indirect=True)
def test_a_service_that_cannot_resume_is_named(server: _Server, tmp_path: Path, facts: ModelFacts) -> None:
    _push(server, tmp_path, facts, 0)
    with pytest.raises(RemoteStoreError, match="the server ignores Range"):
        _store(server).pull("tiny", Registry(tmp_path / "node"))
