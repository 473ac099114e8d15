"""Puts the agents, the tiers and the pipeline together from a configuration."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from mecroute.agents import CacheAgent, ContextAgent, MonitorAgent, ResourceAgent, RouterAgent
from mecroute.agents.resource import DeviceLoad
from mecroute.budgets.gate import BudgetGate, ledger_path
from mecroute.budgets.ledger import Ledger
from mecroute.budgets.tier import BudgetedTier
from mecroute.config.schema import Config, NodeConfig
from mecroute.device.probe import DeviceProbe, Probes
from mecroute.errors import ConfigError
from mecroute.evidence.explore import Explorer
from mecroute.evidence.shadow import Shadow
from mecroute.network.health import CloudHealth
from mecroute.network.links import Links
from mecroute.pipeline import Pipeline
from mecroute.placement.demand import Demand
from mecroute.placement.keeper import DemandKeeper
from mecroute.predict.difficulty import difficulty_source
from mecroute.predict.topics import Topics
from mecroute.state.store import StateStore, database_path
from mecroute.tiers.base import Tier
from mecroute_registry.facts import Tier as TierName
from mecroute_registry.store import Registry

if TYPE_CHECKING:
    from mecroute.nodes.fleet import Fleet
    from mecroute.tiers.device import DeviceTier
    from mecroute.tiers.http import Endpoint


class Runtime:
    """One client's machinery. Made and used on one event loop."""

    def __init__(self, config: Config, *, device_probes: Sequence[DeviceProbe] = ()) -> None:
        self.registry = Registry(_expanded(config.registry.path))
        self._exits = AsyncExitStack()
        self._store = StateStore(
            database_path(config.state),
            enabled=config.state.enabled,
            max_decisions=config.state.max_decisions,
            max_bytes=config.state.max_bytes,
        )
        monitor = MonitorAgent(self._store, adapt=config.monitor.adapt, cascade=config.router.cascade)
        gate = BudgetGate(
            config.budgets,
            Ledger(ledger_path(self._store.path)),
            watches_prices=config.monitor.shadow_rate > 0,
        )
        self._exits.push_async_callback(gate.aclose)
        demand = Demand()
        keeper: DemandKeeper | None = None
        if config.state.enabled and config.placement.learn:
            keeper = DemandKeeper(self._store.path, demand)
            self._exits.push_async_callback(keeper.aclose)
        cache = CacheAgent(config.cache, demand=demand, on_demand=keeper.counted if keeper else None)
        self._exits.callback(cache.close)
        tiers: dict[TierName, Tier] = {}
        device = self._add_device(config, tiers)
        self.links = Links()
        self._health = CloudHealth()
        self.fleet = self._add_remote(config, tiers)
        if config.budgets:
            # The device is free, whatever is asked of it.
            tiers = {
                name: tier if name == "device" else BudgetedTier(tier, gate) for name, tier in tiers.items()
            }
        shadow = Shadow(config.monitor, tiers, gate, monitor.judged)
        self._exits.push_async_callback(shadow.aclose)
        self.pipeline = Pipeline(
            config,
            context=ContextAgent(
                usual_output_tokens=monitor.usual_output_tokens,
                probes=Probes(device_probes),
                links=self.links,
                network=config.network,
                difficulty=difficulty_source(config.router.predictor),
                topics=_topics(config, device),
            ),
            resource=ResourceAgent(
                config,
                self.registry,
                self.fleet,
                monitor,
                loads=device.loads if device is not None else (lambda: _NOTHING_LOADED),
                links=self.links,
                health=self._health,
            ),
            router=RouterAgent(config.router),
            cache=cache,
            monitor=monitor,
            tiers=tiers,
            gate=gate,
            explorer=Explorer(config.monitor, gate),
            shadow=shadow,
        )
        if device is not None:
            self.pipeline.on_texts = device.warm
        if config.placement.preload and device is not None:
            self._preload(config, demand, device)

    def prepare(self) -> None:
        """Read what the first request would have to wait for: some 15 ms, and no network."""
        self.pipeline.context.prepare()

    async def aclose(self) -> None:
        """Unload models, close connections, write the state."""
        await self._exits.aclose()
        self.pipeline.monitor.close()

    def _add_device(self, config: Config, tiers: dict[TierName, Tier]) -> DeviceTier | None:
        if not config.device.enabled:
            return None
        from mecroute.tiers.device import DeviceTier  # only where a device tier is wanted

        device = DeviceTier(config.device, self.registry)
        self._exits.push_async_callback(device.aclose)
        tiers["device"] = device
        return device

    def _preload(self, config: Config, demand: Demand, device: DeviceTier) -> None:
        from mecroute.placement.preload import Preloader

        preloader = Preloader(
            demand,
            models=self.registry.list,
            loaded=device.language_models,
            load=device.preload,
            device=self.pipeline.context.device_state,
            battery_floor=config.device.battery_floor,
        )
        self.pipeline.on_request = preloader.asked
        task = asyncio.create_task(preloader.run())

        async def stop() -> None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

        self._exits.push_async_callback(stop)

    def _add_remote(self, config: Config, tiers: dict[TierName, Tier]) -> Fleet | None:
        has_nodes = bool(config.nodes or config.discovery)
        if not has_nodes and not config.cloud:
            return None
        # httpx takes longer to import than all of mecroute; a device-only client does without it.
        from mecroute.network.clients import HttpClients
        from mecroute.network.traffic import Traffic
        from mecroute.nodes.fleet import Fleet
        from mecroute.tiers.http import Endpoint, HttpTier

        for remote in (*config.nodes, *config.cloud, *config.discovery):
            if (files := remote.tls()) is not None:
                files.context()  # a file that cannot be used is said now, and not by a request
        fleet: Fleet | None = None
        traffic = Traffic(
            self.links, self._health, lambda name: fleet.watch_of(name) if fleet is not None else None
        )
        # Nodes come and go while this runs; the tier sees that in the same mapping.
        nodes: dict[str, Endpoint] = {}
        clouds: dict[str, Endpoint] = {
            cloud.name: Endpoint(
                "cloud", cloud.name, cloud.base_url, cloud.key(), cloud.continues_prefix, cloud.tls()
            )
            for cloud in config.cloud
        }
        wanted: tuple[tuple[TierName, dict[str, Endpoint], bool], ...] = (
            ("mec", nodes, has_nodes),
            ("cloud", clouds, bool(clouds)),
        )
        for name, group, is_wanted in wanted:
            if is_wanted:
                tier = HttpTier(group, traffic=traffic)
                self._exits.push_async_callback(tier.aclose)
                tiers[name] = tier
        if not has_nodes:
            return None

        def join(node: NodeConfig) -> None:
            base_url = node.url.rstrip("/") + "/v1"
            nodes[node.name] = Endpoint("mec", node.name, base_url, node.key(), True, node.tls())

        def leave(name: str) -> None:
            nodes.pop(name, None)

        clients = HttpClients(follow_redirects=False)
        self._exits.push_async_callback(clients.aclose)
        fleet = Fleet(config, lambda node: clients.of(node.tls()), self.links, on_join=join, on_leave=leave)
        self._exits.push_async_callback(fleet.aclose)
        return fleet


_NOTHING_LOADED: Mapping[str, DeviceLoad] = {}


def _topics(config: Config, device: DeviceTier | None) -> Topics:
    """What names the topic of a request.

    Raises:
        ConfigError: an encoder is named that is not there.
    """
    name = config.router.encoder
    if name is None:
        return Topics()
    if device is None:
        raise ConfigError(
            "router.encoder is set, and the device is not enabled", hint="leave one of them out"
        )
    return Topics(device.prompt_encoder(name))


def _expanded(path: Path | None) -> Path | None:
    return path.expanduser() if path is not None else None
