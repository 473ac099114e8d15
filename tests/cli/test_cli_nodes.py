"""Talking to nodes: what a real HTTP server answers, and what a person reads then."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from mecroute_cli.stack.processes import free_port

REPORT = {
    "node": "mec-1",
    "zone": "z",
    "version": "0.1",
    "hardware": "linux-x86_64-2c",
    "cpu_count": 2,
    "cpu_percent": 12.5,
    "memory_total_bytes": 8_000_000_000,
    "memory_available_bytes": 4_000_000_000,
    "models": [{"ref": "m:q8_0", "state": "ready", "running": 1, "queued": 2}],
}


@contextmanager
def _node(answers: Callable[[str, str, Any], tuple[int, Any]]) -> Iterator[str]:
    """A real HTTP server that answers as told: (method, path, body) to (status, JSON or bytes)."""

    class Handler(BaseHTTPRequestHandler):
        def _answer(self) -> None:
            length = int(self.headers.get("content-length") or 0)
            body = json.loads(self.rfile.read(length)) if length else None
            status, content = answers(self.command, self.path, body)
            payload = content if isinstance(content, bytes) else json.dumps(content).encode()
            self.send_response(status)
            self.send_header("content-length", str(len(payload)))
            self.end_headers()
            self.wfile.write(payload)

        do_GET = do_POST = do_DELETE = _answer

        def log_message(self, format: str, *args: Any) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def config(tmp_path: Path) -> Callable[[str], Path]:
    def write(url: str) -> Path:
        path = tmp_path / "mecroute.toml"
        path.write_text(f'[[nodes]]\nname = "mec-1"\nurl = "{url}"\n')
        return path

    return write


def test_nodes_list_shows_models_queue_and_memory(
    mecroute: Callable[..., Any], config: Callable[[str], Path]
) -> None:
    with _node(lambda *_: (200, REPORT)) as url:
        table = mecroute("nodes", "list", "--config", config(url))
        data = mecroute("nodes", "list", "--config", config(url), "--json").json["nodes"]

    assert table.code == 0
    assert "m:q8_0" in table.out
    assert "4.0 GB" in table.out
    assert data[0]["state"] == "ready"
    assert (data[0]["running"], data[0]["queued"]) == (1, 2)


@pytest.mark.parametrize(
    ("status", "content", "state", "said"),
    [
        (401, {"error": {"message": "no key"}}, "refusing", "no key"),
        (200, b"<html>hello</html>", "refusing", "no JSON"),
        (500, b"oops", "refusing", "500"),
        (200, {"node": 3}, "refusing", "cannot be read"),
        (200, [], "refusing", "cannot be read"),
    ],
)
def test_nodes_list_says_what_is_wrong_with_a_node(
    status: int,
    content: Any,
    state: str,
    said: str,
    mecroute: Callable[..., Any],
    config: Callable[[str], Path],
) -> None:
    with _node(lambda *_: (status, content)) as url:
        answer = mecroute("nodes", "list", "--config", config(url))

    assert answer.code == 0
    assert state in answer.out
    assert said in answer.err


def test_nodes_list_marks_a_dead_node(mecroute: Callable[..., Any], config: Callable[[str], Path]) -> None:
    answer = mecroute("nodes", "list", "--config", config(f"http://127.0.0.1:{free_port()}"))

    assert answer.code == 0
    assert "unreachable" in answer.out
    assert "connection refused" in answer.err


def test_deploy_to_an_unknown_node_lists_the_known(
    mecroute: Callable[..., Any], config: Callable[[str], Path]
) -> None:
    answer = mecroute("deploy", "m:v1", "--to", "mec-9", "--config", config("http://127.0.0.1:1"))

    assert answer.code == 1
    assert "mec-9" in answer.err
    assert "known: mec-1" in answer.err


def test_deploy_to_a_dead_node_says_so(mecroute: Callable[..., Any], config: Callable[[str], Path]) -> None:
    answer = mecroute(
        "deploy", "m:v1", "--to", "mec-1", "--config", config(f"http://127.0.0.1:{free_port()}")
    )

    assert answer.code == 1
    assert "connection refused" in answer.err
    assert "mecroute serve --node mec-1" in answer.err


def test_deploy_follows_the_node_until_it_is_ready(
    mecroute: Callable[..., Any], config: Callable[[str], Path]
) -> None:
    states = iter(["pulling", "pulling", "verifying", "loading", "ready"])
    asked: list[Any] = []

    def answers(method: str, path: str, body: Any) -> tuple[int, Any]:
        if method == "POST":
            asked.append((path, body))
            return 202, {"ref": "m:v1", "state": "pulling"}
        model = {"ref": "m:v1", "state": next(states, "ready"), "progress": {"done": 5, "total": 10}}
        return 200, {**REPORT, "models": [model]}

    with _node(answers) as url:
        answer = mecroute("deploy", "m:v1", "--to", "mec-1", "--config", config(url))

    assert answer.code == 0
    assert asked == [("/admin/models", {"ref": "m:v1", "digest": None})]
    assert "deployed" in answer.out
    noted = [
        line.rpartition(": ")[2] for line in answer.err.splitlines() if line.startswith("deploying m:v1")
    ]
    assert noted[:4] == ["pulling", "verifying", "loading", "ready"]


def test_a_deployment_that_fails_says_why(
    mecroute: Callable[..., Any], config: Callable[[str], Path]
) -> None:
    def answers(method: str, path: str, body: Any) -> tuple[int, Any]:
        if method == "POST":
            return 202, {}
        return 200, {**REPORT, "models": [{"ref": "m:v1", "state": "failed", "detail": "digest mismatch"}]}

    with _node(answers) as url:
        answer = mecroute("deploy", "m:v1", "--to", "mec-1", "--config", config(url), "--json")

    assert answer.code == 1
    assert "digest mismatch" in answer.json["error"]["message"]


def test_a_deployment_that_takes_too_long_says_where_it_is(
    mecroute: Callable[..., Any], config: Callable[[str], Path]
) -> None:
    def answers(method: str, path: str, body: Any) -> tuple[int, Any]:
        return 200, {**REPORT, "models": [{"ref": "m:v1", "state": "loading"}]}

    with _node(answers) as url:
        answer = mecroute("deploy", "m:v1", "--to", "mec-1", "--timeout", "1", "--config", config(url))

    assert answer.code == 1
    assert "state: loading" in answer.err
    assert "mecroute nodes list" in answer.err


def test_models_of_a_node_are_loaded_pinned_and_removed(
    mecroute: Callable[..., Any], config: Callable[[str], Path]
) -> None:
    asked: list[tuple[str, str]] = []

    def answers(method: str, path: str, body: Any) -> tuple[int, Any]:
        asked.append((method, path))
        if method == "DELETE":
            return 200, {"ref": "m:v1", "removed": True}
        return 202, {"ref": "m:v1", "state": "loading", "pinned": path.endswith("/pin")}

    with _node(answers) as url:
        where = ("m:v1", "--on", "mec-1", "--config", config(url))
        for verb in ("load", "unload", "pin", "unpin"):
            answer = mecroute("nodes", verb, *where, "--json")
            assert answer.code == 0
            assert answer.json["model"]["pinned"] == (verb == "pin")
        assert mecroute("nodes", "remove", *where).code != 0  # nobody is there to say yes
        removed = mecroute("nodes", "remove", *where, "--drain", "--yes")
    assert removed.code == 0
    assert "m:v1 from mec-1" in removed.out
    assert asked == [
        *(("POST", f"/admin/models/m:v1/{verb}") for verb in ("load", "unload", "pin", "unpin")),
        ("DELETE", "/admin/models/m:v1?drain=true"),
    ]


def test_a_node_that_refuses_to_remove_says_why(
    mecroute: Callable[..., Any], config: Callable[[str], Path]
) -> None:
    error = {"error": {"message": "'m:v1' answers 2 requests", "hint": "drain"}}
    with _node(lambda *_: (409, error)) as url:
        answer = mecroute("nodes", "remove", "m:v1", "--on", "mec-1", "--yes", "--config", config(url))
    assert answer.code == 1
    assert "answers 2 requests" in answer.err
