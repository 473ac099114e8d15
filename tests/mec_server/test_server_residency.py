"""Several models on a node that cannot hold them all: on demand, in turn, and never under a request."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import ollama
import pytest

from mecroute_registry.facts import ModelFacts
from mecroute_registry.store import Registry
from mecroute_server.footprint import estimate_gguf
from mecroute_server.run import NodeServer
from mecroute_server.settings import ServerSettings
from support.server import SAYS, running_node
from support.tiny_gguf import write_tiny_gguf

NAMES = ("a", "b", "c")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three models that say the same, with room for very long answers."""
    folder = tmp_path_factory.mktemp("three")
    return [
        write_tiny_gguf(folder / f"{name}.gguf", seed=seed, says=SAYS, context_length=32768)
        for seed, name in enumerate(NAMES)
    ]


def settings_for(files: list[Path], root: Path, room_for: float, **fields: Any) -> ServerSettings:
    """A node with the models in its registry, and memory for so many of them."""
    registry = Registry(root)
    for file in files:
        registry.register(file, ModelFacts(name=file.stem, version="v1", deployment_tiers=("mec",)))
    given = ServerSettings(
        **{"port": 0, "registry_root": root, "context": 32768, "parallel": 2, "threads": 1, **fields}
    )
    # What is measured is never less than what is certain, and for models this small about that.
    one = max(estimate_gguf(file, given, has_gpu=False).ram_bytes for file in files)
    return ServerSettings(
        **{
            **{name: getattr(given, name) for name in ServerSettings.__slots__},
            "memory_budget_bytes": int(one * room_for),
        }
    )


@pytest.fixture
def one_at_a_time(files: list[Path], tmp_path: Path) -> Iterator[NodeServer]:
    with running_node(settings_for(files, tmp_path, 1.05)) as server:
        yield server


def ask(server: NodeServer, model: str, max_tokens: int = len(SAYS), **fields: Any) -> httpx.Response:
    body = {"model": model, "prompt": "x", "temperature": 0, "max_tokens": max_tokens, **fields}
    return httpx.post(f"{server.url}/v1/completions", json=body, timeout=60)


def says(server: NodeServer, model: str) -> str:
    answer = ask(server, model)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["choices"][0]["text"])


def states(server: NodeServer) -> dict[str, Any]:
    return {model["ref"]: model for model in httpx.get(f"{server.url}/admin/node").json()["models"]}


def loaded(server: NodeServer) -> list[str]:
    return [ref for ref, model in states(server).items() if model["state"] == "ready"]


def wait_until(server: NodeServer, condition: Any) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, states(server)
        time.sleep(0.02)


def test_a_request_loads_what_is_registered_and_makes_room(one_at_a_time: NodeServer) -> None:
    for name in ("a", "b:v1", "a:v1"):
        assert says(one_at_a_time, name) == SAYS
        assert loaded(one_at_a_time) == [f"{name[0]}:v1"]
    node = httpx.get(f"{one_at_a_time.url}/admin/node").json()
    assert 0 < node["memory_resident_bytes"] <= node["memory_budget_bytes"]
    there = states(one_at_a_time)
    assert there["a:v1"]["heat"] == pytest.approx(2, abs=0.1)
    assert (there["b:v1"]["state"], there["b:v1"]["on_demand"]) == ("unloaded", True)
    assert there["b:v1"]["detail"] == "made room for a:v1"
    assert there["b:v1"]["load_s"] > 0
    listed = httpx.get(f"{one_at_a_time.url}/v1/models").json()["data"]
    assert [(model["id"], model["mecroute"]["loaded"]) for model in listed] == [
        ("a:v1", True),
        ("b:v1", False),
    ]
    tags = httpx.get(f"{one_at_a_time.url}/api/tags").json()["models"]
    assert all(tag["size"] > 0 and tag["details"]["parameter_size"] for tag in tags)
    samples = httpx.get(f"{one_at_a_time.url}/metrics").text
    assert 'mecroute_model_loads_total{model="a:v1"} 2.0' in samples
    assert 'mecroute_model_evictions_total{model="b:v1",reason="memory"} 1.0' in samples
    assert ask(one_at_a_time, "nope").status_code == 404


def test_requests_that_come_together_share_one_load(one_at_a_time: NodeServer) -> None:
    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(lambda _: says(one_at_a_time, "c"), range(8))) == [SAYS] * 8
    assert one_at_a_time.node.pool.loads == {"c:v1": 1}


def test_a_model_in_use_is_not_taken_away(one_at_a_time: NodeServer) -> None:
    with ThreadPoolExecutor() as threads:
        running = threads.submit(ask, one_at_a_time, "a", 4000)
        wait_until(one_at_a_time, lambda: states(one_at_a_time).get("a:v1", {}).get("running") == 1)
        other = threads.submit(says, one_at_a_time, "b")
        slot = one_at_a_time.node.pool.find("a:v1")
        wait_until(one_at_a_time, lambda: slot.leaving or running.done())
        again = threads.submit(says, one_at_a_time, "a")  # waits for it to come back
        assert running.result().json()["usage"]["completion_tokens"] == 4000
        assert (other.result(), again.result()) == (SAYS, SAYS)


def test_models_that_do_not_fit_together_get_on_in_turn(one_at_a_time: NodeServer) -> None:
    rounds = 6
    done = dict.fromkeys(NAMES, 0)

    def client(name: str) -> None:
        for _ in range(rounds):
            assert says(one_at_a_time, name) == SAYS
            done[name] += 1

    with ThreadPoolExecutor(len(NAMES)) as threads:
        list(threads.map(client, NAMES))
    assert done == dict.fromkeys(NAMES, rounds)
    slots = one_at_a_time.node.pool.slots()
    assert sum(slot.loaded is not None for slot in slots) == 1
    assert not any(slot.waiters or slot.leaving or slot.demand for slot in slots)
    assert all(slot.loaded.in_flight == 0 for slot in slots if slot.loaded is not None)


def test_a_pinned_model_stays_and_what_cannot_fit_is_told_so(one_at_a_time: NodeServer) -> None:
    pinned = httpx.post(f"{one_at_a_time.url}/admin/models/a:v1/pin")
    assert pinned.status_code == 202
    wait_until(one_at_a_time, lambda: loaded(one_at_a_time) == ["a:v1"])
    refused = ask(one_at_a_time, "b")
    assert refused.status_code == 507
    error = refused.json()["error"]
    assert error["code"] == "insufficient_memory"
    assert "a:v1" in error["message"]
    assert "unpin" in error["hint"]
    assert httpx.post(f"{one_at_a_time.url}/admin/models/a:v1/unpin").json()["pinned"] is False
    assert ask(one_at_a_time, "b").status_code == 200
    assert loaded(one_at_a_time) == ["b:v1"]


def test_waiting_is_bounded_and_given_up_with_the_last_who_waits(files: list[Path], tmp_path: Path) -> None:
    settings = settings_for(files, tmp_path, 1.05, load_wait_s=6)
    with running_node(settings) as server, ThreadPoolExecutor() as threads:
        running = threads.submit(ask, server, "a", 20_000)
        wait_until(server, lambda: states(server).get("a:v1", {}).get("running") == 1)
        late = ask(server, "b")
        assert late.status_code == 503
        assert late.headers["retry-after"]
        slot = server.node.pool.find("a:v1")
        wait_until(server, lambda: not slot.leaving and server.node.pool.find("b:v1").demand is None)
        assert not running.done()
        assert ask(server, "a").status_code == 200  # nobody asks it to leave any more
        server.node.pool.find("a:v1").loaded.engine.close()  # type: ignore[union-attr]


def test_a_deadline_is_kept_while_a_model_waits_for_room(one_at_a_time: NodeServer) -> None:
    with ThreadPoolExecutor() as threads:
        running = threads.submit(ask, one_at_a_time, "a", 20_000)
        wait_until(one_at_a_time, lambda: states(one_at_a_time).get("a:v1", {}).get("running") == 1)
        body = {"model": "b", "prompt": "x"}
        headers = {"x-mecroute-deadline-ms": "200"}
        late = httpx.post(f"{one_at_a_time.url}/v1/completions", json=body, headers=headers, timeout=60)
        assert not running.done()  # what it waited for
        assert late.status_code == 504
        error = late.json()["error"]
        assert error["code"] == "deadline_exceeded"
        assert "'b:v1'" in error["message"]
        slot = one_at_a_time.node.pool.find("b:v1")
        wait_until(one_at_a_time, lambda: slot.demand is None and not slot.waiters)
        one_at_a_time.node.pool.find("a:v1").loaded.engine.close()  # type: ignore[union-attr]


def test_which_version_answers_does_not_depend_on_what_is_in_memory(
    one_at_a_time: NodeServer, files: list[Path], tmp_path: Path
) -> None:
    assert says(one_at_a_time, "a") == SAYS
    Registry(tmp_path).register(files[1], ModelFacts(name="a", version="v2", deployment_tiers=("mec",)))
    assert says(one_at_a_time, "a") == SAYS  # nobody has asked for the other yet
    assert says(one_at_a_time, "a:v2") == SAYS
    assert loaded(one_at_a_time) == ["a:v2"]
    refused = ask(one_at_a_time, "a")
    assert refused.status_code == 400
    assert "a:v1, a:v2" in refused.json()["error"]["message"]
    httpx.post(f"{one_at_a_time.url}/admin/models/a:v2/unload").raise_for_status()
    assert ask(one_at_a_time, "a").json()["model"] == "a:v1"


def test_an_operators_unload_holds_until_a_load(one_at_a_time: NodeServer) -> None:
    ask(one_at_a_time, "a")
    httpx.post(f"{one_at_a_time.url}/admin/models/a:v1/unload").raise_for_status()
    assert ask(one_at_a_time, "a").status_code == 503
    assert states(one_at_a_time)["a:v1"]["on_demand"] is False
    httpx.post(f"{one_at_a_time.url}/admin/models/a:v1/load").raise_for_status()
    wait_until(one_at_a_time, lambda: loaded(one_at_a_time) == ["a:v1"])
    assert ask(one_at_a_time, "a").status_code == 200


def test_a_model_that_cannot_be_loaded_says_why_and_is_not_tried_for_every_request(
    one_at_a_time: NodeServer, tmp_path: Path
) -> None:
    ask(one_at_a_time, "a")
    registry = Registry(tmp_path)
    blob = registry.path(registry.get("b:v1"))
    blob.chmod(0o600)
    blob.write_bytes(b"GGUF" + bytes(64))
    first = ask(one_at_a_time, "b")
    assert first.status_code == 422
    assert first.json()["error"]["code"] == "digest_mismatch"
    assert ask(one_at_a_time, "b").status_code == 503
    assert one_at_a_time.node.pool.loads["b:v1"] == 0
    assert ask(one_at_a_time, "a").status_code == 200


def test_an_idle_model_leaves_after_keep_alive(files: list[Path], tmp_path: Path) -> None:
    settings = settings_for(files, tmp_path, 3, keep_alive_s=0.2, pinned=("c:v1",))
    with running_node(settings) as server:
        for name in NAMES:
            ask(server, name)
        wait_until(server, lambda: loaded(server) == ["c:v1"])
        assert states(server)["a:v1"]["detail"] == "idle for 0.2 s"
        assert ask(server, "a").status_code == 200


def test_a_load_waits_for_the_memory_of_what_an_operator_unloads(one_at_a_time: NodeServer) -> None:
    with ThreadPoolExecutor() as threads:
        running = threads.submit(ask, one_at_a_time, "a", 3000)
        wait_until(one_at_a_time, lambda: states(one_at_a_time).get("a:v1", {}).get("running") == 1)
        url = f"{one_at_a_time.url}/admin/models/a:v1/unload"
        unloading = threads.submit(httpx.post, url, timeout=60)
        wait_until(one_at_a_time, lambda: states(one_at_a_time)["a:v1"]["state"] == "unloaded")
        assert says(one_at_a_time, "b") == SAYS  # not 507: there will be room
        assert running.result().json()["usage"]["completion_tokens"] == 3000
        assert unloading.result().status_code == 200


def test_ollamas_keep_alive(files: list[Path], tmp_path: Path) -> None:
    with (
        running_node(settings_for(files, tmp_path, 3)) as server,
        ollama.Client(host=server.url) as client,
    ):
        assert client.generate(model="a", prompt="x", options={"num_predict": 2}).response
        assert client.generate(model="a", keep_alive="-1").done_reason == "load"
        assert client.generate(model="b", prompt="x", options={"num_predict": 2}, keep_alive=0).response
        wait_until(server, lambda: loaded(server) == ["a:v1"])
        assert client.chat(model="a", keep_alive=0).done_reason == "unload"
        wait_until(server, lambda: not loaded(server))
        assert client.generate(model="a", prompt="x", options={"num_predict": 2}, keep_alive="0.05s").done
        wait_until(server, lambda: not loaded(server))
        for wrong in ("soon", "5 m", True, [], "1h-3m", "9" * 99, ""):
            answer = httpx.post(f"{server.url}/api/generate", json={"model": "a", "keep_alive": wrong})
            assert answer.status_code == 400, wrong
            assert "keep_alive" in answer.json()["error"]


def test_what_was_deployed_and_pinned_is_there_after_a_restart(files: list[Path], tmp_path: Path) -> None:
    settings = settings_for(files, tmp_path, 1.05, node="edge/1")
    with running_node(settings) as server:
        for name in NAMES:
            httpx.post(f"{server.url}/admin/models", json={"ref": f"{name}:v1"}).raise_for_status()
            slot = server.node.pool.find(f"{name}:v1")
            wait_until(server, lambda slot=slot: slot.settled.is_set())
        httpx.post(f"{server.url}/admin/models/b:v1/pin").raise_for_status()
        wait_until(server, lambda: loaded(server) == ["b:v1"])
    memory = tmp_path / "nodes" / "edge%2F1.json"
    assert json.loads(memory.read_text())["models"]["b:v1"]["pinned"] is True
    with running_node(settings) as server:
        there = states(server)
        assert sorted(there) == [f"{name}:v1" for name in NAMES]
        assert loaded(server) == ["b:v1"]
        assert there["b:v1"]["pinned"]
        assert httpx.get(f"{server.url}/readyz").status_code == 200
        httpx.post(f"{server.url}/admin/models/b:v1/unpin").raise_for_status()
        assert ask(server, "c").status_code == 200
    memory.write_text('{"version": 1, "models": {"a:v1": {"digest": "nonsense"}}}')
    with running_node(settings) as server:
        assert states(server) == {}
        assert memory.with_name(f"{memory.name}.damaged").exists()
        assert ask(server, "a").status_code == 200


def test_a_model_is_removed_with_its_bytes(one_at_a_time: NodeServer, tmp_path: Path) -> None:
    url = f"{one_at_a_time.url}/admin/models"
    blob = Registry(tmp_path).path(Registry(tmp_path).get("a:v1"))
    httpx.post(url, json={"ref": "a:v1"}).raise_for_status()
    with ThreadPoolExecutor() as threads:
        running = threads.submit(ask, one_at_a_time, "a", 3000)
        wait_until(one_at_a_time, lambda: states(one_at_a_time)["a:v1"]["running"] == 1)
        refused = httpx.delete(f"{url}/a:v1")
        assert (refused.status_code, refused.json()["error"]["code"]) == (409, "model_busy")
        assert httpx.delete(f"{url}/a:v1?drain=maybe").status_code == 400
        removed = httpx.delete(f"{url}/a:v1?drain=true", timeout=60)
        assert removed.json() == {"ref": "a:v1", "removed": True}
        assert running.result().json()["usage"]["completion_tokens"] == 3000
    assert not blob.exists()
    assert "a:v1" not in states(one_at_a_time)
    assert ask(one_at_a_time, "a").status_code == 404
    assert httpx.delete(f"{url}/a:v1").status_code == 404
    assert "a:v1" not in (tmp_path / "nodes" / "node.json").read_text()
    assert httpx.delete(f"{url}/b:v1").status_code == 200  # never loaded, only registered
    assert [model.ref for model in Registry(tmp_path).list()] == ["c:v1"]


def test_a_file_of_the_command_line_is_not_the_nodes_to_delete(files: list[Path], tmp_path: Path) -> None:
    settings = ServerSettings(port=0, registry_root=tmp_path, model_files=(files[0],), threads=1)
    with running_node(settings) as server:
        answer = httpx.delete(f"{server.url}/admin/models/a")
        assert answer.status_code == 400
        assert files[0].exists()


def test_stopping_does_not_wait_for_a_load_that_waits_for_room(one_at_a_time: NodeServer) -> None:
    with ThreadPoolExecutor() as threads:
        running = threads.submit(ask, one_at_a_time, "a", 30_000)
        wait_until(one_at_a_time, lambda: states(one_at_a_time).get("a:v1", {}).get("running") == 1)
        waiting = threads.submit(ask, one_at_a_time, "b")
        slot = one_at_a_time.node.pool.find("a:v1")
        wait_until(one_at_a_time, lambda: slot.leaving)
        one_at_a_time.stop()
        assert waiting.result().status_code == 503
        one_at_a_time.node.pool.find("a:v1").loaded.engine.close()  # type: ignore[union-attr]
        running.result()
