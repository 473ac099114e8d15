"""Runs a decision: tries its candidates in order and survives the loss of any of them.

Where the decision plans a hedge and the primary is late, the first fallback is asked as well; whichever
begins first answers, and the other is told to stop.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from mecroute.agents.monitor import MonitorAgent
from mecroute.chunks import computed_tokens, finish_reason, has_calls, take_text, whole_usage
from mecroute.classification import classify_in_chat
from mecroute.continuation import OverlapTrimmer, continue_body
from mecroute.decision import Candidate, Decision
from mecroute.errors import (
    AllTargetsFailedError,
    ArtifactError,
    AuthenticationError,
    BudgetExceededError,
    ContextLengthError,
    DeadlineExceededError,
    MecrouteError,
    MissingExtraError,
    NoClassError,
    OverloadedError,
    RequestRefusedError,
    TargetTooSlowError,
    TierError,
    UnknownLabelError,
)
from mecroute.numbers import finite
from mecroute.outcome import Segment
from mecroute.race import race
from mecroute.request import Request
from mecroute.routing.dispatch import Dispatch, UnderWay
from mecroute.routing.hedging import hedge_weight
from mecroute.tiers.base import Call, Tier
from mecroute_registry.facts import Tier as TierName

#: Failures of one target that another may make good. Anything else is the caller's to mend.
FAILOVER = (
    TierError,
    OverloadedError,
    ContextLengthError,
    UnknownLabelError,
    ArtifactError,
    AuthenticationError,
    MissingExtraError,
    TargetTooSlowError,
    BudgetExceededError,
)


@dataclass(slots=True)
class Whole:
    """A whole answer and the segment it is."""

    body: dict[str, Any]
    segment: Segment


@dataclass(slots=True)
class _Started:
    """A stream that is open: the chunks that were read already (with their texts), and the rest."""

    index: int
    segment: Segment
    begun: float
    read: list[tuple[dict[str, Any], str]]
    rest: AsyncGenerator[tuple[dict[str, Any], str]]


class Execution:
    """One request under way: holds what was delivered and which targets took part.

    Args:
        tiers: the tiers that can be reached.
        dispatch: told of every call that is under way.
    """

    def __init__(
        self,
        request: Request,
        decision: Decision,
        tiers: Mapping[TierName, Tier],
        monitor: MonitorAgent,
        dispatch: Dispatch,
    ) -> None:
        self.request = request
        self.decision = decision
        self.segments: list[Segment] = []
        self._tiers = tiers
        self._monitor = monitor
        self._dispatch = dispatch
        self._started = time.monotonic()
        self._attempts: list[tuple[str, MecrouteError]] = []
        #: Places in the ranking of the targets that failed, and of the one that spoke last.
        self._failed: set[int] = set()
        self._answering = 0
        self._delivered = ""
        self._delivered_tokens = 0
        #: Whether what was delivered cannot be continued elsewhere: tool calls, or several answers at once.
        self._is_unjoinable = False
        #: Answers that were paid for and not delivered: whose, and their prompt and output tokens.
        self.set_aside: list[tuple[Candidate, int, int]] = []

    @property
    def last(self) -> Candidate:
        """The candidate that gave the last part of the answer (the one last tried before any did)."""
        return self.decision.candidates[self._answering]

    @property
    def delivered(self) -> str:
        """The text that was streamed so far."""
        return self._delivered

    @property
    def is_unjoinable(self) -> bool:
        """Whether what was delivered holds tool calls, or is several answers at once."""
        return self._is_unjoinable

    @property
    def overtaken(self) -> list[Candidate]:
        """Candidates whose answers were begun and not used, because another was faster."""
        late = {segment.target_id for segment in self.segments if segment.overtaken_by is not None}
        return [c for c in self.decision.candidates[:2] if c.target.id in late] if late else []

    @property
    def ttft_ms(self) -> float | None:
        """From the first call to the first text, over every attempt; None where no text was streamed."""
        for segment in self.segments:
            if segment.ttft_ms is not None and segment.overtaken_by is None and segment.escalated_to is None:
                return segment.begun_ms + segment.ttft_ms
        return None

    async def complete(self) -> dict[str, Any]:
        """The whole answer from the first target that gives one.

        Raises:
            AllTargetsFailedError: none did.
            BudgetExceededError: a budget had no room left for any of them.
            DeadlineExceededError: the deadline passed first.
            InvalidRequestError: a target says that the request is wrong.
        """
        while (index := self._next()) is not None:
            if self._may_hedge(index):
                found = await race(
                    self._whole(index), self._hedge_whole, after_s=self._hedge_after_s(), discard=_nothing
                )
            else:
                found = await self._whole(index)
            if found is None:
                continue
            self._taken(found)
            return found.body
        raise self._all_failed()

    def _taken(self, found: Whole) -> None:
        """A whole answer is there."""
        segment = found.segment
        usage = found.body.get("usage") or {}
        segment.output_tokens = int(usage.get("completion_tokens") or 0)
        segment.computed_tokens = computed_tokens(usage)
        segment.ttft_ms = _reported_ttft_ms(found.body)
        self._answered(segment)

    async def stream(self) -> AsyncGenerator[dict[str, Any]]:
        """The answer as chunks; when a target is lost the next one goes on from the delivered text.

        Raises: as `complete`.
        """
        while (index := self._next()) is not None:
            started: _Started | None
            if self._may_hedge(index):
                started = await race(
                    self._start(index), self._hedge_start, after_s=self._hedge_after_s(), discard=_close
                )
                if started is None:
                    continue
                self._overtake(started.segment)
            else:
                started = self._open(index)
            self._answering = started.index
            try:
                async with aclosing(started.rest) as rest:
                    for chunk, text in started.read:
                        self._deliver(chunk, text)
                        yield chunk
                    async for chunk, text in rest:
                        self._deliver(chunk, text)
                        yield chunk
            except FAILOVER as error:
                self._lost(started.index, started.segment, started.begun, error)
                if self._is_unjoinable:
                    break
                continue
            started.segment.latency_ms = (time.monotonic() - started.begun) * 1000
            self._answered(started.segment)
            return
        raise self._all_failed()

    def _next(self) -> int | None:
        """The place of the best target that has not failed."""
        index = len(self._failed)
        if index and self._failed != set(range(index)):
            index = next(i for i in range(index + 1) if i not in self._failed)
        return index if index < len(self.decision.candidates) else None

    async def _whole(
        self, index: int, *, hedge: bool = False, body: Mapping[str, Any] | None = None
    ) -> Whole | None:
        """One target's answer; None where it failed and another may do better.

        Args:
            body: what is asked; default: what the caller did.
        """
        candidate = self.decision.candidates[index]
        segment = self._begin(candidate, hedge=hedge)
        if not hedge:
            self._answering = index
        begun = time.monotonic()
        sent = self._sent(candidate, hedge=hedge)
        try:
            async with self._deadline():
                answered = await self._ask(candidate, self.request.body if body is None else body)
        except FAILOVER as error:
            self._lost(index, segment, begun, error)
            return None
        finally:
            segment.latency_ms = (time.monotonic() - begun) * 1000
            segment.alone = sent.alone
            sent.end()
        return Whole(answered, segment)

    def _open(self, index: int, *, hedge: bool = False) -> _Started:
        candidate = self.decision.candidates[index]
        segment = self._begin(candidate, hedge=hedge)
        begun = time.monotonic()
        return _Started(index, segment, begun, [], self._chunks(candidate, segment, begun, hedge=hedge))

    async def _start(self, index: int, *, hedge: bool = False) -> _Started | None:
        """A stream read up to its first text; None where it failed before."""
        started = self._open(index, hedge=hedge)
        try:
            async for chunk, text in started.rest:
                started.read.append((chunk, text))
                if text or has_calls(chunk) or finish_reason(chunk):
                    break
        except FAILOVER as error:
            self._lost(index, started.segment, started.begun, error)
            return None
        except BaseException:
            started.segment.latency_ms = (time.monotonic() - started.begun) * 1000
            await started.rest.aclose()
            raise
        return started

    def _may_hedge(self, index: int) -> bool:
        decision = self.decision
        if index != 0 or decision.hedge_after_ms is None or self._attempts:
            return False
        return len(decision.candidates) > 1 and decision.candidates[1].target.id == decision.hedge_to

    def _hedge_after_s(self) -> float:
        return (self.decision.hedge_after_ms or 0.0) / 1000

    async def _hedge_whole(self) -> Whole | None:
        if not self._hedge_is_paid():
            return None
        try:
            return await self._whole(1, hedge=True)
        except MecrouteError as error:
            self._hedge_failed(error)
            return None

    async def _hedge_start(self) -> _Started | None:
        if not self._hedge_is_paid():
            return None
        try:
            return await self._start(1, hedge=True)
        except MecrouteError as error:
            self._hedge_failed(error)
            return None

    def _hedge_is_paid(self) -> bool:
        primary, fallback = self.decision.candidates[:2]
        return self._dispatch.take_hedge(hedge_weight(primary, fallback))

    def _hedge_failed(self, error: MecrouteError) -> None:
        # What stops a hedge (a request that this one target calls wrong) stops no primary.
        self._failed.add(1)
        for segment in self.segments:
            if segment.hedge:
                segment.error = error.message
        self._attempts.append((self.decision.candidates[1].target.id, error))

    async def _chunks(
        self, candidate: Candidate, segment: Segment, begun: float, *, hedge: bool
    ) -> AsyncGenerator[tuple[dict[str, Any], str]]:
        tier = self._tiers[candidate.target.tier]
        body: Mapping[str, Any] = self.request.body
        trimmer: OverlapTrimmer | None = None
        before = self._delivered_tokens
        if self._delivered:
            body, segment.seam = continue_body(
                body,
                self._delivered,
                self._delivered_tokens,
                continues_prefix=tier.continues_prefix(candidate.target),
            )
            if segment.seam == "instructed":
                trimmer = OverlapTrimmer(self._delivered)
        sent = self._sent(candidate, hedge=hedge, streams=True)
        try:
            async with aclosing(tier.stream(self._call(candidate, body))) as stream:
                while True:
                    try:
                        async with self._deadline():
                            chunk = await anext(stream)
                    except StopAsyncIteration:
                        return
                    text = take_text(chunk, trimmer)
                    if text:
                        if segment.ttft_ms is None:
                            sent.first_token()
                            segment.ttft_ms = (time.monotonic() - begun) * 1000
                        segment.output_tokens += 1
                        segment.text_chars += len(text)
                    usage = chunk.get("usage")
                    if usage and usage.get("completion_tokens"):
                        segment.output_tokens = int(usage["completion_tokens"])
                        segment.computed_tokens = computed_tokens(usage)
                        if segment.seam is not None:
                            chunk["usage"] = whole_usage(usage, before)
                    if segment.seam is None or text or usage or finish_reason(chunk):
                        yield chunk, text  # a second chunk that only names the role would be no news
        finally:
            segment.alone = sent.alone
            sent.end()

    def _sent(self, candidate: Candidate, *, hedge: bool = False, streams: bool = False) -> UnderWay:
        return self._dispatch.begin(
            candidate.target.id,
            hedge=hedge,
            prefill_ms=candidate.parts.prefill_ms if candidate.parts is not None else 0.0,
            output_tokens=candidate.output_tokens,
            # What writes nothing (embeddings, classes) is computed apart from answers.
            pace=candidate.pace if candidate.output_tokens else None,
            streams=streams,
        )

    def _deliver(self, chunk: Mapping[str, Any], text: str) -> None:
        if has_calls(chunk) or (text and (self.request.body.get("n") or 1) > 1):
            self._is_unjoinable = True
        if text:
            self._delivered += text
            self._delivered_tokens += 1

    def _begin(self, candidate: Candidate, *, hedge: bool = False) -> Segment:
        target, asked = candidate.target, self.request.requirements
        # The decision has seen to this already; nothing that goes wrong there may carry a request past
        # its floor, so it is checked again on the way out.
        if not (asked.allows_tier(target.tier) and asked.allows_region(target.tier, target.region)):
            raise RequestRefusedError(f"{target.id} is outside the request's privacy or residency")
        segment = Segment(target_id=target.id, tier=target.tier, hedge=hedge)
        segment.begun_ms = (time.monotonic() - self._started) * 1000
        self.segments.append(segment)
        return segment

    def _answered(self, segment: Segment) -> None:
        """Take the answer as the request's; whoever else was asked at the same time was overtaken."""
        self._overtake(segment)
        if segment.hedge:
            self._answering = 1
        self._monitor.answered(self.decision, segment)

    def _overtake(self, winner: Segment) -> None:
        for segment in self.segments:
            if segment is winner or segment.error is not None or segment.escalated_to is not None:
                continue
            if segment.overtaken_by is None:
                segment.overtaken_by = winner.target_id
                self._monitor.overtaken(self.decision, segment)

    async def _ask(
        self, candidate: Candidate, body: Mapping[str, Any], *, id_suffix: str = ""
    ) -> dict[str, Any]:
        """A target's whole answer, in the shape of the request's task."""
        tier, call = self._tiers[candidate.target.tier], self._call(candidate, body, id_suffix)
        if candidate.task not in (None, call.task):
            return await classify_in_chat(tier, call)
        return await tier.complete(call)

    def _call(self, candidate: Candidate, body: Mapping[str, Any], id_suffix: str = "") -> Call:
        left_s = self.request.remaining_s()
        deadline_ms = None if left_s is None else left_s * 1000
        request = self.request
        id = request.id + id_suffix
        return Call(request.task, candidate.target, body, id, deadline_ms, request.payer)

    def _lost(self, index: int, segment: Segment, begun: float, error: MecrouteError) -> None:
        segment.latency_ms = (time.monotonic() - begun) * 1000
        segment.error = error.message
        self._failed.add(index)
        self._attempts.append((segment.target_id, error))
        if isinstance(error, NoClassError):
            self._monitor.named_no_class(self.decision, segment)
        # A deadline too short for one request, a budget without room or a class that it does not know say
        # nothing of the target: it need not rest. Nor need one that did answer.
        elif not isinstance(error, (DeadlineExceededError, BudgetExceededError, UnknownLabelError)):
            retry_after_s = getattr(error, "retry_after_s", None)
            self._monitor.failed(segment.target_id, error.message, retry_after_s=retry_after_s)

    def _all_failed(self) -> MecrouteError:
        """What the caller is told when nobody answered."""
        errors = [error for _, error in self._attempts]
        if errors and all(isinstance(error, BudgetExceededError) for error in errors):
            return errors[0]
        return AllTargetsFailedError(self._attempts)

    def _deadline(self) -> Deadline:
        return Deadline(self.request)


class Deadline:
    """An `asyncio.timeout` up to the request's deadline, raising our own error."""

    def __init__(self, request: Request) -> None:
        self._request = request
        self._timeout = asyncio.timeout(request.remaining_s())

    async def __aenter__(self) -> None:
        await self._timeout.__aenter__()

    async def __aexit__(self, kind: Any, error: Any, trace: Any) -> None:
        try:
            await self._timeout.__aexit__(kind, error, trace)
        except TimeoutError as expired:
            raise DeadlineExceededError(
                f"the deadline of {self._request.requirements.deadline_ms:.0f} ms passed",
                hint="allow more time, or a smaller max_tokens",
            ) from expired


def _reported_ttft_ms(body: Mapping[str, Any]) -> float | None:
    """A whole answer's time to first token as our servers report it; nobody else does."""
    timings = body.get("timings")
    reported = finite(timings.get("ttft_ms")) if isinstance(timings, Mapping) else None
    return reported if reported is not None and reported > 0 else None


def _nothing(_: Whole) -> None:
    """A whole answer that comes too late needs no closing."""


async def _close(started: _Started) -> None:
    await started.rest.aclose()
