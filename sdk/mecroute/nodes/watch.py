"""Watches one MEC node: follows its report by long-poll, and takes its load from the answers it gives."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import replace

import httpx
from pydantic import ValidationError

from mecroute.config.schema import NodeConfig
from mecroute.errors import ConfigError
from mecroute.network.links import Links, LinkState
from mecroute.network.tls import tls_problem
from mecroute.network.traffic import network_ms
from mecroute.nodes.load_header import ModelLoad
from mecroute.nodes.report import ModelReport, NodeReport

#: Least time between two reports, whatever changes; and the same while answers tell the load anyway.
SPACING_S = 1.0
SPACING_WITH_HEADERS_S = 5.0
#: How long a node is asked to wait for a change.
POLL_WAIT_S = 20.0
#: A node is followed until nobody has decided anything for so long.
IDLE_S = 30.0
#: Age past which a report is too old to decide by, and the next one is waited for.
STALE_S = 60.0
#: Longest that a decision waits for a node that was never heard of, or not for long.
FIRST_WAIT_S = 1.0
_SHORT_TIMEOUT = httpx.Timeout(2.0, connect=1.0)
_LONG_TIMEOUT = httpx.Timeout(POLL_WAIT_S + 5.0, connect=1.0)
_BACKOFF_S = (0.5, 1.0, 2.0, 5.0, 10.0)


class NodeWatch:
    """The newest report of one node. For one event loop.

    While requests are decided, one poll follows the node: it waits there until something changes that
    matters, at most one report a second. Answers carry the load of the model that gave them, and while
    they do, reports come at most every five seconds.

    Args:
        node: its configuration.
        http: gives the client for asking it, or raises `ConfigError` while a file for it cannot be used: the
            node is out of reach so long. None where it is never asked, and only `told` of reports.
        links: the round trip to it, learned here and from the answers it gives.
        source: where the node is known from; `config` for one of `[[nodes]]`.
        trusts_region: whether the region that the node tells of itself counts.

    Attributes:
        report: the newest report; None before the first.
        problem: why the node cannot be used now; None while it answers.
        fetches: how many reports were asked for.
        changes: counts everything that is learned of the node; equal counts, nothing new.
    """

    def __init__(
        self,
        node: NodeConfig,
        http: Callable[[], httpx.AsyncClient] | None,
        *,
        links: Links | None = None,
        source: str = "config",
        trusts_region: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.node = node
        self.source = source
        self.trusts_region = trusts_region
        self.report: NodeReport | None = None
        self.problem: str | None = None
        self.fetches = 0
        self.changes = 0
        self._http = http
        self._links = links or Links()
        self._clock = clock
        self._etag: str | None = None
        self._failures = 0
        self._asked_at = clock()
        self._reported_at = float("-inf")
        self._told_at = float("-inf")
        self._heard_at = float("-inf")
        self._loads: dict[str, ModelLoad] = {}
        self._task: asyncio.Task[None] | None = None
        self._told = asyncio.Event()

    @property
    def link(self) -> LinkState:
        """The way there, as traffic shows it."""
        return self._links.of(self.node.name)

    @property
    def region(self) -> str | None:
        """Where the node's data stays, as far as that may be believed."""
        told = self.report.region if self.report is not None and self.trusts_region else None
        return self.node.region or told

    def touch(self) -> bool:
        """Have the node followed.

        Returns:
            Whether its first report, or one after a long rest, should be waited for with `wait`.
        """
        self._asked_at = self._clock()
        rested = self._task is None or self._task.done()
        if rested:
            self._told.clear()
            self._task = asyncio.create_task(self._follow())
        never = self.report is None and self.problem is None
        return never or (rested and self._asked_at - self._reported_at > STALE_S)

    async def wait(self, within_s: float = FIRST_WAIT_S) -> None:
        """Wait for the next report, for a while.

        Args:
            within_s: what the caller has of time; a node that did not answer in less than the usual is not
                held to be out of reach.
        """
        waiting = asyncio.ensure_future(self._told.wait())
        try:
            await asyncio.wait((waiting,), timeout=min(within_s, FIRST_WAIT_S))
            if not waiting.done() and within_s >= FIRST_WAIT_S:
                self.changes += 1
                self.problem = f"{self.node.url} has not answered yet"
        finally:
            waiting.cancel()

    async def probe(self) -> None:
        """Measure the way there and bring the report up to date, where nobody has asked for a while."""
        if self._task is None or self._task.done():
            self._etag = None  # asks for an answer at once
            await self._fetch()

    async def aclose(self) -> None:
        """Stop following."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def load(self, model: ModelReport) -> ModelLoad:
        """How busy one of its models is, by its last answer or the report, whichever is newer."""
        return self._loads.get(model.ref) or ModelLoad(
            model.running,
            model.queued,
            model.parallel or 1,
            model.prefill_tokens_per_s,
            model.decode_tokens_per_s,
            model.decode_slowdown,
            model.prefill_left_tokens,
        )

    def told_at(self, ref: str) -> float:
        """When it was told what `load` gives, by the watch's clock.

        A node that says that nothing has changed tells no load: it may have computed all that it had to.
        """
        return self._heard_at if ref in self._loads else self._told_at

    def heard(self, ref: str, load: ModelLoad | None) -> None:
        """An answer came, and told how busy its model is where the node tells that."""
        self.changes += 1
        if load is None or self.report is None or all(model.ref != ref for model in self.report.models):
            return
        self._loads[ref] = load
        self._heard_at = self._clock()

    def left(self, ref: str) -> None:
        """A stream of that model ended, which its own headers had counted as running."""
        known = self._loads.get(ref)
        if known is not None and known.running > 0:
            self.changes += 1
            self._loads[ref] = replace(known, running=known.running - 1)

    async def _follow(self) -> None:
        """Ask for one report after the other, until nobody has decided anything for a while."""
        while self._clock() - self._asked_at < IDLE_S:
            begun = self._clock()
            try:
                waited = await self._fetch()
            finally:
                self._told.set()
            if self.problem is not None:
                await asyncio.sleep(_BACKOFF_S[min(self._failures, len(_BACKOFF_S)) - 1])
                continue
            spacing = SPACING_S if waited else SPACING_WITH_HEADERS_S
            while True:
                known_by_answers = self._clock() - self._heard_at < SPACING_S
                wanted = SPACING_WITH_HEADERS_S if known_by_answers else spacing
                left = begun + wanted - self._clock()
                if left <= 0:
                    break
                await asyncio.sleep(min(left, SPACING_S))

    async def _fetch(self) -> bool:
        """Ask once, and wait there for a change where the last state is known.

        Returns:
            False when the node had no room for one more to wait and answered at once.
        """
        key = self.node.key()
        headers = {"authorization": f"Bearer {key}"} if key else {}
        url = self.node.url.rstrip("/") + "/admin/node"
        waits = self._etag is not None and self.problem is None
        if waits:
            headers["if-none-match"] = self._etag or ""
            url += f"?wait_s={POLL_WAIT_S:g}"
        begun = self._clock()
        self.fetches += 1
        assert self._http is not None, "a watch that only listens is not followed"
        try:
            response = await self._http().get(
                url, headers=headers, timeout=_LONG_TIMEOUT if waits else _SHORT_TIMEOUT
            )
            took_s = self._clock() - begun
            if response.status_code == 304 and waits:
                self._answered(response.headers, took_s, waits=waits)
                return took_s > POLL_WAIT_S / 2
            if response.status_code != 200:
                self._failed(f"{self.node.url} answered {response.status_code} when asked for its state")
                return True
            report = NodeReport.model_validate_json(response.content)
        except ConfigError as error:
            self._failed(f"{self.node.url} cannot be reached: {error.message}")
            return True
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            self._links.lost(self.node.name)
            tls = isinstance(error, httpx.HTTPError) and tls_problem(error, self.node.url, self.node.tls())
            refused = isinstance(error, httpx.ConnectError)
            reason = tls[0] if tls else "connection refused" if refused else type(error).__name__
            self._failed(f"{self.node.url} cannot be reached ({reason})")
            return True
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            place = ".".join(str(part) for part in first["loc"])
            self._failed(f"{self.node.url} sent a report that cannot be read: {place}: {first['msg']}")
            return True
        self.told(report)
        self._answered(response.headers, took_s, waits=waits)
        self._etag = response.headers.get("etag")
        return True

    def told(self, report: NodeReport) -> None:
        """A report came."""
        self.report = report
        self._loads.clear()
        self.changes += 1
        self._reported_at = self._told_at = self._clock()

    def _answered(self, headers: Mapping[str, str], took_s: float, *, waits: bool) -> None:
        trip_ms = network_ms(headers, took_s * 1000)
        if trip_ms is None and not waits:
            trip_ms = took_s * 1000  # a server that does not tell its part: a report takes it next to nothing
        self._links.heard(self.node.name, trip_ms)
        self.changes += 1
        self.problem, self._failures = None, 0
        self._reported_at = self._clock()

    def _failed(self, problem: str) -> None:
        self.changes += 1
        self.problem = problem
        self._etag = None
        self._failures += 1
