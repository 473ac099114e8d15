"""Watches one MEC node: asks for its report when the last one has grown old, and measures the way there."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import httpx
from pydantic import ValidationError

from mecroute.config.schema import NodeConfig
from mecroute.nodes.report import NodeReport

#: Age past which a report is fetched anew when somebody wants to decide.
FRESH_S = 1.0
#: Longest that a first decision waits for a node that was never heard of.
FIRST_WAIT_S = 1.0
_TIMEOUT = httpx.Timeout(2.0, connect=1.0)
_BACKOFF_S = (0.5, 1.0, 2.0, 5.0, 10.0)
_RTT_ALPHA = 0.3


class NodeWatch:
    """The newest report of one node. For one event loop.

    Attributes:
        report: the newest report; None before the first.
        problem: why the node cannot be used now; None while it answers.
        round_trip_ms: smoothed time of a report's round trip; None before the first.
    """

    def __init__(
        self, node: NodeConfig, http: httpx.AsyncClient, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.node = node
        self.report: NodeReport | None = None
        self.problem: str | None = None
        self.round_trip_ms: float | None = None
        self._http = http
        self._clock = clock
        self._next_at = float("-inf")
        self._failures = 0
        self._task: asyncio.Task[None] | None = None

    async def refresh(self) -> None:
        """Bring the report up to date: the first is waited for, later ones are renewed meanwhile."""
        task = self._renew()
        if task is not None and self.report is None and self.problem is None:
            await asyncio.wait((task,), timeout=FIRST_WAIT_S)
            if not task.done():
                self.problem = f"{self.node.url} has not answered yet"

    async def aclose(self) -> None:
        """Stop a fetch under way."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def _renew(self) -> asyncio.Task[None] | None:
        if self._task is not None and not self._task.done():
            return self._task
        if self._clock() < self._next_at:
            return None
        self._task = asyncio.create_task(self._fetch())
        return self._task

    async def _fetch(self) -> None:
        key = self.node.key()
        headers = {"authorization": f"Bearer {key}"} if key else {}
        begun = self._clock()
        try:
            response = await self._http.get(
                self.node.url.rstrip("/") + "/admin/node", headers=headers, timeout=_TIMEOUT
            )
            if response.status_code != 200:
                self._failed(f"{self.node.url} answered {response.status_code} when asked for its state")
                return
            report = NodeReport.model_validate_json(response.content)
        except httpx.HTTPError as error:
            reason = "connection refused" if isinstance(error, httpx.ConnectError) else type(error).__name__
            self._failed(f"{self.node.url} cannot be reached ({reason})")
            return
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            place = ".".join(str(part) for part in first["loc"])
            self._failed(f"{self.node.url} sent a report that cannot be read: {place}: {first['msg']}")
            return
        took_ms = (self._clock() - begun) * 1000
        known = self.round_trip_ms
        self.round_trip_ms = took_ms if known is None else known + _RTT_ALPHA * (took_ms - known)
        self.report, self.problem, self._failures = report, None, 0
        self._next_at = self._clock() + FRESH_S

    def _failed(self, problem: str) -> None:
        self.problem = problem
        self._next_at = self._clock() + _BACKOFF_S[min(self._failures, len(_BACKOFF_S) - 1)]
        self._failures += 1
