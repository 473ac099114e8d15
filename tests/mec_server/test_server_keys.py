"""Keys with scopes: what the file keeps, and what each key may do."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from mecroute.errors import AuthenticationError, ConfigError, UsageError
from mecroute_server.auth import Authenticator, scopes_for
from mecroute_server.keys import KeyFile, KeyScope
from mecroute_server.run import NodeServer
from mecroute_server.settings import ServerSettings
from support.server import running_node


@pytest.fixture
def keys(tmp_path: Path) -> KeyFile:
    return KeyFile(tmp_path / "etc" / "keys.json")


@pytest.fixture(scope="module")
def scoped(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, KeyFile, dict[str, str]]]:
    """A node's URL, its keys file, and one secret per scope."""
    root = tmp_path_factory.mktemp("scoped")
    file = KeyFile(root / "keys.json")
    secrets = {scope.value: file.create(scope.value, [scope])[1] for scope in KeyScope}
    settings = ServerSettings(
        port=0, api_keys=("of-the-setting",), keys_file=file.path, registry_root=root / "registry"
    )
    with running_node(settings) as server:
        yield server.url, file, secrets


def test_the_secret_is_kept_nowhere(keys: KeyFile) -> None:
    key, secret = keys.create("app", [KeyScope.INFER], requests_per_minute=60)
    text = keys.path.read_text()
    assert secret not in text
    assert secret.rpartition("-")[2] not in text
    assert len(secret) > 50
    assert keys.path.stat().st_mode & 0o777 == 0o600
    assert keys.read() == [key]


def test_keys_differ(keys: KeyFile) -> None:
    made = [keys.create("app", [KeyScope.INFER]) for _ in range(20)]
    assert len({secret for _, secret in made}) == len({key.id for key, _ in made}) == 20


def test_keys_made_at_once_are_all_there(keys: KeyFile) -> None:
    threads = [threading.Thread(target=keys.create, args=("app", [KeyScope.INFER])) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(keys.read()) == 8
    assert {path.name for path in keys.path.parent.iterdir()} == {"keys.json", ".keys.json.lock"}


def test_revoking(keys: KeyFile) -> None:
    first, second = keys.create("a", [KeyScope.INFER])[0], keys.create("b", [KeyScope.ADMIN])[0]
    assert keys.revoke(first.id) == first
    assert keys.read() == [second]
    with pytest.raises(UsageError, match=first.id):
        keys.revoke(first.id)


@pytest.mark.parametrize(
    ("name", "scopes", "limit"),
    [("", ["infer"], None), ("two words", ["infer"], None), ("app", [], None), ("app", ["infer"], 0)],
)
def test_an_impossible_key_is_not_made(
    keys: KeyFile, name: str, scopes: list[str], limit: int | None
) -> None:
    with pytest.raises(UsageError):
        keys.create(name, [KeyScope(scope) for scope in scopes], requests_per_minute=limit)
    assert not keys.path.exists()


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660])
def test_a_file_that_others_may_read_is_refused(keys: KeyFile, mode: int) -> None:
    keys.create("app", [KeyScope.INFER])
    keys.path.chmod(mode)
    with pytest.raises(ConfigError, match=f"{mode:03o}") as caught:
        keys.read()
    assert "chmod 600" in (caught.value.hint or "")


ENTRY = {"id": "a", "name": "a", "scopes": ["infer"], "sha256": "0" * 64, "created": ""}


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{}",
        '{"format": 2, "keys": []}',
        '{"format": 1, "keys": 7}',
        '{"format": 1, "keys": [{}]}',
        "[" * 100_000,
        json.dumps({"format": 1, "keys": [{**ENTRY, "scopes": ["all"]}]}),
        json.dumps({"format": 1, "keys": [{**ENTRY, "sha256": "secret"}]}),
        json.dumps({"format": 1, "keys": [{**ENTRY, "id": 7}]}),
        json.dumps({"format": 1, "keys": [{**ENTRY, "requests_per_minute": -1}]}),
        json.dumps({"format": 1, "keys": [ENTRY, ENTRY]}),
    ],
)
def test_what_is_no_keys_file_is_refused(keys: KeyFile, content: str) -> None:
    keys.path.parent.mkdir()
    keys.path.write_text(content)
    keys.path.chmod(0o600)
    with pytest.raises(ConfigError, match=r"keys\.json"):
        keys.read()
    with pytest.raises(ConfigError):
        NodeServer(ServerSettings(port=0, keys_file=keys.path, registry_root=keys.path.parent))


@pytest.mark.parametrize(
    ("method", "path", "needed"),
    [
        ("POST", "/v1/chat/completions", "infer"),
        ("GET", "/v1/models", "infer"),
        ("POST", "/v2/models/m/infer", "infer"),
        ("GET", "/v2", "infer"),
        ("POST", "/api/chat", "infer"),
        ("POST", "/api/pull", "deploy"),
        ("POST", "/v2/repository/models/m/load", "deploy"),
        ("POST", "/admin/models", "deploy"),
        ("POST", "/admin/models/m/unload", "deploy"),
        ("GET", "/admin/models", "admin"),
        ("DELETE", "/admin/models/m", "admin"),
        ("POST", "/admin/node", "admin"),
        ("GET", "/admin/anything", "admin"),
        ("GET", "/nowhere", "admin"),
        ("POST", "/v1", "admin"),
    ],
)
def test_what_each_route_needs(method: str, path: str, needed: str) -> None:
    assert scopes_for(method, path) == {KeyScope(needed)}


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", "/v1/models", {"infer"}),
        ("GET", "/admin/node", {"infer", "deploy", "admin"}),
        ("GET", "/admin/models", {"admin"}),
        ("POST", "/admin/models", {"deploy"}),
    ],
)
def test_a_key_does_what_its_scopes_say(
    scoped: tuple[str, KeyFile, dict[str, str]], method: str, path: str, allowed: set[str]
) -> None:
    url, _, secrets = scoped
    for scope, secret in secrets.items():
        answer = httpx.request(method, url + path, headers={"authorization": f"Bearer {secret}"}, json={})
        if scope in allowed:
            assert answer.status_code in (200, 400), answer.text
        else:
            assert answer.status_code == 403
            error = answer.json()["error"]
            assert error["code"] == "missing_scope"
            assert error["type"] == "permission_error"
            assert scope in error["hint"]
            assert secret not in answer.text
    answer = httpx.request(method, url + path, headers={"authorization": "Bearer of-the-setting"}, json={})
    assert answer.status_code in (200, 400)


def test_the_key_may_come_as_anthropics_clients_send_it(
    scoped: tuple[str, KeyFile, dict[str, str]],
) -> None:
    url, _, secrets = scoped
    assert httpx.get(f"{url}/v1/models", headers={"x-api-key": secrets["infer"]}).status_code == 200
    assert httpx.get(f"{url}/v1/models", headers={"x-api-key": "another"}).status_code == 401


def test_a_running_node_follows_the_file(scoped: tuple[str, KeyFile, dict[str, str]]) -> None:
    url, file, secrets = scoped
    key, secret = file.create("late", [KeyScope.INFER])

    def status(secret: str) -> int:
        headers = {"authorization": f"Bearer {secret}"}
        return httpx.get(f"{url}/v1/models", headers=headers).status_code

    assert status(secret) == 200
    file.revoke(key.id)
    assert status(secret) == 401
    good = file.path.read_text()
    file.path.write_text("a slip of the editor")
    assert status(secrets["infer"]) == 200
    assert status(secret) == 401
    file.path.unlink()
    assert status(secrets["infer"]) == 401
    assert status("of-the-setting") == 200
    file.path.touch(0o600)
    file.path.write_text(good)
    assert status(secrets["infer"]) == 200


def test_an_empty_file_lets_nobody_in_and_the_log_says_so(
    keys: KeyFile, caplog: pytest.LogCaptureFixture
) -> None:
    authenticator = Authenticator((), keys)
    with pytest.raises(AuthenticationError):
        authenticator.check("/v1/models", {"host": "localhost"}, "127.0.0.1")
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "nobody is admitted" in caplog.text
    assert f"mecroute keys create --name app --file {keys.path}" in caplog.text


def test_the_log_says_when_the_last_key_is_revoked(keys: KeyFile, caplog: pytest.LogCaptureFixture) -> None:
    key, secret = keys.create("app", [KeyScope.INFER])
    authenticator = Authenticator((), keys)
    authenticator.check("/v1/models", {"authorization": f"Bearer {secret}"}, "127.0.0.1")
    assert not caplog.records
    keys.revoke(key.id)
    with pytest.raises(AuthenticationError):
        authenticator.check("/v1/models", {"authorization": f"Bearer {secret}"}, "127.0.0.1")
    assert "nobody is admitted" in caplog.text


def test_an_empty_file_beside_a_key_of_the_settings_is_no_reason_to_warn(
    keys: KeyFile, caplog: pytest.LogCaptureFixture
) -> None:
    Authenticator(("of-the-setting",), keys)
    assert not caplog.records


def test_keys_open_the_node_to_others(tmp_path: Path) -> None:
    assert ServerSettings(host="0.0.0.0", keys_file=tmp_path / "keys.json").keys_file
