"""Follows one source of nodes: asks it again when what it said has run out."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from mecroute.config.discovery import DiscoverySource
from mecroute.config.schema import NodeConfig
from mecroute.errors import MecrouteError
from mecroute.nodes.discovery.admission import admitted
from mecroute.nodes.discovery.base import Discovery, Found

#: Longest that a decision waits for a source that has said nothing yet, or nothing that still holds.
FIRST_WAIT_S = 1.0
_BACKOFF_S = (1.0, 5.0, 15.0, 60.0)
#: Share of its time to live after which a finding is renewed.
_RENEW_AT = 0.8


class SourceWatch:
    """What one source last found. For one event loop.

    Args:
        source: its configuration.
        open: makes it; called once, at the first look.
        clock: monotonic seconds.

    Attributes:
        problem: why the last look failed; None after one that did not.
        notes: nodes that were found and are not used, and why.
    """

    def __init__(
        self,
        source: DiscoverySource,
        open: Callable[[], Discovery],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.source = source
        self.problem: str | None = None
        self.notes: tuple[str, ...] = ()
        self._open = open
        self._clock = clock
        self._discovery: Discovery | None = None
        self._nodes: tuple[NodeConfig, ...] = ()
        self._next_at = float("-inf")
        self._valid_until = float("-inf")
        self._failures = 0
        self._task: asyncio.Task[None] | None = None

    @property
    def nodes(self) -> tuple[NodeConfig, ...]:
        """The nodes that may be used, while what was found holds."""
        return self._nodes if self._clock() < self._valid_until else ()

    def touch(self) -> bool:
        """Look again where it is time to.

        Returns:
            Whether nothing that is known holds any more, so that `wait` is worth it.
        """
        if (self._task is None or self._task.done()) and self._clock() >= self._next_at:
            self._task = asyncio.create_task(self.look())
        looking = self._task is not None and not self._task.done()
        return looking and self._clock() >= self._valid_until and self._failures == 0

    async def wait(self, within_s: float = FIRST_WAIT_S) -> None:
        """Wait for the look that is under way, for a while."""
        if self._task is not None:
            await asyncio.wait((self._task,), timeout=min(within_s, FIRST_WAIT_S))

    async def look(self) -> None:
        """Ask the source once; a failure is kept in `problem`."""
        try:
            if self._discovery is None:
                self._discovery = self._open()
            found = await self._discovery.find()
        except MecrouteError as error:
            self.problem = error.message
            self._next_at = self._clock() + _BACKOFF_S[min(self._failures, len(_BACKOFF_S) - 1)]
            self._failures += 1
            return
        self._take(found)
        self.problem, self._failures = None, 0
        now = self._clock()
        self._next_at, self._valid_until = now + _RENEW_AT * found.ttl_s, now + found.ttl_s

    async def aclose(self) -> None:
        """Stop looking."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        if self._discovery is not None:
            await self._discovery.aclose()

    def _take(self, found: Found) -> None:
        notes = list(found.notes)
        nodes: dict[str, NodeConfig] = {}
        for node in sorted(found.nodes, key=lambda n: (n.rank, n.name)):
            result = admitted(self.source, node)
            if isinstance(result, str):
                notes.append(result)
            elif len(nodes) >= self.source.max_nodes:
                notes.append(f"more nodes than max_nodes = {self.source.max_nodes}: {node.url} is left out")
            elif result.name in nodes:
                notes.append(f"two nodes call themselves '{result.name}'; {node.url} is left out")
            else:
                nodes[result.name] = result
        self._nodes, self.notes = tuple(nodes.values()), tuple(notes)
