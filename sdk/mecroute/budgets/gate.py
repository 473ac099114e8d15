"""Stands between the router and everything that costs money."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mecroute.budgets.ledger import Balance, Budget, Ledger, Reservation, no_room_in_words
from mecroute.budgets.worst_case import worst_case_tokens
from mecroute.classification import chat_calls
from mecroute.config.schema import BudgetConfig
from mecroute.decision import Candidate, Decision, Rejection
from mecroute.errors import BudgetExceededError
from mecroute.evidence.lengths import known_as
from mecroute.request import Payer, Request
from mecroute.target import TargetState
from mecroute.tiers.base import Call

_PRICES_KEPT = 10_000


@dataclass(frozen=True, slots=True)
class Price:
    """USD per million tokens, and the longest context of the target they are for."""

    input_usd_per_mtok: float
    output_usd_per_mtok: float
    context_length: int

    def cost_usd(self, prompt_tokens: int, output_tokens: int) -> float:
        """Price of so many tokens."""
        return (
            prompt_tokens * self.input_usd_per_mtok + output_tokens * self.output_usd_per_mtok
        ) / 1_000_000

    def of_usage(self, usage: Any, otherwise: float) -> float:
        """Price of what an answer's `usage` reports; `otherwise` where it reports none."""
        if not isinstance(usage, Mapping):
            return otherwise
        prompt, output = usage.get("prompt_tokens"), usage.get("completion_tokens") or 0
        if not isinstance(prompt, int) or not isinstance(output, int) or min(prompt, output) < 0:
            return otherwise
        return self.cost_usd(prompt, output)

    def worst_case_usd(self, call: Call) -> float:
        """Most that a call can cost."""
        return self.cost_usd(*worst_case_tokens(call.task, call.body, self.context_length))


class BudgetGate:
    """Rejects what no budget has room for, reserves before a call, settles after it. For one event loop.

    The file is touched in one thread of its own, so that no wait for it holds up the loop. Without budgets it
    is not touched at all.

    Args:
        watches_prices: whether prices are wanted without any budget as well.
    """

    def __init__(
        self, budgets: Sequence[BudgetConfig], ledger: Ledger, *, watches_prices: bool = False
    ) -> None:
        self._budgets = tuple(budgets)
        self._watches_prices = watches_prices or bool(budgets)
        self._ledger = ledger
        self._prices: dict[str, Price] = {}
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="mecroute-budgets")

    @property
    def active(self) -> bool:
        """Whether there is any budget."""
        return bool(self._budgets)

    async def admit(self, request: Request, decision: Decision, targets: Iterable[TargetState]) -> Decision:
        """Take out the candidates that could break a budget of the request's payer.

        Also notes the prices of the targets, by which calls are reserved for and settled.

        Raises:
            DeadlineExceededError: the request's deadline has passed already.
        """
        if self._watches_prices:
            self._note_prices(targets)
        if not self._budgets or not decision.candidates:
            return decision
        worst = {c.target.id: self._worst_case(request, c) for c in decision.candidates}
        if not any(worst.values()):
            return decision
        try:
            async with asyncio.timeout(request.remaining_s()):
                balances = await asyncio.get_running_loop().run_in_executor(
                    self._thread, self._ledger.balances, self._of(request.payer)
                )
        except TimeoutError:
            late = "the budgets could not be read before the deadline"
            return _without(decision, {target: late for target, usd in worst.items() if usd})
        except BudgetExceededError as error:
            return _without(decision, {target: error.message for target, usd in worst.items() if usd})
        refused: dict[str, str] = {}
        for target, usd in worst.items():
            short = [balance for balance in balances if usd > balance.left_usd]
            if usd and short:
                last: Balance = max(short, key=lambda balance: balance.frees_at)
                refused[target] = no_room_in_words(last, usd)
        decision = _without(decision, refused) if refused else decision
        plan = decision.cascade
        if plan is not None:
            both = worst[plan.first] * plan.samples + worst[plan.escalate_to]
            if any(both > balance.left_usd for balance in balances):
                return decision.without_cascade(f"no budget has room for both stages (${both:.6f})")
        return decision

    def price_of(self, target_id: str) -> Price | None:
        """The price of a target that a budget has to watch; None where it is free or there is no budget."""
        return self._prices.get(target_id) if self._budgets else None

    def known_price(self, target_id: str) -> Price | None:
        """The price of a target, whether or not there is a budget; None where it is free."""
        return self._prices.get(target_id)

    async def reserve(self, payer: Payer, usd: float) -> Reservation:
        """Set an amount aside in every budget of a payer.

        Raises:
            BudgetExceededError: one has no room, or the budgets cannot be used.
        """
        return await self.reserve_in(self._of(payer), usd)

    async def reserve_in(self, budgets: Sequence[Budget], usd: float) -> Reservation:
        """Set an amount aside in these budgets; see `reserve`."""
        made = self._thread.submit(self._ledger.reserve, budgets, usd)
        try:
            return await asyncio.shield(asyncio.wrap_future(made))
        except asyncio.CancelledError:
            made.add_done_callback(self._release)
            raise

    def settle(self, reservation: Reservation, usd: float) -> None:
        """Note what a call did cost. Returns at once."""
        try:
            self._thread.submit(self._ledger.settle, reservation, usd)
        except RuntimeError:  # a stream that is closed after its client
            self._ledger.settle(reservation, usd)
            self._ledger.close()

    def renew(self, reservation: Reservation) -> None:
        """Say that a call still runs. Returns at once."""
        self._thread.submit(self._ledger.renew, reservation)

    async def aclose(self) -> None:
        """Write what is left."""
        await asyncio.to_thread(self._thread.shutdown)
        self._ledger.close()

    def _note_prices(self, targets: Iterable[TargetState]) -> None:
        if len(self._prices) > _PRICES_KEPT:
            self._prices.clear()
        for state in targets:
            if state.input_usd_per_mtok or state.output_usd_per_mtok:
                self._prices[state.target.id] = Price(
                    state.input_usd_per_mtok, state.output_usd_per_mtok, state.context_length
                )
            else:
                self._prices.pop(state.target.id, None)

    def _worst_case(self, request: Request, candidate: Candidate) -> float:
        price = self.price_of(candidate.target.id)
        if price is None:
            return 0.0
        call = Call(request.task, candidate.target, request.body, request.id)
        calls = [call] if candidate.task in (None, request.task) else chat_calls(call)
        return sum(map(price.worst_case_usd, calls))

    def _of(self, payer: Payer) -> tuple[Budget, ...]:
        """The budgets that a payer's calls count in. Who is not named shares one with all who are not."""
        subjects = {
            "all": "",
            "user": known_as(payer.user) if payer.user else "",
            "app": payer.app or "",
            "key": payer.key or "",
        }
        return tuple(Budget(b.name, b.limit_usd, b.per, subjects[b.scope]) for b in self._budgets)

    def _release(self, made: Future[Reservation]) -> None:
        if not made.cancelled() and made.exception() is None:
            self._ledger.settle(made.result(), 0.0)


def ledger_path(state_path: Path) -> Path:
    """Where the budgets lie: beside the state database, in a file of their own, so that neither waits for
    the other or goes down with it."""
    return state_path.with_name("budgets.sqlite3")


def _without(decision: Decision, refused: dict[str, str]) -> Decision:
    plan = decision.cascade
    if plan is not None and not refused.keys().isdisjoint((plan.first, plan.escalate_to)):
        decision = decision.without_cascade("no budget has room for one of its targets")
    left = tuple(c for c in decision.candidates if c.target.id not in refused)
    rejected = [
        Rejection(c.target, "budget", refused[c.target.id])
        for c in decision.candidates
        if c.target.id in refused
    ]
    choice = decision.choice
    primary = decision.primary
    if primary is not None and primary.target.id in refused:
        choice = f"chosen {left[0].target.id}: the best within the budgets" if left else "no target is left"
    return replace(decision, candidates=left, rejected=(*decision.rejected, *rejected), choice=choice)
