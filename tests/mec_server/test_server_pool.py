"""Loading and unloading under requests: whoever may wait does, and nothing in use is taken away."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from mecroute.nodes.report import ModelReport, NodeReport
from mecroute_server.run import NodeServer
from mecroute_server.settings import ServerSettings
from support.server import SAYS, running_node


@pytest.fixture
def server(endless: Path, tmp_path: Path) -> Iterator[NodeServer]:
    settings = ServerSettings(
        port=0,
        registry_root=tmp_path,
        model_files=(endless,),
        context=32768,
        parallel=2,
        threads=1,
        max_queue=1,
        load_wait_s=30,
    )
    with running_node(settings) as server:
        yield server


def ask(server: NodeServer, max_tokens: int = len(SAYS), **fields: Any) -> httpx.Response:
    body = {"model": "endless", "prompt": "x", "temperature": 0, "max_tokens": max_tokens, **fields}
    return httpx.post(f"{server.url}/v1/completions", json=body, timeout=60)


def state(server: NodeServer) -> dict[str, Any]:
    return dict(httpx.get(f"{server.url}/admin/models/endless").json())


def wait_for(server: NodeServer, **wanted: Any) -> None:
    deadline = time.monotonic() + 30
    while any(state(server)[name] != value for name, value in wanted.items()):
        assert time.monotonic() < deadline, state(server)
        time.sleep(0.02)


def test_unloading_waits_for_requests_and_refuses_new_ones(server: NodeServer) -> None:
    with ThreadPoolExecutor() as threads:
        running = threads.submit(ask, server, 3000)
        wait_for(server, running=1)
        unloading = threads.submit(httpx.post, f"{server.url}/admin/models/endless/unload", timeout=60)
        wait_for(server, state="unloaded")
        assert ask(server).status_code == 503
        assert running.result().json()["usage"]["completion_tokens"] == 3000
        assert unloading.result().json()["state"] == "unloaded"
    assert httpx.get(f"{server.url}/readyz").status_code == 503
    assert httpx.get(f"{server.url}/v1/models/endless").status_code == 404


def test_a_request_waits_for_a_model_that_is_being_loaded(server: NodeServer) -> None:
    httpx.post(f"{server.url}/admin/models/endless/unload", timeout=60)
    # The one thread that loads is kept busy, so that the model stays `loading` for as long as the test wants.
    released = threading.Event()
    server.node.pool._loader.submit(released.wait, 60)
    with ThreadPoolExecutor() as threads:
        try:
            for _ in range(2):  # the second finds the first under way
                answer = httpx.post(f"{server.url}/admin/models/endless/load")
                assert (answer.status_code, answer.json()["state"]) == (202, "loading")
            waiting = threads.submit(ask, server)
            deadline = time.monotonic() + 30
            while server.node.pool._waiting == 0:
                assert time.monotonic() < deadline
                time.sleep(0.01)
            assert ask(server).status_code == 429  # max_queue is 1
        finally:
            released.set()
        assert waiting.result().json()["choices"][0]["text"] == SAYS
    assert state(server)["state"] == "ready"


def test_stopping_refuses_those_who_wait(server: NodeServer) -> None:
    httpx.post(f"{server.url}/admin/models/endless/unload", timeout=60)
    released = threading.Event()
    server.node.pool._loader.submit(released.wait, 60)
    with ThreadPoolExecutor() as threads:
        try:
            httpx.post(f"{server.url}/admin/models/endless/load")
            waiting = threads.submit(ask, server)
            deadline = time.monotonic() + 30
            while server.node.pool._waiting == 0:
                assert time.monotonic() < deadline
                time.sleep(0.01)
            server.stop()
            while not server.node.pool.closing:
                time.sleep(0.01)
        finally:
            released.set()
        answer = waiting.result()
    assert answer.status_code == 503
    assert answer.headers["retry-after"]


def test_the_node_describes_itself(server: NodeServer) -> None:
    node = httpx.get(f"{server.url}/admin/node").json()
    # What clients read must be there: they fill in what is not, and would then route by assumptions.
    assert set(node) >= set(NodeReport.model_fields)
    assert NodeReport.model_validate(node).models[0].state == "ready"
    assert 0 < node["memory_available_bytes"] <= node["memory_total_bytes"]
    assert 0 <= node["cpu_percent"] <= 100
    (model,) = node["models"]
    assert set(model) >= set(ModelReport.model_fields)
    assert model["state"] == "ready"
    assert model["prefill_tokens_per_s"] > 0


def test_metrics_count_what_was_answered(server: NodeServer) -> None:
    ask(server)
    ask(server, stream=True)
    httpx.get(f"{server.url}/no/such/path")
    lines = httpx.get(f"{server.url}/metrics").text.splitlines()
    samples = {
        line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines if not line.startswith("#")
    }
    assert samples['mecroute_requests_total{model="endless",route="/v1/completions",status="200"}'] == 2
    assert samples['mecroute_requests_total{model="",route="unmatched",status="404"}'] == 1
    assert samples['mecroute_completion_tokens_total{model="endless"}'] == 2 * len(SAYS)
    assert samples['mecroute_ttft_seconds_count{model="endless"}'] == 2
    assert samples['mecroute_model_state{model="endless",state="ready"}'] == 1
    assert samples['mecroute_kv_total_tokens{model="endless"}'] == 2 * 32768


def test_clients_can_read_of_a_model_that_is_not_loaded(server: NodeServer) -> None:
    httpx.post(f"{server.url}/admin/models/endless/unload", timeout=60).raise_for_status()
    (model,) = NodeReport.model_validate_json(httpx.get(f"{server.url}/admin/node").content).models
    assert (model.state, model.parallel, model.context_length) == ("unloaded", None, None)
