"""Loading ahead: the likeliest model, while the device is idle, cool and on enough power."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from mecroute import AsyncClient, Client, Config
from mecroute.config import (
    BudgetConfig,
    DeviceConfig,
    PlacementConfig,
    RegistryConfig,
    StateConfig,
    TextModelConfig,
)
from mecroute.context import DeviceState
from mecroute.errors import ModelNotFoundError
from mecroute.placement.demand import Demand
from mecroute.placement.preload import IDLE_S, Preloader, likeliest
from mecroute_registry import Registry
from mecroute_registry.facts import ModelFacts, ModelVersion
from support.tiny_encoder import write_text_classifier
from support.tiny_gguf import write_tiny_gguf


class Clock:
    now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[ModelVersion]:
    folder = tmp_path_factory.mktemp("models")
    registry = Registry(folder / "registry")
    for name in ("often", "seldom"):
        file = write_tiny_gguf(folder / f"{name}.gguf", seed=len(name))
        registry.register(file, ModelFacts(name=name, version="1", deployment_tiers=("device", "mec")))
    edge = write_tiny_gguf(folder / "edge.gguf", seed=99)
    registry.register(edge, ModelFacts(name="edge", version="1", deployment_tiers=("mec",)))
    return registry.list()


def demand() -> Demand:
    counted = Demand(clock=Clock())
    for ref, requests in (("often:1", 20), ("seldom:1", 3), ("edge:1", 500)):
        counted.asked_for(ref, requests)
    return counted


def test_the_likeliest_model_of_the_device_is_taken_if_it_fits(models: list[ModelVersion]) -> None:
    found = likeliest(models, demand(), None)
    assert found is not None
    assert found.ref == "often:1"
    assert likeliest(models, demand(), 1000) is None, "half of what is free must do"
    assert likeliest(models, Demand(), None) is None, "nobody asked for any"


def look(
    models: list[ModelVersion], *, idle_s: float = IDLE_S + 1, loaded: tuple[str, ...] = (), **state: Any
) -> list[str]:
    clock, done = Clock(), []

    async def load(model: ModelVersion) -> None:
        done.append(model.ref)

    preloader = Preloader(
        demand(), models=lambda: models, loaded=lambda: loaded, load=load,
        device=lambda: DeviceState("test", **state), battery_floor=0.15, clock=clock,
    )  # fmt: skip
    preloader.asked()
    clock.now += idle_s
    asyncio.run(preloader.look())
    return done


@pytest.mark.parametrize(
    ("facts", "loads"),
    [
        ({}, True),
        ({"idle_s": IDLE_S - 1}, False),
        ({"loaded": ("other:1",)}, False),
        ({"throttled": True}, False),
        ({"battery": 0.4, "charging": False}, False),
        ({"battery": 0.8, "charging": False}, True),
        ({"battery": 0.1, "charging": True}, True),
        ({"memory_available_bytes": 1000}, False),
    ],
)
def test_only_an_idle_device_that_can_afford_it_loads_ahead(
    models: list[ModelVersion], facts: dict[str, Any], loads: bool
) -> None:
    assert look(models, **facts) == (["often:1"] if loads else [])


def test_a_model_that_cannot_be_loaded_is_reported_and_no_more(
    models: list[ModelVersion], caplog: pytest.LogCaptureFixture
) -> None:
    async def load(model: ModelVersion) -> None:
        raise ModelNotFoundError("its file is gone")

    clock = Clock()
    preloader = Preloader(
        demand(), models=lambda: models, loaded=tuple, load=load, device=lambda: DeviceState("test"),
        battery_floor=0.15, clock=clock,
    )  # fmt: skip
    clock.now += IDLE_S + 1
    assert asyncio.run(preloader.look()) is None
    assert "its file is gone" in caplog.text


def test_budgets_do_not_keep_a_device_from_loading_ahead(tmp_path: Path) -> None:
    async def run() -> None:
        config = Config(
            registry=RegistryConfig(path=tmp_path / "registry"),
            state=StateConfig(path=tmp_path / "state.sqlite3"),
            placement=PlacementConfig(preload=True),
            budgets=(BudgetConfig(name="team", limit_usd=1),),
        )
        async with AsyncClient(config) as client:
            assert (await client._runtime()).pipeline.on_request is not None

    asyncio.run(run())


def test_a_client_with_budgets_and_text_models_loads_ahead_too(tmp_path: Path) -> None:
    registry = Registry(tmp_path / "registry")
    file = write_tiny_gguf(tmp_path / "tiny.gguf")
    registry.register(file, ModelFacts(name="tiny", version="1", deployment_tiers=("device",)))
    moods = TextModelConfig(name="moods", path=write_text_classifier(tmp_path / "moods", ("calm", "angry")))
    config = Config(
        registry=RegistryConfig(path=registry.root),
        device=DeviceConfig(threads=1, text_models=(moods,)),
        state=StateConfig(path=tmp_path / "state.sqlite3"),
        placement=PlacementConfig(preload=True),
        budgets=(BudgetConfig(name="team", limit_usd=1),),
    )
    with Client(config) as client:
        pipeline = client._loop.run(client._async._runtime()).pipeline
        preloader = pipeline.on_request.__self__  # type: ignore[union-attr]
        client.classify("slow", model="moods", labels=["calm", "angry"])
        pipeline.cache.demand.asked_for("tiny:1", 20)
        preloader._asked_at -= IDLE_S + 1
        # A classifier in memory is no reason to leave a language model out.
        assert client._loop.run(preloader.look()) == "tiny:1"
        primary = client.route(messages=[{"role": "user", "content": "Hello"}]).primary
        assert primary is not None
        assert not primary.cold
