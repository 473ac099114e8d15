"""Puts the agents, the tiers and the pipeline together from a configuration."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from mecroute.agents import CacheAgent, ContextAgent, MonitorAgent, ResourceAgent, RouterAgent
from mecroute.agents.resource import DeviceLoad
from mecroute.budgets.gate import BudgetGate, ledger_path
from mecroute.budgets.ledger import Ledger
from mecroute.budgets.tier import BudgetedTier
from mecroute.config.schema import Config
from mecroute.evidence.explore import Explorer
from mecroute.evidence.shadow import Shadow
from mecroute.pipeline import Pipeline
from mecroute.state.store import StateStore, database_path
from mecroute.tiers.base import Tier
from mecroute_registry.facts import Tier as TierName
from mecroute_registry.store import Registry

if TYPE_CHECKING:
    from mecroute.nodes.watch import NodeWatch
    from mecroute.tiers.http import Endpoint


class Runtime:
    """One client's machinery. Made and used on one event loop."""

    def __init__(self, config: Config) -> None:
        self.registry = Registry(_expanded(config.registry.path))
        self._exits = AsyncExitStack()
        store = StateStore(
            database_path(config.state),
            enabled=config.state.enabled,
            max_decisions=config.state.max_decisions,
            max_bytes=config.state.max_bytes,
        )
        monitor = MonitorAgent(store, adapt=config.monitor.adapt)
        gate = BudgetGate(
            config.budgets, Ledger(ledger_path(store.path)), watches_prices=config.monitor.shadow_rate > 0
        )
        self._exits.push_async_callback(gate.aclose)
        tiers: dict[TierName, Tier] = {}
        loads = self._add_device(config, tiers)
        watches = self._add_remote(config, tiers)
        if config.budgets:
            tiers = {name: BudgetedTier(tier, gate) for name, tier in tiers.items()}
        shadow = Shadow(config.monitor, tiers, gate, monitor.judged)
        self._exits.push_async_callback(shadow.aclose)
        self.pipeline = Pipeline(
            config,
            context=ContextAgent(usual_output_tokens=monitor.usual_output_tokens),
            resource=ResourceAgent(
                config, self.registry, watches, monitor, loads=loads or (lambda: _NOTHING_LOADED)
            ),
            router=RouterAgent(config.router),
            cache=CacheAgent(),
            monitor=monitor,
            tiers=tiers,
            gate=gate,
            explorer=Explorer(config.monitor, gate),
            shadow=shadow,
        )

    async def aclose(self) -> None:
        """Unload models, close connections, write the state."""
        await self._exits.aclose()
        self.pipeline.monitor.close()

    def _add_device(self, config: Config, tiers: dict[TierName, Tier]) -> _Loads | None:
        if not config.device.enabled:
            return None
        from mecroute.tiers.device import DeviceTier  # only where a device tier is wanted

        device = DeviceTier(config.device, self.registry)
        self._exits.push_async_callback(device.aclose)
        tiers["device"] = device
        return device.loads

    def _add_remote(self, config: Config, tiers: dict[TierName, Tier]) -> tuple[NodeWatch, ...]:
        if not config.nodes and not config.cloud:
            return ()
        # httpx takes longer to import than all of mecroute; a device-only client does without it.
        import httpx

        from mecroute.nodes.watch import NodeWatch
        from mecroute.tiers.http import Endpoint, HttpTier

        nodes: dict[str, Endpoint] = {
            node.name: Endpoint("mec", node.name, node.url.rstrip("/") + "/v1", node.key(), True)
            for node in config.nodes
        }
        clouds: dict[str, Endpoint] = {
            cloud.name: Endpoint("cloud", cloud.name, cloud.base_url, cloud.key(), cloud.continues_prefix)
            for cloud in config.cloud
        }
        endpoints: tuple[tuple[TierName, dict[str, Endpoint]], ...] = (("mec", nodes), ("cloud", clouds))
        for name, group in endpoints:
            if group:
                tier = HttpTier(group)
                self._exits.push_async_callback(tier.aclose)
                tiers[name] = tier
        if not config.nodes:
            return ()
        http = httpx.AsyncClient(follow_redirects=False)
        self._exits.push_async_callback(http.aclose)
        watches = tuple(NodeWatch(node, http) for node in config.nodes)
        for watch in watches:
            self._exits.push_async_callback(watch.aclose)
        return watches


if TYPE_CHECKING:
    from collections.abc import Callable

    _Loads = Callable[[], Mapping[str, DeviceLoad]]

_NOTHING_LOADED: Mapping[str, DeviceLoad] = {}


def _expanded(path: Path | None) -> Path | None:
    return path.expanduser() if path is not None else None
