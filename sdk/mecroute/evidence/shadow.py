"""Shadow comparison: after an answer was delivered, a second target is asked the same, and both are compared.

Only how far they agree is kept. It runs in the background, one at a time, on a target that the same decision
allowed, within a budget of its own and within those of the caller.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from random import Random
from typing import Any

from mecroute.budgets.gate import BudgetGate
from mecroute.budgets.ledger import Budget
from mecroute.config.schema import MonitorConfig
from mecroute.context import RequestFeatures
from mecroute.decision import Candidate, Decision
from mecroute.errors import MecrouteError
from mecroute.evidence.agreement import agreement
from mecroute.evidence.learning import Judgement
from mecroute.evidence.signals import Answer, answer_of
from mecroute.outcome import Provenance
from mecroute.request import Request
from mecroute.tiers.base import Call, Tier
from mecroute_registry.facts import Tier as TierName

_LOG = logging.getLogger("mecroute.monitor")
_TIMEOUT_S = 120.0
_DROPPED = ("stream_options", "n", "logprobs", "top_logprobs")


class Shadow:
    """Asks a second target now and then. For one event loop.

    Args:
        config: `shadow_rate` 0 switches it off.
        judged: told what came of each comparison.
        random: where chance comes from.
    """

    def __init__(
        self,
        config: MonitorConfig,
        tiers: Mapping[TierName, Tier],
        gate: BudgetGate,
        judged: Callable[[Judgement], None],
        *,
        random: Random | None = None,
    ) -> None:
        self._rate = config.shadow_rate
        self._budget = Budget("(shadow)", config.shadow_budget_usd_per_day, "day")
        self._tiers = tiers
        self._gate = gate
        self._judged = judged
        self._random = random or Random()  # noqa: S311 - nothing secret
        self._task: asyncio.Task[None] | None = None

    def consider(self, request: Request, provenance: Provenance, answer: Answer | None) -> None:
        """Perhaps begin a comparison for an answer that has been delivered. Returns at once."""
        if not self._rate or answer is None or provenance.cache is not None:
            return
        if provenance.outcome.error is not None or len(provenance.segments) != 1:
            return
        if not answer.text or answer.has_calls or self._random.random() >= self._rate:
            return
        if self._task is not None and not self._task.done():
            return
        decision = provenance.decision
        given = next((c for c in decision.candidates if c.target.id == provenance.outcome.target_id), None)
        other = None if given is None else self._other(request, decision, given)
        if given is not None and other is not None:
            comparison = self._compare(request, given, other, answer.text, decision.features)
            self._task = asyncio.create_task(comparison)

    def escalated(self, provenance: Provenance, first: Answer, answer: Answer | None) -> None:
        """Perhaps compare the two answers that there are to a request whose first one was judged too poor.

        That costs nothing, but it is done as seldom as for those that were good enough: what is learned of
        first answers would else be learned of the poor ones.
        """
        if not self._rate or answer is None or self._random.random() >= self._rate:
            return
        decision = provenance.decision
        given = next((c for c in decision.candidates if c.target.id == provenance.outcome.target_id), None)
        if given is not None and decision.primary is not None and given is not decision.primary:
            both = (decision.primary, first.text), (given, answer.text)
            self._tell(provenance.request_id, *both, decision.features)

    async def join(self) -> None:
        """Wait for the comparison under way."""
        if self._task is not None:
            await asyncio.gather(self._task, return_exceptions=True)

    async def aclose(self) -> None:
        """Give up the comparison under way."""
        if self._task is not None:
            self._task.cancel()
            await self.join()

    def _other(self, request: Request, decision: Decision, given: Candidate) -> Candidate | None:
        """The best other model that this request may be sent to, that need not be loaded for it."""
        asked = request.requirements
        allowed = [
            c
            for c in decision.candidates
            if c.target.model != given.target.model
            and not c.cold
            and asked.allows_tier(c.target.tier)
            and asked.allows_region(c.target.tier, c.target.region)
            and (c.cost_usd == 0 or self._budget.limit_usd > 0)
        ]
        return max(allowed, key=lambda c: (c.quality, c.target.id), default=None)

    async def _compare(
        self, request: Request, given: Candidate, other: Candidate, text: str, features: RequestFeatures
    ) -> None:
        body = {name: value for name, value in request.body.items() if name not in _DROPPED}
        call = Call(request.task, other.target, body, f"{request.id}-shadow", payer=request.payer)
        try:
            async with asyncio.timeout(_TIMEOUT_S):
                second = await self._ask(call)
        except (MecrouteError, TimeoutError) as error:
            _LOG.info("no comparison with %s: %s", other.target.id, error)
            return
        answer = answer_of(second, body)
        if answer is not None:
            self._tell(request.id, (given, text), (other, answer.text), features)

    def _tell(
        self,
        request_id: str,
        one: tuple[Candidate, str],
        other: tuple[Candidate, str],
        features: RequestFeatures,
    ) -> None:
        """Hold one answer against another."""
        found = agreement(one[1], other[1])
        if found is None:
            return
        # The one that is expected to be worse is held against the one that is expected to be better, by all
        # that is known: evidence may have turned round what their profiles say.
        judged, reference = sorted((one[0], other[0]), key=_expected)
        self._judged(
            Judgement(
                request_id=request_id,
                source="shadow",
                target_id=judged.target.id,
                complexity=features.complexity,
                predicted=_raw_quality(judged),
                score=found.score,
                weight=found.weight * reference.quality,
                note=f"{found.basis}, against {reference.target.id}",
                is_settled=found.basis != "overlap",
                kind=features.kind,
            )
        )

    async def _ask(self, call: Call) -> dict[str, Any]:
        price = self._gate.known_price(call.target.id)
        tier = self._tiers[call.target.tier]
        if price is None:
            return await tier.complete(call)
        reservation = await self._gate.reserve_in((self._budget,), price.worst_case_usd(call))
        charged = reservation.usd
        try:
            body = await tier.complete(call)
            charged = price.of_usage(body.get("usage"), reservation.usd)
            return body
        finally:
            self._gate.settle(reservation, charged)


def _expected(candidate: Candidate) -> tuple[float, float]:
    return candidate.quality, _raw_quality(candidate)


def _raw_quality(candidate: Candidate) -> float:
    return candidate.quality - candidate.quality_adjusted_by
