"""The life of a request, from the caller's arguments to the delivered answer."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Any

from mecroute.agents import CacheAgent, ContextAgent, MonitorAgent, ResourceAgent, RouterAgent
from mecroute.budgets.gate import BudgetGate
from mecroute.caching.answers import Remembered
from mecroute.cascade.execution import CascadeExecution
from mecroute.cascade.plan import Verdict
from mecroute.config.schema import Config
from mecroute.decision import Candidate, Decision
from mecroute.device.bandwidth import Measuring
from mecroute.errors import MecrouteError, NoEligibleTargetError
from mecroute.evidence.explore import Explorer
from mecroute.evidence.shadow import Shadow
from mecroute.evidence.signals import Answer, answer_of
from mecroute.execution import Deadline, Execution
from mecroute.outcome import ABANDONED, Outcome, Provenance
from mecroute.request import Request
from mecroute.routing.dispatch import Dispatch
from mecroute.routing.sessions import session_name
from mecroute.tiers.base import Tier
from mecroute_registry.facts import Tier as TierName

#: Of the time before a deadline, for each: reports of nodes that were never heard of, the device's bandwidth
#: that was never measured, a similar question.
_SHARE_FOR_LOOKING = 0.3
#: Candidates among which a text model is looked for that should be loaded: reading them all takes time.
_LOOKED_AT = 32


class Pipeline:
    """Calls the five agents in order. For one event loop."""

    def __init__(
        self,
        config: Config,
        *,
        context: ContextAgent,
        resource: ResourceAgent,
        router: RouterAgent,
        cache: CacheAgent,
        monitor: MonitorAgent,
        tiers: Mapping[TierName, Tier],
        gate: BudgetGate,
        explorer: Explorer,
        shadow: Shadow,
    ) -> None:
        self._config = config
        self.context = context
        self.resource = resource
        self.router = router
        self.cache = cache
        self.monitor = monitor
        self.shadow = shadow
        self._tiers = tiers
        self._dispatch = Dispatch(hedge_budget=config.router.hedge_budget)
        #: Told of every request before it is decided.
        self.on_request: Callable[[], None] | None = None
        #: Told of the candidates of every request for vectors or classes, before the first of them is asked.
        self.on_texts: Callable[[Sequence[Candidate]], None] | None = None
        self._gate = gate
        self._explorer = explorer
        self._measuring = Measuring()

    async def decide(self, request: Request) -> Decision:
        """Steps 2 to 4: assess the request, list the targets, decide. Runs nothing."""
        if self.on_request is not None:
            self.on_request()
        context = await self.context.assess_fully(request, may_encode=self.router.may_encode(request))
        left_s = request.remaining_s()
        # Nodes that were never heard of are waited for; of a deadline's time, for no more than a share.
        await self.resource.refresh(math.inf if left_s is None else left_s * _SHARE_FOR_LOOKING)
        device = context.device
        targets = self.resource.targets(device.bandwidth_bytes_per_s, speed_share=device.speed_share)
        if any(t.speed_source == "assumed" and t.target.tier == "device" for t in targets):
            left_s = request.remaining_s()
            known = await self._measuring.within(math.inf if left_s is None else left_s * _SHARE_FOR_LOOKING)
            targets = self.resource.targets(known, speed_share=device.speed_share)
        decision = self.router.decide(
            request,
            context,
            targets,
            battery_floor=self._config.device.battery_floor,
            correction=self.monitor.correction,
            adjustment=self.monitor.adjustment,
            dispatch=self._dispatch,
            cascades=self.monitor.cascade.of,
        )
        return self.monitor.annotated(await self._gate.admit(request, decision, targets))

    async def complete(self, request: Request) -> tuple[dict[str, Any], Provenance]:
        """Steps 2 to 6 for a whole answer.

        Raises:
            NoEligibleTargetError: the requirements exclude every target.
            MecrouteError: what `Execution.complete` raises.
        """
        request = self.router.admit(request)
        remembered = self.cache.lookup(request) or await self._similar(request)
        if remembered is not None:
            return self._deliver_remembered(request, remembered)
        decision = await self._decided(request)
        execution = self._execution(request, decision)
        if self.on_texts is not None and request.task in ("embed", "classify"):
            self.on_texts(decision.candidates[:_LOOKED_AT])
        try:
            body = await execution.complete()
        except MecrouteError as error:
            self._record(execution, {}, error, None)
            raise
        answer = answer_of(body, request.body)
        provenance = self._record(execution, body.get("usage") or {}, None, answer)
        body["id"] = request.id
        self._afterwards(execution, body, provenance, answer)
        return body, provenance

    async def stream(self, request: Request, sink: list[Provenance]) -> AsyncGenerator[dict[str, Any]]:
        """Steps 2 to 6 for a streamed answer; the provenance is put into `sink` at its end.

        Raises: as `complete`, when the first chunk is asked for or later.
        """
        request = self.router.admit(request)
        decision = await self._decided(request)
        execution = self._execution(request, decision)
        created = int(time.time())
        usage: Mapping[str, Any] = {}
        wants_usage = bool((request.body.get("stream_options") or {}).get("include_usage"))
        error: MecrouteError | None = None
        finished = False
        last: Mapping[str, Any] = {}
        try:
            async with aclosing(execution.stream()) as chunks:
                async for chunk in chunks:
                    # One answer has one id and one date, whatever it was pieced together from.
                    chunk["id"], chunk["created"] = request.id, created
                    usage = chunk.get("usage") or usage
                    if choices := chunk.get("choices"):
                        last = choices[0]
                    if chunk.get("choices") or wants_usage:
                        yield chunk  # a chunk of usage alone goes only to who asked for it
            finished = True
        except MecrouteError as failure:
            error = failure
            raise
        finally:
            if not finished and error is None:
                error = MecrouteError(ABANDONED)
            answer = Answer(
                execution.delivered,
                last.get("finish_reason"),
                response_format=request.body.get("response_format"),
                has_calls=execution.is_unjoinable,
            )
            provenance = self._record(execution, usage, error, answer)
            sink.append(provenance)
            if finished:
                self._afterwards(execution, None, provenance, answer)

    async def feedback(self, request_id: str, score: float) -> None:
        """Keep a person's judgement (0..1) of an answer."""
        await asyncio.to_thread(self.monitor.feedback, request_id, score)

    async def _decided(self, request: Request) -> Decision:
        """The decision, with what exploring makes of it, before the deadline."""
        async with Deadline(request):
            return await self._explorer.apply(await self.decide(request))

    async def _similar(self, request: Request) -> Remembered | None:
        """The remembered answer to a request that means the same, if it is found in a share of the time."""
        left_s = request.remaining_s()
        if left_s is None:
            return await self.cache.lookup_similar(request)
        try:
            async with asyncio.timeout(left_s * _SHARE_FOR_LOOKING):
                return await self.cache.lookup_similar(request)
        except TimeoutError:
            return None

    def _execution(self, request: Request, decision: Decision) -> Execution:
        if decision.primary is None:
            raise _nothing_left(decision, self.resource.found_nothing())
        parts = request, decision, self._tiers, self.monitor, self._dispatch
        known = self.monitor.cascade
        if decision.cascade is not None or (
            self.router.watches(request, decision) and known.can_measure(decision.primary.target.id)
        ):
            return CascadeExecution(known, *parts)
        return Execution(*parts)

    def _afterwards(
        self,
        execution: Execution,
        body: dict[str, Any] | None,
        provenance: Provenance,
        answer: Answer | None,
    ) -> None:
        """Keep a whole answer, and perhaps compare it with another one."""
        replaced: Answer | None = None
        if isinstance(execution, CascadeExecution):
            if execution.is_settled_for:
                return  # it was judged to be poor, and is not given again to who asks the same
            replaced = execution.replaced
        if body is not None:
            self.cache.remember(execution.request, body, provenance)
        if replaced is not None:
            self.shadow.escalated(provenance, replaced, answer)
        else:
            self.shadow.consider(execution.request, provenance, answer)

    def _record(
        self,
        execution: Execution,
        usage: Mapping[str, Any],
        error: MecrouteError | None,
        answer: Answer | None,
    ) -> Provenance:
        request, decision = execution.request, execution.decision
        target = execution.last.target
        latency_ms = (time.monotonic() - request.started) * 1000
        prompt_tokens = int(usage.get("prompt_tokens") or decision.features.prompt_tokens)
        output_tokens = int(
            usage.get("completion_tokens") or sum(segment.output_tokens for segment in execution.segments)
        )
        ttft_ms = execution.ttft_ms
        decoding_s = (latency_ms - (ttft_ms or 0.0)) / 1000
        price = self.resource.price_of(target)
        cost = prompt_tokens * price.input_usd_per_mtok + output_tokens * price.output_usd_per_mtok
        if error is None and len(decision.candidates) > 1:
            self._dispatch.keep(session_name(request), target.id, self.router.zone(request))
        # What a service charges for an answer that was given up is not told: it is reckoned in full.
        cost += 1_000_000 * sum(candidate.cost_usd for candidate in execution.overtaken)
        for candidate, prompt, output in execution.set_aside:
            price = self.resource.price_of(candidate.target)
            cost += prompt * price.input_usd_per_mtok + output * price.output_usd_per_mtok
        outcome = Outcome(
            target_id=target.id,
            ttft_ms=ttft_ms,
            latency_ms=latency_ms,
            prompt_tokens=prompt_tokens,
            output_tokens=output_tokens,
            tokens_per_s=output_tokens / decoding_s if output_tokens and decoding_s > 0 else None,
            cost_usd=cost / 1_000_000,
            error=error.message if error is not None else None,
            cascade=self._verdict(execution),
        )
        provenance = Provenance(
            request_id=request.id,
            decision=decision,
            outcome=outcome,
            segments=tuple(execution.segments),
            tier=target.tier,
            node=target.node,
            model=target.model,
        )
        self.cache.asked_for(target.model)
        self.monitor.record(provenance, user=request.user, answer=answer)
        return provenance

    def _verdict(self, execution: Execution) -> Verdict | None:
        """What became of a cascade's first answer, with what it did cost."""
        verdict = execution.verdict if isinstance(execution, CascadeExecution) else None
        if verdict is None:
            return None
        price = self.resource.price_of(execution.decision.candidates[0].target)
        tokens_usd = (
            verdict.prompt_tokens * price.input_usd_per_mtok
            + verdict.output_tokens * price.output_usd_per_mtok
        )
        return replace(verdict, cost_usd=tokens_usd / 1_000_000)

    def _deliver_remembered(
        self, request: Request, remembered: Remembered
    ) -> tuple[dict[str, Any], Provenance]:
        before = remembered.provenance
        latency_ms = (time.monotonic() - request.started) * 1000
        outcome = Outcome(
            target_id=before.outcome.target_id,
            ttft_ms=None,
            latency_ms=latency_ms,
            prompt_tokens=before.outcome.prompt_tokens,
            output_tokens=before.outcome.output_tokens,
            tokens_per_s=None,
            cost_usd=0.0,
        )
        provenance = Provenance(
            request_id=request.id,
            decision=before.decision,
            outcome=outcome,
            segments=(),
            tier=before.tier,
            node=before.node,
            model=before.model,
            cache=remembered.kind,
        )
        self.monitor.record(provenance, user=request.user)
        return {**remembered.body, "id": request.id}, provenance


def _nothing_left(decision: Decision, searched: Sequence[str]) -> NoEligibleTargetError:
    """An error that says which requirement excluded what, and what would help.

    Args:
        searched: sources of nodes that found none, and why.
    """
    if not decision.rejected and searched:
        return NoEligibleTargetError(
            f"there is no target: no model is registered for the device, and {'; '.join(searched)}",
            decision=decision,
            hint="`mecroute nodes list` asks the sources and shows what they say",
        )
    if not decision.rejected:
        return NoEligibleTargetError(
            "there is no target at all: no model is registered for the device, and no node or cloud is "
            "configured",
            decision=decision,
            hint="register a model (`mecroute quantize`, `mecroute models register`) or add [[nodes]] or "
            "[[cloud]] to mecroute.toml",
        )
    told = "; ".join(f"{r.target.id}: {r.reason} ({r.detail})" for r in decision.rejected)
    reasons = {r.reason for r in decision.rejected}
    if reasons == {"model"}:
        hint = "`mecroute models list` and `mecroute nodes list` show what can be asked for"
    elif "unavailable" in reasons:
        hint = "`mecroute doctor` shows what is out of reach and why"
    else:
        hint = "relax a requirement named above, or add a target that satisfies it"
    return NoEligibleTargetError(
        f"no target is left under the requirements: {told}", decision=decision, hint=hint
    )
