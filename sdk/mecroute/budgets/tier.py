"""A tier whose paid calls are reserved for before they are made and settled when they end."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from mecroute.budgets.gate import BudgetGate, Price
from mecroute.budgets.ledger import RESERVED_FOR_S, Reservation
from mecroute.budgets.worst_case import likely_prompt_tokens, worst_case_tokens
from mecroute.errors import MecrouteError
from mecroute.target import Target
from mecroute.tiers.base import Call, Tier

_RENEW_S = RESERVED_FOR_S / 3
#: Failures of httpx before anything of the request was sent.
_NEVER_SENT = frozenset(
    {"ConnectError", "ConnectTimeout", "PoolTimeout", "ProxyError", "UnsupportedProtocol"}
)


class BudgetedTier:
    """Wraps a tier; every attempt goes through here: first choices, failover, hedges, comparisons.

    What is charged:
        an answer with its usage: what that costs;
        a stream that was broken off: the prompt and what had come of the answer;
        a refusal, or a connection that was never made: nothing;
        a whole answer that was given up or lost, or came without usage: all that was reserved, since what
        the provider bills is then not known.
    """

    def __init__(self, tier: Tier, gate: BudgetGate) -> None:
        self._tier = tier
        self._gate = gate

    def continues_prefix(self, target: Target) -> bool:
        """As the tier inside says."""
        return self._tier.continues_prefix(target)

    async def complete(self, call: Call) -> dict[str, Any]:
        """As the tier inside.

        Raises:
            BudgetExceededError: a budget has no room for it.
        """
        price = self._gate.price_of(call.target.id)
        if price is None:
            return await self._tier.complete(call)
        reservation = await self._gate.reserve(call.payer, price.worst_case_usd(call))
        charged = reservation.usd
        try:
            body = await self._tier.complete(call)
            charged = price.of_usage(body.get("usage"), reservation.usd)
            return body
        except MecrouteError as error:
            if _cost_nothing(error):
                charged = 0.0
            raise
        finally:
            self._gate.settle(reservation, charged)

    async def stream(self, call: Call) -> AsyncGenerator[dict[str, Any]]:
        """As the tier inside; raises `BudgetExceededError` when the first chunk is asked for."""
        price = self._gate.price_of(call.target.id)
        if price is None:
            async with aclosing(self._tier.stream(call)) as chunks:
                async for chunk in chunks:
                    yield chunk
            return
        reservation = await self._gate.reserve(call.payer, price.worst_case_usd(call))
        renewed = time.monotonic()
        usage: Any = None
        came = 0
        nothing = False
        try:
            async with aclosing(self._tier.stream(call)) as chunks:
                async for chunk in chunks:
                    came += 1
                    usage = chunk.get("usage") or usage
                    if time.monotonic() - renewed > _RENEW_S:
                        renewed = time.monotonic()
                        self._gate.renew(reservation)
                    yield chunk
        except MecrouteError as error:
            nothing = not came and _cost_nothing(error)
            raise
        finally:
            charged = 0.0 if nothing else _of_stream(price, call, usage, came, reservation)
            self._gate.settle(reservation, charged)

    async def aclose(self) -> None:
        """Close the tier inside."""
        await self._tier.aclose()


def _of_stream(price: Price, call: Call, usage: Any, chunks: int, reservation: Reservation) -> float:
    worst, _ = worst_case_tokens(call.task, call.body, price.context_length)
    so_far = min(reservation.usd, price.cost_usd(likely_prompt_tokens(worst), chunks))
    return price.of_usage(usage, so_far)


def _cost_nothing(error: MecrouteError) -> bool:
    """Whether a call failed before the other side can have done any work for it."""
    cause = error.__cause__
    if cause is None:
        return error.code != "tier_response_error"  # a status that refuses, or a model that is not there
    return type(cause).__name__ in _NEVER_SENT
