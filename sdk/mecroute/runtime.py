"""Puts the agents, the tiers and the pipeline together from a configuration."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from mecroute.agents import CacheAgent, ContextAgent, MonitorAgent, ResourceAgent, RouterAgent
from mecroute.agents.resource import DeviceLoad
from mecroute.config.schema import Config
from mecroute.pipeline import Pipeline
from mecroute.predict.difficulty import difficulty_source
from mecroute.state.store import StateStore
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
        self._store = StateStore(_expanded(config.state.path), enabled=config.state.enabled)
        monitor = MonitorAgent(self._store)
        tiers: dict[TierName, Tier] = {}
        loads = self._add_device(config, tiers)
        watches = self._add_remote(config, tiers)
        self.pipeline = Pipeline(
            config,
            context=ContextAgent(
                usual_output_tokens=monitor.usual_output_tokens,
                difficulty=difficulty_source(config.router.predictor),
            ),
            resource=ResourceAgent(
                config, self.registry, watches, monitor, loads=loads or (lambda: _NOTHING_LOADED)
            ),
            router=RouterAgent(config.router),
            cache=CacheAgent(),
            monitor=monitor,
            tiers=tiers,
        )

    async def aclose(self) -> None:
        """Unload models, close connections, write the state."""
        await self._exits.aclose()
        self._store.close()

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
