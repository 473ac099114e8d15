"""A server starts with what it needs or not at all, says when, and stops without losing answers."""

from __future__ import annotations

import json
import signal
import socket
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from mecroute.errors import ConfigError, InvalidModelFileError, UsageError
from mecroute_registry.facts import ModelFacts
from mecroute_registry.store import Registry
from mecroute_server.run import NodeServer, listen
from mecroute_server.settings import ServerSettings
from support.server import SAYS, running_node, running_server, server_process


def test_what_is_deployed_and_pinned_survives_a_kill(tiny: Path, tmp_path: Path) -> None:
    registry = Registry(tmp_path)
    for name in ("a", "b"):
        registry.register(tiny, ModelFacts(name=name, version="v1", deployment_tiers=("mec",)))
    with server_process(tmp_path) as (process, url):
        for name in ("a", "b"):
            httpx.post(f"{url}/admin/models", json={"ref": f"{name}:v1"}).raise_for_status()
            deadline = time.monotonic() + 30
            while httpx.get(f"{url}/admin/models/{name}:v1").json()["state"] != "ready":
                assert time.monotonic() < deadline
                time.sleep(0.02)
        httpx.post(f"{url}/admin/models/b:v1/pin").raise_for_status()
        process.kill()  # the moment it has answered
        process.wait(30)
    with server_process(tmp_path) as (_, url):
        there = {model["ref"]: model for model in httpx.get(f"{url}/admin/models").json()["models"]}
        assert {ref: model["pinned"] for ref, model in there.items()} == {"a:v1": False, "b:v1": True}
        ask = {"model": "a", "prompt": "x", "temperature": 0, "max_tokens": len(SAYS)}
        answer = httpx.post(f"{url}/v1/completions", json=ask, timeout=60).json()
        assert answer["choices"][0]["text"] == SAYS


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_a_signal_lets_running_answers_finish(
    endless: Path, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    ask = {
        "model": "endless",
        "messages": [{"role": "user", "content": "hi"}],
        "temperature": 0,
        "max_tokens": 250 * len(SAYS),
        "stream": True,
    }
    with (
        server_process(tmp_path, endless) as (process, url),
        httpx.Client(base_url=url, timeout=60) as http,
        http.stream("POST", "/v1/chat/completions", json=ask) as answer,
    ):
        lines = answer.iter_lines()
        events = [next(lines)]
        process.send_signal(number)
        events += [line for line in lines if line]
        assert events[-1] == "data: [DONE]"
        text = "".join(
            json.loads(event.removeprefix("data: "))["choices"][0]["delta"].get("content") or ""
            for event in events[:-1]
        )
        assert text == SAYS * 250
        out, err = process.communicate(timeout=30)
        # Python itself turns the KeyboardInterrupt that `serve` raises into death by SIGINT.
        assert process.returncode == (code if code == 0 else -signal.SIGINT)
        assert out == ""
        assert ("KeyboardInterrupt" in err) == (code == 130)


def test_readiness_goes_first(endless: Path, tmp_path: Path) -> None:
    ask: dict[str, Any] = {"model": "endless", "prompt": "x", "temperature": 0}
    with (
        server_process(tmp_path, endless, drain_delay_s=2, parallel=2) as (process, url),
        httpx.Client(base_url=url, timeout=60) as http,
        http.stream("POST", "/v1/completions", json={**ask, "max_tokens": 3000, "stream": True}) as running,
    ):
        lines = running.iter_lines()
        next(lines)
        assert httpx.get(f"{url}/readyz").status_code == 200
        process.send_signal(signal.SIGTERM)
        while (answer := httpx.get(f"{url}/readyz")).status_code == 200:
            time.sleep(0.01)
        assert answer.json() == {
            "status": "not_ready",
            "reason": "the server is stopping",
            "models": ["endless"],
        }
        # A balancer that has not noticed yet may still send: on a connection of its own, and it is answered.
        late = httpx.post(f"{url}/v1/completions", json={**ask, "max_tokens": 3})
        assert late.status_code == 200
        while True:
            try:
                httpx.get(f"{url}/healthz")
            except httpx.TransportError:
                break
            time.sleep(0.05)
        assert [line for line in lines if line][-1] == "data: [DONE]"
        process.communicate(timeout=30)
        assert process.returncode == 0


def test_work_that_comes_while_answers_finish_is_refused(endless: Path, tmp_path: Path) -> None:
    ask: dict[str, Any] = {"model": "endless", "prompt": "x", "temperature": 0}
    settings = ServerSettings(
        port=0, registry_root=tmp_path, model_files=(endless,), context=32768, parallel=2, threads=1
    )
    with running_node(settings) as server:
        slot = server.node.pool.find("endless")
        server.node.stop_admitting()
        refused = httpx.post(f"{server.url}/v1/completions", json={**ask, "max_tokens": 3})
        assert refused.status_code == 503
        assert refused.json()["error"]["code"] == "node_not_ready"
        assert "stopping" in refused.json()["error"]["message"]
        assert slot.loaded is not None
        assert slot.loaded.engine.stats().running == 0


def test_a_stop_that_takes_too_long_ends_answers(endless: Path, tmp_path: Path) -> None:
    settings = ServerSettings(
        port=0,
        registry_root=tmp_path,
        model_files=(endless,),
        context=65536,
        parallel=1,
        threads=1,
        shutdown_grace_s=1,
    )
    ask = {"model": "endless", "prompt": "x", "temperature": 0, "max_tokens": 60_000, "stream": True}
    with running_node(settings) as server, httpx.Client(base_url=server.url, timeout=60) as http:
        with http.stream("POST", "/v1/completions", json=ask) as answer:
            lines = answer.iter_lines()
            next(lines)
            server.stop()
            rest: list[str] = []
            rest.extend(line for line in lines if line)
        assert "data: [DONE]" not in rest
        assert json.loads(rest[-1].removeprefix("data: "))["error"]["code"] == "tier_unreachable"


def test_a_port_in_use_is_said_before_anything_loads(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        settings = ServerSettings(port=port, registry_root=tmp_path, model_files=(tmp_path / "missing.gguf",))
        with pytest.raises(UsageError, match=f"port {port} on 127.0.0.1 is in use") as caught:
            NodeServer(settings)
        assert "--port" in (caught.value.hint or "")


def test_two_servers_cannot_share_a_port(tmp_path: Path) -> None:
    first = listen(ServerSettings(port=0))
    with first, pytest.raises(UsageError, match="in use"):
        listen(ServerSettings(port=first.getsockname()[1]))


def test_an_address_of_another_machine() -> None:
    with pytest.raises(ConfigError, match=r"192\.0\.2\.1"):
        listen(ServerSettings(host="192.0.2.1", api_keys=("k",)))
    with pytest.raises(ConfigError, match="no-such-host"):
        listen(ServerSettings(host="no-such-host.invalid", api_keys=("k",)))


def test_ipv6(tmp_path: Path) -> None:
    with running_server(ServerSettings(host="::1", port=0, registry_root=tmp_path)) as url:
        assert url.startswith("http://[::1]:")
        assert httpx.get(f"{url}/v1/models").json()["data"] == []


def test_a_damaged_model_file_is_said_before_listening(tiny: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(tiny.read_bytes()[:100_000])
    for path in (cut, tmp_path / "missing.gguf"):
        with pytest.raises(InvalidModelFileError, match=path.name):
            NodeServer(ServerSettings(port=0, registry_root=tmp_path, model_files=(path,)))


def test_an_unknown_store_is_said_before_listening(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="ftp://"):
        NodeServer(ServerSettings(port=0, registry_root=tmp_path, store_uri="ftp://models"))


def test_a_server_whose_only_model_is_missing_stops(tmp_path: Path) -> None:
    settings = ServerSettings(port=0, registry_root=tmp_path, models=("absent:v1",))
    with pytest.raises(ConfigError, match="absent:v1"), running_node(settings):
        pass


def test_a_server_that_can_load_one_of_its_models_starts(tiny: Path, tmp_path: Path) -> None:
    settings = ServerSettings(
        port=0, registry_root=tmp_path, model_files=(tiny,), models=("absent:v1",), parallel=1, threads=1
    )
    with running_server(settings) as url:
        models = {model["ref"]: model for model in httpx.get(f"{url}/admin/models").json()["models"]}
        assert models["tiny"]["state"] == "ready"
        assert models["absent:v1"]["state"] == "failed"
        assert models["absent:v1"]["error"]["code"] == "config_error"
        assert httpx.get(f"{url}/readyz").status_code == 200


def test_ready_means_that_something_can_serve(tmp_path: Path) -> None:
    with running_server(ServerSettings(port=0, registry_root=tmp_path)) as url:
        assert httpx.get(f"{url}/healthz").json()["status"] == "ok"
        answer = httpx.get(f"{url}/readyz")
        assert answer.status_code == 503
        assert answer.json()["reason"] == "no model has been deployed to this node"


def test_the_ready_callback_comes_once_the_models_are_loaded(tiny: Path, tmp_path: Path) -> None:
    seen: list[tuple[str, list[str]]] = []
    settings = ServerSettings(port=0, registry_root=tmp_path, model_files=(tiny,), parallel=1, threads=1)
    with NodeServer(settings) as server:

        def on_ready(ready: NodeServer) -> None:
            seen.append((ready.url, [slot.ref for slot in ready.node.pool.ready()]))
            ready.stop()

        thread = threading.Thread(target=server.run, kwargs={"on_ready": on_ready})
        thread.start()
        thread.join(60)
        assert not thread.is_alive()
        assert seen == [(server.url, ["tiny"])]


def test_nothing_listens_after_the_end(tmp_path: Path) -> None:
    with running_server(ServerSettings(port=0, registry_root=tmp_path)) as url:
        assert httpx.get(f"{url}/healthz").status_code == 200
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{url}/healthz")
