"""Runs a decision: tries its candidates in order and survives the loss of any of them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Any

from mecroute.agents.monitor import MonitorAgent
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
    OverloadedError,
    RequestRefusedError,
    TierError,
)
from mecroute.outcome import Segment
from mecroute.request import Request
from mecroute.tiers.base import Call, Tier
from mecroute_registry.facts import Tier as TierName

#: Failures of one target that another may make good. Anything else is the caller's to mend.
FAILOVER = (
    TierError,
    OverloadedError,
    ContextLengthError,
    ArtifactError,
    AuthenticationError,
    MissingExtraError,
    BudgetExceededError,
)


class Execution:
    """One request under way: holds what was delivered and which targets took part.

    Args:
        tiers: the tiers that can be reached.
    """

    def __init__(
        self, request: Request, decision: Decision, tiers: Mapping[TierName, Tier], monitor: MonitorAgent
    ) -> None:
        self.request = request
        self.decision = decision
        self.segments: list[Segment] = []
        self._tiers = tiers
        self._monitor = monitor
        self._attempts: list[tuple[str, MecrouteError]] = []
        self._delivered = ""
        self._delivered_tokens = 0
        #: Whether what was delivered cannot be continued elsewhere: tool calls, or several answers at once.
        self._is_unjoinable = False

    @property
    def last(self) -> Candidate:
        """The candidate that gave the last segment (the primary before any did)."""
        by_id = {c.target.id: c for c in self.decision.candidates}
        return by_id[self.segments[-1].target_id] if self.segments else self.decision.candidates[0]

    @property
    def delivered(self) -> str:
        """The text that was streamed so far."""
        return self._delivered

    @property
    def is_unjoinable(self) -> bool:
        """Whether what was delivered holds tool calls, or is several answers at once."""
        return self._is_unjoinable

    @property
    def ttft_ms(self) -> float | None:
        """From the call to the first text, over every attempt; None where no text was streamed."""
        spent = 0.0
        for segment in self.segments:
            if segment.ttft_ms is not None:
                return spent + segment.ttft_ms
            spent += segment.latency_ms
        return None

    async def complete(self) -> dict[str, Any]:
        """The whole answer from the first target that gives one.

        Raises:
            AllTargetsFailedError: none did.
            BudgetExceededError: a budget had no room left for any of them.
            DeadlineExceededError: the deadline passed first.
            InvalidRequestError: a target says that the request is wrong.
        """
        for candidate in self.decision.candidates:
            segment = self._begin(candidate)
            call = self._call(candidate, self.request.body)
            begun = time.monotonic()
            try:
                async with self._deadline():
                    body = await self._tiers[candidate.target.tier].complete(call)
            except FAILOVER as error:
                self._lost(segment, begun, error)
                continue
            segment.latency_ms = (time.monotonic() - begun) * 1000
            usage = body.get("usage") or {}
            segment.output_tokens = int(usage.get("completion_tokens") or 0)
            segment.ttft_ms = _reported_ttft_ms(body)
            self._monitor.answered(self.decision, segment)
            return body
        raise self._all_failed()

    async def stream(self) -> AsyncGenerator[dict[str, Any]]:
        """The answer as chunks; when a target is lost the next one goes on from the delivered text.

        Raises: as `complete`.
        """
        for candidate in self.decision.candidates:
            segment = self._begin(candidate)
            begun = time.monotonic()
            try:
                async with aclosing(self._attempt(candidate, segment, begun)) as chunks:
                    async for chunk in chunks:
                        yield chunk
            except FAILOVER as error:
                self._lost(segment, begun, error)
                if self._is_unjoinable:
                    break
                continue
            segment.latency_ms = (time.monotonic() - begun) * 1000
            self._monitor.answered(self.decision, segment)
            return
        raise self._all_failed()

    async def _attempt(
        self, candidate: Candidate, segment: Segment, begun: float
    ) -> AsyncGenerator[dict[str, Any]]:
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
        async with aclosing(tier.stream(self._call(candidate, body))) as stream:
            while True:
                try:
                    async with self._deadline():
                        chunk = await anext(stream)
                except StopAsyncIteration:
                    return
                text = _take_text(chunk, trimmer)
                if _has_calls(chunk) or (text and (self.request.body.get("n") or 1) > 1):
                    self._is_unjoinable = True
                if text:
                    if segment.ttft_ms is None:
                        segment.ttft_ms = (time.monotonic() - begun) * 1000
                    segment.output_tokens += 1
                    segment.text_chars += len(text)
                    self._delivered += text
                    self._delivered_tokens += 1
                usage = chunk.get("usage")
                if usage and usage.get("completion_tokens"):
                    segment.output_tokens = int(usage["completion_tokens"])
                    if segment.seam is not None:
                        chunk["usage"] = _whole_usage(usage, before)
                if segment.seam is None or text or usage or _finish_reason(chunk):
                    yield chunk  # a second chunk that only names the role would be no news

    def _begin(self, candidate: Candidate) -> Segment:
        target, asked = candidate.target, self.request.requirements
        # The decision has seen to this already; nothing that goes wrong there may carry a request past
        # its floor, so it is checked again on the way out.
        if not (asked.allows_tier(target.tier) and asked.allows_region(target.tier, target.region)):
            raise RequestRefusedError(f"{target.id} is outside the request's privacy or residency")
        segment = Segment(target_id=target.id, tier=target.tier)
        self.segments.append(segment)
        return segment

    def _call(self, candidate: Candidate, body: Mapping[str, Any]) -> Call:
        return Call(self.request.task, candidate.target, body, self.request.id, self.request.payer)

    def _lost(self, segment: Segment, begun: float, error: MecrouteError) -> None:
        segment.latency_ms = (time.monotonic() - begun) * 1000
        segment.error = error.message
        self._attempts.append((segment.target_id, error))
        if not isinstance(error, BudgetExceededError):  # which is no fault of the target's
            self._monitor.failed(segment.target_id, error.message)

    def _all_failed(self) -> MecrouteError:
        """What the caller is told when nobody answered."""
        errors = [error for _, error in self._attempts]
        if errors and all(isinstance(error, BudgetExceededError) for error in errors):
            return errors[0]
        return AllTargetsFailedError(self._attempts)

    def _deadline(self) -> _Deadline:
        return _Deadline(self.request)


class _Deadline:
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
    reported = timings.get("ttft_ms") if isinstance(timings, Mapping) else None
    return float(reported) if isinstance(reported, int | float) and reported > 0 else None


def _whole_usage(usage: Mapping[str, Any], tokens_before: int) -> dict[str, Any]:
    """The usage of the whole answer, from that of its last segment, whose prompt held the ones before."""
    prompt = max(0, int(usage.get("prompt_tokens") or 0) - tokens_before)
    output = int(usage["completion_tokens"]) + tokens_before
    return {**usage, "prompt_tokens": prompt, "completion_tokens": output, "total_tokens": prompt + output}


def _has_calls(chunk: Mapping[str, Any]) -> bool:
    return any(
        (choice.get("delta") or {}).get("tool_calls")
        for choice in chunk.get("choices") or ()
        if isinstance(choice, Mapping)
    )


def _finish_reason(chunk: Mapping[str, Any]) -> str | None:
    choices = chunk.get("choices") or ()
    return choices[0].get("finish_reason") if choices else None


def _take_text(chunk: dict[str, Any], trimmer: OverlapTrimmer | None) -> str:
    """The text of a chunk; with a trimmer, the chunk is changed to hold only what may be delivered."""
    choices = chunk.get("choices") or ()
    if not choices or not isinstance(choices[0], dict):
        return ""
    choice = choices[0]
    holder = choice.get("delta") if "delta" in choice else choice
    name = "content" if "delta" in choice else "text"
    if not isinstance(holder, dict):
        return ""
    text = holder.get(name) or ""
    if trimmer is not None:
        text = trimmer.feed(text)
        if choice.get("finish_reason"):
            text += trimmer.flush()
        holder[name] = text
    return str(text)
