"""Every MEC node that is known now: those of the configuration, and those that were found."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from mecroute.config.schema import Config, NodeConfig
from mecroute.network.links import Links
from mecroute.nodes.discovery.base import open_discovery
from mecroute.nodes.discovery.follow import SourceWatch
from mecroute.nodes.watch import NodeWatch

if TYPE_CHECKING:
    import httpx

#: How often the way to each node is measured while nothing is asked, where that is allowed.
PROBE_EVERY_S = 30.0

#: The word for nodes of `[[nodes]]`.
CONFIGURED = "config"


class Fleet:
    """Watches nodes that come and go. For one event loop.

    Args:
        config: its nodes, its sources of nodes, and whether idle nodes may be probed.
        http: gives the client for asking a node; see `NodeWatch`.
        links: where round trips are kept.
        on_join, on_leave: told of every node that begins or ceases to be known.
    """

    def __init__(
        self,
        config: Config,
        http: Callable[[NodeConfig], httpx.AsyncClient],
        links: Links,
        *,
        on_join: Callable[[NodeConfig], None],
        on_leave: Callable[[str], None],
    ) -> None:
        self._http = http
        self._links = links
        self._on_join = on_join
        self._on_leave = on_leave
        self._probes = config.network.probe
        self._prober: asyncio.Task[None] | None = None
        self._leaving: set[asyncio.Task[None]] = set()
        self._watches: dict[str, NodeWatch] = {}
        self._found: list[tuple[NodeConfig, ...]] = []
        self.sources = tuple(
            SourceWatch(source, partial(open_discovery, source, config.store)) for source in config.discovery
        )
        for node in config.nodes:
            self._join(node, CONFIGURED, trusts_region=True)

    @property
    def watches(self) -> tuple[NodeWatch, ...]:
        """The watch of every node that is known now, those of the configuration first."""
        return tuple(self._watches.values())

    def watch_of(self, name: str) -> NodeWatch | None:
        """The watch of one node; None when there is none of that name (any more)."""
        return self._watches.get(name)

    async def refresh(self, within_s: float = math.inf) -> None:
        """Bring the sources and then the nodes up to date; see `SourceWatch` and `NodeWatch` for how long.

        Args:
            within_s: most that may be waited, half of it for the sources.

        Where everything is fresh this waits for nothing and makes no task: it is on the way of each request.
        """
        if self.sources:
            stale = [source for source in self.sources if source.touch()]
            if stale:
                begun = time.monotonic()
                await asyncio.gather(*(source.wait(within_s / 2) for source in stale))
                within_s -= time.monotonic() - begun
            self._reconcile()
        unknown = [watch for watch in self._watches.values() if watch.touch()]
        if unknown:
            await asyncio.gather(*(watch.wait(max(0.0, within_s)) for watch in unknown))
        if self._probes and self._prober is None:
            self._prober = asyncio.create_task(self._probe())

    def found_nothing(self) -> Sequence[str]:
        """The sources that know of no node, and why."""
        return [
            f"discovery '{watch.source.name}': {watch.problem or 'no node was found yet'}"
            for watch in self.sources
            if not watch.nodes
        ]

    async def aclose(self) -> None:
        """Stop watching."""
        if self._prober is not None:
            self._prober.cancel()
            await asyncio.gather(self._prober, return_exceptions=True)
        await asyncio.gather(
            *(watch.aclose() for watch in self.watches),
            *(source.aclose() for source in self.sources),
            *self._leaving,
        )

    def _reconcile(self) -> None:
        found = [source.nodes for source in self.sources]
        if all(new is old for new, old in zip(found, self._found, strict=False)) and self._found:
            return  # a source makes a new tuple when it finds something else
        self._found = found
        wanted: dict[str, tuple[NodeConfig, SourceWatch]] = {}
        urls = {watch.node.url for watch in self.watches if watch.source == CONFIGURED}
        for source, nodes in zip(self.sources, found, strict=True):
            for node in nodes:
                # The same node by two ways is one node; the configuration's own word on it comes first.
                if node.url not in urls and node.name not in wanted:
                    urls.add(node.url)
                    wanted[node.name] = (node, source)
        for watch in self.watches:
            if watch.source == CONFIGURED:
                continue
            kept = wanted.get(watch.node.name)
            if kept is None or kept[0] != watch.node:
                self._leave(watch)
        for name, (node, source) in wanted.items():
            if name not in self._watches:
                self._join(node, source.source.name, trusts_region=source.source.trust_region)

    def _join(self, node: NodeConfig, source: str, *, trusts_region: bool) -> None:
        self._watches[node.name] = NodeWatch(
            node, partial(self._http, node), links=self._links, source=source, trusts_region=trusts_region
        )
        self._on_join(node)

    def _leave(self, watch: NodeWatch) -> None:
        del self._watches[watch.node.name]
        self._on_leave(watch.node.name)
        task = asyncio.create_task(watch.aclose())
        self._leaving.add(task)
        task.add_done_callback(self._leaving.discard)

    async def _probe(self) -> None:
        while True:
            await asyncio.sleep(PROBE_EVERY_S)
            await asyncio.gather(*(watch.probe() for watch in self.watches))


async def find_once(sources: Iterable[SourceWatch]) -> None:
    """Ask every source once, at the same time, and let go of what they hold; for programs that run once."""
    watches = tuple(sources)
    try:
        await asyncio.gather(*(source.look() for source in watches))
    finally:
        await asyncio.gather(*(source.aclose() for source in watches))
