"""Following a node: by long-poll and by the load in its answers, never by a storm of polls."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from mecroute import AsyncClient, Config
from mecroute.agents import MonitorAgent, ResourceAgent
from mecroute.config import DeviceConfig, NodeConfig, RegistryConfig, StateConfig
from mecroute.network.links import Links
from mecroute.nodes.fleet import Fleet
from mecroute.nodes.load_header import LOAD_HEADER, ModelLoad
from mecroute.nodes.report import NodeReport
from mecroute.nodes.watch import SPACING_S, NodeWatch
from mecroute.state.store import StateStore
from mecroute.target import TargetState
from mecroute_registry import Registry
from mecroute_server.run import NodeServer
from mecroute_server.settings import ServerSettings
from support.server import SAYS, running_node
from support.tiny_gguf import write_tiny_gguf

HELLO = [{"role": "user", "content": "Hi"}]


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NodeServer]:
    folder = tmp_path_factory.mktemp("node")
    model = write_tiny_gguf(folder / "tiny.gguf", says=SAYS)
    settings = ServerSettings(
        port=0, node="edge-1", registry_root=folder / "registry", model_files=(model,), threads=1, parallel=4
    )
    with running_node(settings) as server:
        yield server


def ask(url: str, **headers: str) -> httpx.Response:
    return httpx.get(url, headers={k.replace("_", "-"): v for k, v in headers.items()}, timeout=10)


def test_every_answer_tells_the_load_and_the_time_it_took(node: NodeServer) -> None:
    body = {"model": "tiny", "messages": HELLO, "max_tokens": 4}
    answer = httpx.post(f"{node.url}/v1/chat/completions", json=body, timeout=30)
    load = ModelLoad.parse(answer.headers[LOAD_HEADER])
    assert load is not None
    assert load.parallel == 4
    assert answer.headers["server-timing"].startswith("total;dur=")
    assert LOAD_HEADER not in httpx.get(f"{node.url}/healthz").headers


def test_a_poll_with_the_known_state_waits_and_ends_with_nothing_new(node: NodeServer) -> None:
    tag = ask(f"{node.url}/admin/node").headers["etag"]
    begun = time.monotonic()
    again = ask(f"{node.url}/admin/node?wait_s=0.4", if_none_match=tag)
    assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", tag)
    assert time.monotonic() - begun >= 0.4
    assert ask(f"{node.url}/admin/node?wait_s=5", if_none_match='"another"').status_code == 200


def test_a_poll_is_answered_as_soon_as_something_changes(node: NodeServer) -> None:
    """The wait is far longer than the test may take: only the change can end it."""

    async def run() -> None:
        async with httpx.AsyncClient(base_url=node.url, timeout=100) as http:
            tag = (await http.get("/admin/node")).headers["etag"]
            waiting = asyncio.create_task(
                http.get("/admin/node?wait_s=59", headers={"if-none-match": tag}), name="poll"
            )
            await asyncio.sleep(0.1)
            await http.post("/admin/models/tiny/unload")
            told = await waiting
            assert told.status_code == 200
            assert told.json()["models"][0]["state"] == "unloaded"
            await http.post("/admin/models/tiny/load")
            for _ in range(1200):
                if (await http.get("/admin/node")).json()["models"][0]["state"] == "ready":
                    return
                await asyncio.sleep(0.05)
            pytest.fail("the model did not come back")

    asyncio.run(run())


@pytest.mark.parametrize("wait_s", ["-1", "61", "soon", "nan", "inf", "1" * 500])
def test_a_wait_that_is_none_is_refused(node: NodeServer, wait_s: str) -> None:
    answer = ask(f"{node.url}/admin/node?wait_s={wait_s}")
    assert answer.status_code == 400
    assert "wait_s" in answer.json()["error"]["message"]


def test_fifty_requests_a_second_fetch_at_most_one_report_a_second(node: NodeServer, tmp_path: Path) -> None:
    """Stated in docs/discovery.md: at most one report per node and second, whatever is asked."""
    config = Config(
        registry=RegistryConfig(path=tmp_path / "registry"),
        device=DeviceConfig(enabled=False),
        state=StateConfig(enabled=False),
        nodes=(NodeConfig(name="edge-1", url=node.url),),
    )

    async def run() -> None:
        async with AsyncClient(config) as client:
            begun = time.monotonic()
            asked = 0
            while (spent := time.monotonic() - begun) < 3:
                decision = await client.route(messages=HELLO)
                assert decision.primary is not None
                asked += 1
                await asyncio.sleep(max(0.0, asked / 50 - spent))
            fleet = (await client._runtime()).fleet
            assert fleet is not None
            (watch,) = fleet.watches
            assert watch.fetches <= 1 + spent / SPACING_S
            assert watch.problem is None
            # An answer's own headers are newer than the report.
            await client.chat.completions.create(messages=HELLO, max_tokens=2)
            assert "tiny" in watch._loads
            assert watch.link.rtt_ms is not None

    asyncio.run(run())


def test_a_node_that_dies_and_comes_back_is_noticed() -> None:
    async def run() -> None:
        answers = iter(
            [httpx.Response(200, json={"node": "n"}), httpx.ConnectError("no"), httpx.Response(500)]
        )

        def handler(request: httpx.Request) -> httpx.Response:
            answer = next(answers, httpx.Response(200, json={"node": "n", "zone": "z"}))
            if isinstance(answer, Exception):
                raise answer
            return answer

        async with httpx.AsyncClient(transport=httpx.MockTransport(handler)) as http:
            watch = NodeWatch(NodeConfig(name="n", url="http://n"), lambda: http, links=Links())
            seen = []
            for _ in range(4):
                await watch.probe()
                seen.append(watch.problem)
            assert seen[0] is None
            assert "connection refused" in str(seen[1])
            assert "500" in str(seen[2])
            assert seen[3] is None
            assert watch.report is not None
            assert watch.report.zone == "z"

    asyncio.run(run())


def test_a_node_that_tells_of_no_change_tells_no_load() -> None:
    """What was left of prompts when the report came is done by and by, whatever else is as it was."""
    model = {"ref": "m:1", "state": "ready", "running": 1, "prefill_left_tokens": 3000}
    answers = iter([httpx.Response(200, json={"node": "n", "models": [model]}, headers={"etag": '"1"'})])

    def handler(request: httpx.Request) -> httpx.Response:
        return next(answers, httpx.Response(304))

    async def run() -> None:
        now = 100.0
        async with httpx.AsyncClient(transport=httpx.MockTransport(handler)) as http:
            watch = NodeWatch(NodeConfig(name="n", url="http://n"), lambda: http, clock=lambda: now)
            await watch._fetch()
            assert watch.told_at("m:1") == 100
            now += 20
            await watch._fetch()
            assert watch.fetches == 2
            assert watch.problem is None
            assert watch.told_at("m:1") == 100
            watch.heard("m:1", ModelLoad(1, 0, 4, prefill_left_tokens=500))
            assert watch.told_at("m:1") == 120

    asyncio.run(run())


def test_a_report_s_region_counts_only_where_it_is_trusted() -> None:
    async def run() -> None:
        def handler(request: httpx.Request) -> httpx.Response:
            return httpx.Response(200, json={"node": "n", "region": "eu-1"})

        async with httpx.AsyncClient(transport=httpx.MockTransport(handler)) as http:
            for trusts, expected in ((True, "eu-1"), (False, None)):
                watch = NodeWatch(NodeConfig(name="n", url="http://n"), lambda: http, trusts_region=trusts)
                assert watch.touch()
                await watch.wait()
                assert watch.region == expected
                await watch.aclose()

    asyncio.run(run())


def test_targets_follow_whatever_is_learned_of_a_node(tmp_path: Path) -> None:
    """They are kept until something changes: each thing that can change must be seen in them."""
    model = {
        "ref": "m:1", "state": "ready", "context_length": 4096, "parallel": 2, "running": 0,
        "prefill_tokens_per_s": 100.0, "decode_tokens_per_s": 10.0,
    }  # fmt: skip
    answers: list[httpx.Response] = []

    def handler(request: httpx.Request) -> httpx.Response:
        return answers.pop(0)

    async def run() -> None:
        config = Config(nodes=(NodeConfig(name="n", url="http://n.example"),))
        async with httpx.AsyncClient(transport=httpx.MockTransport(handler)) as http:
            fleet = Fleet(config, lambda _: http, Links(), on_join=lambda _: None, on_leave=lambda _: None)
            monitor = MonitorAgent(StateStore(tmp_path / "s.sqlite3", enabled=False))
            agent = ResourceAgent(config, Registry(tmp_path / "registry"), fleet, monitor, loads=dict)
            (watch,) = fleet.watches

            def state() -> TargetState:
                (found,) = agent.targets()
                assert found == agent.targets()[0], "asking twice changes nothing"
                return found

            assert state().unavailable == "it has not reported yet"
            answers.append(httpx.Response(200, json={"node": "n", "models": [model]}))
            await watch.probe()
            assert (state().target.model, state().running, state().unavailable) == ("m:1", 0, None)
            watch.heard("m:1", ModelLoad(2, 1, 2, 200.0, 20.0))
            assert (state().running, state().queued, state().decode_tokens_per_s) == (2, 1, 20.0)
            watch.left("m:1")
            assert state().running == 1
            monitor.failed("mec/n/m:1", "no answer")
            assert "no answer" in (state().unavailable or "")
            assert state().availability < 1
            answers.append(httpx.Response(500))
            await watch.probe()
            assert "500" in (state().unavailable or "")
            answers.append(httpx.Response(200, json={"node": "n", "models": [{**model, "ref": "other:1"}]}))
            await watch.probe()
            assert (state().target.model, state().running, state().unavailable) == ("other:1", 0, None)

    asyncio.run(run())


@pytest.mark.parametrize("with_model", [True, False])
def test_a_node_that_stops_lets_go_of_who_waits(tmp_path: Path, with_model: bool) -> None:
    files = (write_tiny_gguf(tmp_path / "tiny.gguf", says=SAYS),) if with_model else ()
    settings = ServerSettings(
        port=0, node="n", registry_root=tmp_path / "r", model_files=files, threads=1, shutdown_grace_s=50
    )

    async def run() -> None:
        with running_node(settings) as server:
            async with httpx.AsyncClient(base_url=server.url, timeout=100) as http:
                tag = (await http.get("/admin/node")).headers["etag"]
                poll = asyncio.create_task(http.get("/admin/node?wait_s=59", headers={"if-none-match": tag}))
                await asyncio.sleep(0.2)
                server.stop()
                answer = await asyncio.wait_for(poll, 30)
                assert answer.status_code == 200

    asyncio.run(run())


def test_a_newer_node_s_tasks_do_not_make_its_report_unreadable() -> None:
    model = {"ref": "m:1", "state": "ready", "tasks": ["embed", "paint"], "colour": "red"}
    report = NodeReport.model_validate({"node": "n", "models": [model]})
    assert report.models[0].tasks == ("embed",)
