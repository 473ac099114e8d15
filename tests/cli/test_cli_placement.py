"""`mecroute placement plan`: what it shows, and what it has a real node do."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from mecroute.placement.demand import Demand
from mecroute.placement.store import save_demand
from mecroute_registry import Registry
from mecroute_registry.facts import ModelFacts
from mecroute_server.run import NodeServer
from mecroute_server.settings import ServerSettings
from support.server import SAYS, running_node
from support.tiny_gguf import write_tiny_gguf


@pytest.fixture
def node(tmp_path: Path) -> Iterator[NodeServer]:
    registry = Registry(tmp_path / "registry")
    for name in ("busy", "idle"):
        file = write_tiny_gguf(tmp_path / f"{name}.gguf", says=f"{SAYS}{name[0]}")
        registry.register(file, ModelFacts(name=name, version="1", deployment_tiers=("mec",)))
    settings = ServerSettings(
        port=0, node="mec-1", registry_root=registry.root, models=("busy:1", "idle:1"), threads=1, parallel=2
    )
    with running_node(settings) as server:
        yield server


def states(node: NodeServer) -> dict[str, str]:
    return {m["ref"]: m["state"] for m in httpx.get(f"{node.url}/admin/node").json()["models"]}


def config(tmp_path: Path, url: str, *, budget: int | None = None) -> Path:
    path = tmp_path / "mecroute.toml"
    text = (
        f'[registry]\npath = "{tmp_path / "registry"}"\n[state]\npath = "{tmp_path / "state.sqlite3"}"\n'
        f'[[nodes]]\nname = "mec-1"\nurl = "{url}"\n'
    )
    path.write_text(text + (f"[placement]\nnode_budget_bytes = {budget}\n" if budget is not None else ""))
    return path


def test_a_plan_is_shown_and_then_carried_out(
    mecroute: Callable[..., Any], tmp_path: Path, node: NodeServer
) -> None:
    demand = Demand()
    demand.asked_for("busy:1", 50)
    save_demand(tmp_path / "state.sqlite3", demand.models())
    httpx.post(f"{node.url}/admin/models/busy:1/unload").raise_for_status()
    size = max(model.size_bytes for model in Registry(tmp_path / "registry").list()) * 1.25
    told = config(tmp_path, node.url, budget=int(size * 1.5))

    shown = mecroute("placement", "plan", "--json", "--config", told)
    assert shown.code == 0
    (row,) = shown.json["nodes"]
    assert (row["load"], row["unload"]) == (["busy:1"], ["idle:1"]), "there is room for one"
    assert states(node) == {"busy:1": "unloaded", "idle:1": "ready"}, "a plan changes nothing"

    done = mecroute("placement", "plan", "--apply", "--config", told)
    assert done.code == 0
    assert "mec-1: unloaded idle:1" in done.err
    ends_at = time.monotonic() + 30
    while states(node) != {"busy:1": "ready", "idle:1": "unloaded"}:
        assert time.monotonic() < ends_at, states(node)
        time.sleep(0.05)


def test_a_node_that_does_not_answer_is_left_out_and_named(
    mecroute: Callable[..., Any], tmp_path: Path
) -> None:
    answer = mecroute("placement", "plan", "--config", config(tmp_path, "http://127.0.0.1:9"))
    assert answer.code == 0
    assert "left out: node 'mec-1'" in answer.err
    assert "no node answers" in answer.err
