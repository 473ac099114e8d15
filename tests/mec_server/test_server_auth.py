"""Who may ask the server."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from mecroute.errors import AuthenticationError
from mecroute_server.auth import Authenticator
from mecroute_server.errors import NotLocalError
from mecroute_server.settings import ServerSettings
from support.server import running_node


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    settings = ServerSettings(
        port=0, api_keys=("first", "second"), registry_root=tmp_path_factory.mktemp("registry")
    )
    with running_node(settings) as server:
        yield server.url


@pytest.mark.parametrize("path", ["/v1/models", "/admin/node", "/admin/models", "/nowhere"])
@pytest.mark.parametrize("authorization", [None, "", "Bearer", "Bearer wrong", "Basic first", "first"])
def test_without_an_accepted_key_nothing_is_said(guarded: str, path: str, authorization: str | None) -> None:
    headers = {} if authorization is None else {"authorization": authorization}
    answer = httpx.get(guarded + path, headers=headers)
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == "Bearer"
    assert answer.json()["error"]["type"] == "authentication_error"
    assert answer.json()["error"]["code"] == "invalid_api_key"
    assert answer.headers["x-request-id"]


@pytest.mark.parametrize("authorization", ["Bearer first", "bearer second"])
def test_each_key_is_accepted(guarded: str, authorization: str) -> None:
    assert httpx.get(f"{guarded}/admin/node", headers={"authorization": authorization}).status_code == 200


def test_with_a_key_any_host_name_may_be_used(guarded: str) -> None:
    headers = {"authorization": "Bearer first", "host": "edge.example.com"}
    assert httpx.get(f"{guarded}/v1/models", headers=headers).status_code == 200


@pytest.mark.parametrize("path", ["/healthz", "/metrics"])
def test_probes_need_no_key(guarded: str, path: str) -> None:
    assert httpx.get(guarded + path).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"host": "attacker.example"},
        {"host": "127.0.0.1.attacker.example:80"},
        {"origin": "https://attacker.example"},
        {"origin": "null"},
        {"origin": "http://[::1"},
    ],
)
def test_a_web_page_cannot_use_an_open_server(http: httpx.Client, headers: dict[str, str]) -> None:
    answer = http.post("/admin/models", headers=headers, json={"ref": "a:b"})
    assert answer.status_code == 403
    assert answer.json()["error"]["code"] == "forbidden"


def test_a_local_page_may_use_an_open_server(http: httpx.Client) -> None:
    assert http.get("/v1/models", headers={"origin": "http://localhost:3000"}).status_code == 200


def test_an_open_server_serves_no_other_machine() -> None:
    with pytest.raises(NotLocalError, match=r"10\.0\.0\.7"):
        Authenticator(()).check("/v1/models", {"host": "localhost"}, "10.0.0.7")
    Authenticator(()).check("/v1/models", {"host": "localhost"}, "::1")
    Authenticator(()).check("/healthz", {"host": "elsewhere"}, "10.0.0.7")


def test_a_key_is_compared_whole() -> None:
    keys = Authenticator(("long-enough",))
    with pytest.raises(AuthenticationError):
        keys.check("/v1/models", {"authorization": "Bearer long-enoug"}, "127.0.0.1")
    keys.check("/v1/models", {"authorization": "Bearer long-enough"}, "10.0.0.7")
