"""What holds for every route, whichever it is: who may ask, how much may be sent, and what is recorded."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from fastapi import APIRouter, FastAPI
from fastapi.routing import APIRoute
from starlette.routing import Route

from mecroute_server import routes
from mecroute_server.app import create_app
from mecroute_server.auth import OPEN_PATHS, scopes_for
from mecroute_server.keys import KeyFile, KeyScope
from mecroute_server.run import NodeServer
from mecroute_server.settings import ServerSettings
from support.server import running_node

ANY = frozenset({"infer", "deploy", "admin"})
INFER, DEPLOY, ADMIN = frozenset({"infer"}), frozenset({"deploy"}), frozenset({"admin"})
OPEN: frozenset[str] = frozenset()

#: Every operation, and the scopes of which a key needs one. A new route is a decision to be made here.
NEEDS: dict[str, frozenset[str]] = {
    "GET /healthz": OPEN,
    "GET /readyz": OPEN,
    "GET /metrics": OPEN,
    "GET /v2/health/live": OPEN,
    "GET /v2/health/ready": OPEN,
    "GET /admin/node": ANY,
    "POST /v1/chat/completions": INFER,
    "POST /v1/completions": INFER,
    "POST /v1/responses": INFER,
    "POST /v1/embeddings": INFER,
    "POST /v1/classify": INFER,
    "POST /v1/rerank": INFER,
    "POST /v1/messages": INFER,
    "POST /v1/messages/count_tokens": INFER,
    "GET /v1/models": INFER,
    "GET /v1/models/{name}": INFER,
    "POST /api/chat": INFER,
    "POST /api/generate": INFER,
    "POST /api/embed": INFER,
    "GET /api/tags": INFER,
    "POST /api/show": INFER,
    "GET /api/version": INFER,
    "GET /v2": INFER,
    "GET /v2/models/stats": INFER,
    "GET /v2/models/{name}": INFER,
    "GET /v2/models/{name}/versions/{version}": INFER,
    "GET /v2/models/{name}/ready": INFER,
    "GET /v2/models/{name}/versions/{version}/ready": INFER,
    "GET /v2/models/{name}/config": INFER,
    "GET /v2/models/{name}/versions/{version}/config": INFER,
    "GET /v2/models/{name}/stats": INFER,
    "GET /v2/models/{name}/versions/{version}/stats": INFER,
    "POST /v2/models/{name}/infer": INFER,
    "POST /v2/models/{name}/versions/{version}/infer": INFER,
    "POST /v2/repository/index": INFER,
    "POST /v2/repository/models/{name}/load": DEPLOY,
    "POST /v2/repository/models/{name}/unload": DEPLOY,
    "POST /admin/models": DEPLOY,
    "POST /admin/models/{ref}/load": DEPLOY,
    "POST /admin/models/{ref}/unload": DEPLOY,
    "POST /admin/models/{ref}/pin": DEPLOY,
    "POST /admin/models/{ref}/unpin": DEPLOY,
    "GET /admin/models": ADMIN,
    "GET /admin/models/{ref}": ADMIN,
    "DELETE /admin/models/{ref}": ADMIN,
    "GET /admin/sessions": ADMIN,
    "POST /admin/sessions/{name}/export": ADMIN,
    "POST /admin/sessions/{name}/import": ADMIN,
}
#: Routes that read no body: what comes with the request is left unread.
BODILESS = {
    "POST /admin/models/{ref}/load",
    "POST /admin/models/{ref}/unload",
    "POST /admin/models/{ref}/pin",
    "POST /admin/models/{ref}/unpin",
    "POST /admin/sessions/{name}/export",
}
WITH_BODY = sorted(one for one in NEEDS if one.startswith("POST") and one not in BODILESS)
MAX_BODY = 4096


class Guarded:
    """A node with keys, one for each scope and two that are limited."""

    def __init__(self, server: NodeServer, keys: KeyFile, secrets: dict[str, str], audit: Path) -> None:
        self.server = server
        self.keys = keys
        self.secrets = secrets
        self.audit = audit

    def ask(self, operation: str, secret: str | None, **options: Any) -> httpx.Response:
        method, path = filled(operation)
        headers = {"authorization": f"Bearer {secret}"} if secret is not None else {}
        return httpx.request(method, self.server.url + path, headers=headers, timeout=30, **options)

    def recorded(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.audit.read_text().splitlines()]


def filled(operation: str) -> tuple[str, str]:
    """Method and path, for a model and a session that are not there."""
    method, _, path = operation.partition(" ")
    for name in ("{name}", "{ref}", "{version}"):
        path = path.replace(name, "absent")
    return method, path


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    with guarded_node(tmp_path_factory.mktemp("guarded")) as node:
        yield node


@pytest.fixture(scope="module")
def impatient(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    """The same, which only those ask who mean to be late."""
    with guarded_node(tmp_path_factory.mktemp("impatient"), body_timeout_s=0.3) as node:
        yield node


@contextmanager
def guarded_node(root: Path, **more: Any) -> Iterator[Guarded]:
    keys = KeyFile(root / "keys.json")
    secrets = {scope.value: keys.create(scope.value, [scope])[1] for scope in KeyScope}
    settings = ServerSettings(
        port=0,
        keys_file=keys.path,
        registry_root=root / "registry",
        audit_log=root / "audit.jsonl",
        max_body_bytes=MAX_BODY,
        max_session_bytes=MAX_BODY,
        **more,
    )
    with running_node(settings) as server:
        yield Guarded(server, keys, secrets, root / "audit.jsonl")


def test_every_route_is_in_the_table_and_in_the_document(tmp_path: Path) -> None:
    app: FastAPI = create_app(ServerSettings(registry_root=tmp_path))
    document = app.openapi()
    described = {f"{method.upper()} {path}" for path, ops in document["paths"].items() for method in ops}
    assert described == set(NEEDS)
    modules = [
        import_module(f"mecroute_server.routes.{found.name}") for found in iter_modules(routes.__path__)
    ]
    served = {
        f"{method} {route.path_format}"
        for module in modules
        for route in getattr(module, "router", APIRouter()).routes
        if isinstance(route, APIRoute)
        for method in route.methods
    }
    assert served == set(NEEDS)  # none is left out of the document
    assert [route.path for route in app.routes if isinstance(route, Route)] == ["/openapi.json"]
    assert scopes_for("GET", "/openapi.json") == {KeyScope.ADMIN}
    assert set(OPEN_PATHS) == {one.split()[1] for one, needed in NEEDS.items() if not needed}


@pytest.mark.parametrize("operation", NEEDS)
def test_no_route_answers_a_key_without_its_scope(guarded: Guarded, operation: str) -> None:
    needed = NEEDS[operation]
    stranger = guarded.ask(operation, None).status_code
    assert (stranger in (200, 503)) if not needed else (stranger == 401)
    if needed:
        assert guarded.ask(operation, "wrong").status_code == 401
    for scope, secret in guarded.secrets.items():
        answer = guarded.ask(operation, secret)
        if scope in needed or not needed:
            assert answer.status_code not in (401, 403), answer.text
            assert answer.status_code < 500 or answer.status_code == 503, answer.text
        else:
            assert answer.status_code == 403
            assert "missing_scope" in answer.text or f"no scope '{min(needed)}'" in answer.text


@pytest.mark.parametrize("operation", WITH_BODY)
def test_every_body_has_a_largest_size(guarded: Guarded, operation: str) -> None:
    secret = guarded.secrets[min(NEEDS[operation])]
    for content in (b" " * (MAX_BODY + 1), iter([b" " * 1000] * 5)):  # declared, and chunked
        answer = guarded.ask(operation, secret, content=content)
        assert answer.status_code == 413, answer.text


@pytest.mark.parametrize("operation", WITH_BODY)
def test_every_body_has_to_come_in_time(impatient: Guarded, operation: str) -> None:
    method, path = filled(operation)
    url = urlsplit(impatient.server.url)
    secret = impatient.secrets[min(NEEDS[operation])]
    head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n"
    with socket.create_connection((url.hostname or "", url.port or 0), timeout=20) as connection:
        connection.sendall(f'{head}Authorization: Bearer {secret}\r\n\r\n{{"model": "a'.encode())
        answer = bytearray()
        while piece := connection.recv(65536):
            answer += piece
    assert answer.startswith(b"HTTP/1.1 408"), bytes(answer)


@pytest.mark.parametrize("operation", [one for one in NEEDS if NEEDS[one] in (DEPLOY, ADMIN)])
def test_every_attempt_to_change_the_node_is_recorded(guarded: Guarded, operation: str) -> None:
    before = len(guarded.recorded())
    key, secret = guarded.keys.create("auditor", list(KeyScope))
    status = guarded.ask(
        operation, secret, json={"ref": "absent:v1"} if "models" in operation else {}
    ).status_code
    new = guarded.recorded()[before:]
    if operation.startswith("GET"):
        assert new == []
        return
    (entry,) = new
    method, path = filled(operation)
    assert (entry["key"], entry["key_name"], entry["status"]) == (key.id, "auditor", status)
    assert entry["action"].startswith(f"{method} {path.split('absent')[0]}")
    assert entry["target"] in ("absent", "absent:v1")
    assert (entry["result"] == "ok") == (status < 300)


@pytest.mark.parametrize("operation", [one for one in WITH_BODY if NEEDS[one] == INFER])
def test_every_route_that_asks_a_model_counts_against_the_limit(guarded: Guarded, operation: str) -> None:
    secret = guarded.keys.create("limited", [KeyScope.INFER], requests_per_minute=1)[1]
    assert guarded.ask(operation, secret, json={}).status_code in (200, 400, 404)
    refused = guarded.ask(operation, secret, json={})
    assert refused.status_code == 429
    assert 1 <= int(refused.headers["retry-after"]) <= 60
