"""Plans a hedge: when to ask a second target because the first is late, and which requests may.

After the time within which 95% of the answers begin, one in twenty requests asks twice, and the slowest
answers become as fast as the faster of two (Dean and Barroso, "The tail at scale", 2013).
"""

from __future__ import annotations

from collections.abc import Sequence

from mecroute.config.schema import RouterConfig
from mecroute.decision import Candidate
from mecroute.request import Request
from mecroute.routing.rows import Rows

#: Below this, what a second call costs is more than what it saves.
_LEAST_DELAY_MS = 20.0


def hedge_after_ms(
    request: Request, rows: Rows, candidates: Sequence[Candidate], config: RouterConfig
) -> float | None:
    """When the first fallback is to be asked as well; None where there is nothing to gain or it may not be.

    Args:
        rows, candidates: in the order in which they are tried; all within the request's hard constraints.
    """
    if config.hedge == "never" or config.hedge_budget == 0 or len(rows) < 2:
        return None
    first, second = rows[0], rows[1]
    if config.hedge == "free" and second.cost_usd > 0:
        return None
    most = request.requirements.max_cost_usd
    if most is not None and first.cost_usd + second.cost_usd > most:
        return None
    # The same machine would be as late again.
    one, other = first.state.target, second.state.target
    if one.node == other.node and one.tier == other.tier:
        return None
    # A guess says nothing of what is late, and no model is loaded on suspicion.
    primary, fallback = candidates[0], candidates[1]
    if primary.assumed or primary.cold or fallback.cold:
        return None
    # A whole answer shows nothing of itself until it is there.
    delay = primary.ttft_ms_p95 if request.stream else primary.latency_ms_p95
    delay = max(delay, _LEAST_DELAY_MS)
    deadline = request.requirements.deadline_ms
    if deadline is not None and delay + fallback.ttft_ms >= deadline:
        return None
    return delay


def hedge_weight(primary: Candidate, fallback: Candidate) -> float:
    """What a hedge takes of the budget, in requests: more than one where the fallback is dearer."""
    if fallback.cost_usd <= 0 or primary.cost_usd <= 0:
        return 1.0
    return max(1.0, fallback.cost_usd / primary.cost_usd)
