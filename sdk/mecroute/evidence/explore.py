"""Exploration: now and then the best target is passed over, to learn what another one would do.

Epsilon-greedy among candidates that have passed every hard constraint and every limit the caller stated, so
that the probability of each choice is known exactly, which is what off-policy estimates divide by. Thompson
sampling would learn with less regret; its probabilities would have to be estimated.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from random import Random

from mecroute.budgets.gate import BudgetGate
from mecroute.budgets.ledger import Budget
from mecroute.config.schema import MonitorConfig
from mecroute.decision import Candidate, Decision
from mecroute.errors import BudgetExceededError

_RETRY_S = 60.0


class Explorer:
    """Decides after the router whether to explore. For one event loop.

    Args:
        config: `explore_rate` 0 switches it off.
        gate: keeps the budget for it, shared by the processes of the machine.
        random: where chance comes from.
        clock: Unix seconds.
    """

    def __init__(
        self,
        config: MonitorConfig,
        gate: BudgetGate,
        *,
        random: Random | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._config = config
        self._gate = gate
        self._random = random or Random()  # noqa: S311 - nothing secret
        self._clock = clock
        self._budget = Budget("(explore)", config.explore_budget_usd_per_day, "day")
        self._spent_until = 0.0

    async def apply(self, decision: Decision) -> Decision:
        """The decision, with another candidate put first in `explore_rate` of the cases.

        A planned cascade is left as it is. The decision's `propensity` and `explorable` say with what
        probability the primary was chosen and what else could have been.
        """
        if not self._config.explore_rate or len(decision.candidates) < 2 or decision.cascade is not None:
            return decision
        best = decision.candidates[0]
        others = self._explorable(decision, best)
        if not others:
            return decision
        rate = self._config.explore_rate
        possible = (best.target.id, *(c.target.id for c in others))
        if self._random.random() >= rate:
            return replace(decision, propensity=1 - rate, explorable=possible)
        chosen = self._random.choice(others)
        extra_usd = chosen.cost_usd - best.cost_usd
        if extra_usd > 0 and not await self._pay(extra_usd):
            # Whatever costs more could not have been chosen either, and the best one took its chances.
            free = [c for c in others if c.cost_usd <= best.cost_usd]
            return replace(
                decision,
                propensity=1 - rate * len(free) / len(others),
                explorable=(best.target.id, *(c.target.id for c in free)) if free else (),
            )
        rest = tuple(c for c in decision.candidates if c is not chosen)
        return replace(
            decision,
            candidates=(chosen, *rest),
            choice=f"explored {chosen.target.id}: put first to learn about it, as one request in "
            f"{1 / rate:.0f} is; {best.target.id} scored best",
            propensity=rate / len(others),
            explored=True,
            explorable=possible,
        )

    def _explorable(self, decision: Decision, best: Candidate) -> list[Candidate]:
        slowest_ms = self._config.explore_max_slowdown * best.latency_ms_p50
        wished_ms = decision.requirements.max_latency_ms
        if wished_ms is not None:
            slowest_ms = min(slowest_ms, max(wished_ms, best.latency_ms_p50))
        dearest_usd = best.cost_usd
        # A clock that jumps back does not keep exploring switched off for longer than a day.
        if not 0 < self._spent_until - self._clock() <= 86_400:
            dearest_usd += self._budget.limit_usd
        return [
            c
            for c in decision.candidates[1:]
            if not c.cold and c.latency_ms_p50 <= slowest_ms and c.cost_usd <= dearest_usd
        ]

    async def _pay(self, extra_usd: float) -> bool:
        try:
            reservation = await self._gate.reserve_in((self._budget,), extra_usd)
        except BudgetExceededError as error:
            self._spent_until = error.frees_at or self._clock() + _RETRY_S
            return False
        self._gate.settle(reservation, extra_usd)
        return True
