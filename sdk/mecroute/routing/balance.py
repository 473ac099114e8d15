"""Who comes first among targets that are about equal, without everybody choosing the same one.

A client sees a node's load up to a second late. If every client took the one that seems best, they would
all take the same, and then all the next: herding. So choices among near-equals are spread by a number made
from the request's id, the same each time for the same request.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence

from mecroute.config.schema import Balance
from mecroute.routing.dispatch import Dispatch
from mecroute.routing.rows import Row

#: Latencies within this factor and this many ms of each other are told apart by chance rather than by merit.
_NEAR_FACTOR = 1.10
_NEAR_MS = 5.0

Choose = Callable[[Sequence[Row], int, Dispatch, str | None], tuple[Row, str]]


def balance(
    strategy: Balance, equals: Sequence[Row], *, request_id: str, dispatch: Dispatch, zone: str | None
) -> tuple[Row, str]:
    """Choose among targets of one tier whose scores are about equal.

    Args:
        equals: at least one, best first.
        request_id: what chance is made from.
        zone: where the user is; None where unknown.

    Returns:
        The choice, and why in words.
    """
    if len(equals) == 1:
        return equals[0], ""
    return _STRATEGIES[strategy](equals, zlib.crc32(request_id.encode()), dispatch, zone)


def _least_latency(equals: Sequence[Row], seed: int, dispatch: Dispatch, zone: str | None) -> tuple[Row, str]:
    """Power of two choices (Mitzenmacher, 2001) among those that are about as fast as the fastest."""
    fastest = min(row.p50_ms for row in equals)
    near = [row for row in equals if row.p50_ms <= fastest * _NEAR_FACTOR + _NEAR_MS]
    here = [row for row in near if zone is not None and row.state.zone == zone]
    near = here or near
    if len(near) == 1:
        return near[0], "the least predicted latency"
    first = seed % len(near)
    second = (first + 1 + seed // len(near) % (len(near) - 1)) % len(near)
    one, other = near[first], near[second]
    chosen = min(one, other, key=lambda row: (_load(row, dispatch), row.p50_ms))
    return chosen, f"the less loaded of two drawn from {len(near)} about equally fast"


def _round_robin(equals: Sequence[Row], seed: int, dispatch: Dispatch, zone: str | None) -> tuple[Row, str]:
    """Stride scheduling (Waldspurger, 1995): whoever was sent the least for its capacity."""
    del seed, zone
    chosen = min(equals, key=lambda row: (dispatch.served(row.id) / _slots(row), row.id))
    return chosen, "its turn, by capacity"


def _zone(equals: Sequence[Row], seed: int, dispatch: Dispatch, zone: str | None) -> tuple[Row, str]:
    here = [row for row in equals if zone is not None and row.state.zone == zone]
    if not here:
        return _least_latency(equals, seed, dispatch, zone)
    chosen, why = _least_latency(here, seed, dispatch, zone)
    return chosen, f"in the user's zone '{zone}', {why}"


def _cost(equals: Sequence[Row], seed: int, dispatch: Dispatch, zone: str | None) -> tuple[Row, str]:
    least = min(row.cost_usd for row in equals)
    chosen, why = _least_latency([r for r in equals if r.cost_usd == least], seed, dispatch, zone)
    return chosen, f"the lowest price, {why}"


def _prefix(equals: Sequence[Row], seed: int, dispatch: Dispatch, zone: str | None) -> tuple[Row, str]:
    most = max(row.cached_tokens for row in equals)
    if not most:
        return _least_latency(equals, seed, dispatch, zone)
    chosen, why = _least_latency([r for r in equals if r.cached_tokens == most], seed, dispatch, zone)
    return chosen, f"holds most of the prompt already, {why}"


_STRATEGIES: Mapping[Balance, Choose] = {
    "least-latency": _least_latency,
    "round-robin": _round_robin,
    "zone": _zone,
    "cost": _cost,
    "prefix": _prefix,
}


def _slots(row: Row) -> int:
    return max(1, row.state.parallel)


def _load(row: Row, dispatch: Dispatch) -> float:
    """Requests there per request it can serve at once: by its report, or by what this client has there."""
    state = row.state
    busy = state.running + state.queued
    own = dispatch.under_way.get(row.id)
    return max(busy if busy > 0 else 0, own.count if own is not None else 0) / _slots(row)
