"""The audit log: who tried to change the node, and what came of it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from mecroute.errors import ConfigError
from mecroute_server.audit import AuditLog
from mecroute_server.auth import LOCAL
from mecroute_server.keys import KeyFile, KeyScope
from mecroute_server.settings import ServerSettings
from support.server import running_node


@pytest.fixture(scope="module")
def audited(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path, KeyFile]]:
    root = tmp_path_factory.mktemp("audited")
    file = KeyFile(root / "keys.json")
    settings = ServerSettings(
        port=0,
        keys_file=file.path,
        audit_log=root / "audit.jsonl",
        registry_root=root / "registry",
        model_files=(tiny,),
        threads=1,
        parallel=1,
    )
    with running_node(settings) as server:
        yield server.url, root / "audit.jsonl", file


def entries(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_admin_actions_are_recorded(audited: tuple[str, Path, KeyFile]) -> None:
    url, path, file = audited
    deployer, secret = file.create("ci", [KeyScope.DEPLOY])
    user, other = file.create("app", [KeyScope.INFER])
    with httpx.Client(base_url=url, headers={"authorization": f"Bearer {secret}"}) as http:
        assert http.post("/admin/models/tiny/unload").status_code == 200
        assert http.post("/admin/models/tiny/load").status_code == 202
        assert http.post("/admin/models", json={"ref": "absent:v1"}).status_code == 400
        assert http.get("/admin/node").status_code == 200
        headers = {"authorization": f"Bearer {other}", "x-request-id": "mine"}
        assert http.post("/admin/models/tiny/unload", headers=headers).status_code == 403
        assert http.post("/admin/models", headers={"authorization": "Bearer stranger"}).status_code == 401
        assert http.post("/v1/completions", json={}, headers=headers).status_code == 400
    recorded = entries(path)
    assert [(one["key"], one["action"], one["target"], one["result"], one["status"]) for one in recorded] == [
        (deployer.id, "POST /admin/models/{ref:path}/unload", "tiny", "ok", 200),
        (deployer.id, "POST /admin/models/{ref:path}/load", "tiny", "ok", 202),
        (deployer.id, "POST /admin/models", "absent:v1", "config_error", 400),
        (user.id, "POST /admin/models/tiny/unload", None, "missing_scope", 403),
    ]
    assert recorded[-1]["request_id"] == "mine"
    assert recorded[-1]["client"] == "127.0.0.1"
    assert recorded[0]["key_name"] == "ci"
    assert recorded[0]["time"].endswith("+00:00")
    assert path.stat().st_mode & 0o777 == 0o600
    assert secret not in path.read_text()


def scope(**more: Any) -> dict[str, Any]:
    return {"type": "http", "method": "POST", "path": "/admin/models", "state": {}, **more}


def test_the_log_is_rotated_by_size(tmp_path: Path) -> None:
    log = AuditLog(tmp_path / "audit.jsonl", max_bytes=2000, keep=2)
    for number in range(100):
        log.record(scope(state={"request_id": str(number)}), LOCAL, status=202, code=None)
    log.close()
    files = sorted(tmp_path.iterdir())
    assert [file.name for file in files] == ["audit.jsonl", "audit.jsonl.1", "audit.jsonl.2"]
    assert all(0 < file.stat().st_size <= 2000 for file in files)
    assert all(file.stat().st_mode & 0o777 == 0o600 for file in files)
    numbers = [int(one["request_id"]) for file in reversed(files) for one in entries(file)]
    assert numbers == list(range(numbers[0], 100))


def test_a_line_stays_a_line(tmp_path: Path) -> None:
    log = AuditLog(tmp_path / "audit.jsonl")
    target = 'a\n{"key": "forged"}\u2028' + "x" * 10_000
    log.record(scope(state={"audit_target": target}), LOCAL, status=499, code=None)
    log.close()
    [entry] = entries(tmp_path / "audit.jsonl")
    assert entry["target"] == target[:256]
    assert entry["result"] == "failed"
    assert entry["key"] == "local"


def test_a_log_goes_on_after_a_restart(tmp_path: Path) -> None:
    for _ in range(2):
        log = AuditLog(tmp_path / "audit.jsonl")
        log.record(scope(), LOCAL, status=200, code=None)
        log.close()
    assert len(entries(tmp_path / "audit.jsonl")) == 2


def test_a_log_that_cannot_be_written_is_said_at_start(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="audit"):
        AuditLog(tmp_path / "missing" / "audit.jsonl")
