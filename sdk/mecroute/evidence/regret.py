"""Regret: the best that was possible, by what was predicted, less what was got, in units of the score."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mecroute.decision import Candidate, Decision
from mecroute.evidence.posterior import SIGN_WEIGHTS
from mecroute.outcome import Outcome


@dataclass(frozen=True, slots=True)
class Regret:
    """How a decision turned out, 0..1 each.

    Args:
        got: the decision's own score, over what was observed in place of what was predicted.
        best: the highest of `got` and the predicted scores of the other candidates.
        best_target: whose that was.
        value: best - got: 0 when nothing promised more.
    """

    got: float
    best: float
    best_target: str
    value: float


def regret(decision: Decision, outcome: Outcome, quality: float | None = None) -> Regret | None:
    """Score what happened against what else was possible.

    Args:
        quality: 0..1, how good the answer was judged to be; None takes what was predicted of the target.

    Returns:
        None where the decision had no candidate, or the observation is no number.
    """
    given = next((c for c in decision.candidates if c.target.id == outcome.target_id), decision.primary)
    if given is None or not math.isfinite(outcome.latency_ms) or not math.isfinite(outcome.cost_usd):
        return None
    weights = decision.weights
    judged = given.quality if quality is None else quality
    if outcome.error is not None:
        got = 0.0  # no answer has no use, however fast it came
    else:
        got = (
            weights.get("latency", 0) * _latency_utility(given, outcome.latency_ms)
            + weights.get("quality", 0) * judged
            + weights.get("cost", 0) * _cost_utility(decision, given, outcome.cost_usd)
            + weights.get("availability", 0)
        )
    best, where = got, outcome.target_id
    for candidate in decision.candidates:
        if candidate.target.id != outcome.target_id and candidate.scores.total > best:
            best, where = candidate.scores.total, candidate.target.id
    return Regret(got, best, where, best - got)


def regret_after(detail: Mapping[str, Any], judgements: Sequence[Mapping[str, Any]]) -> float | None:
    """The recorded regret of a request, once its answer was judged; None where none was recorded.

    Args:
        detail: what was kept of the request.
        judgements: what was said of its answer since, each with `target`, `source`, `score` and `weight`.
    """
    kept = detail.get("regret")
    if not isinstance(kept, Mapping) or detail["outcome"]["error"] is not None:
        return float(kept["value"]) if isinstance(kept, Mapping) else None
    target, decision = detail["outcome"]["target_id"], detail["decision"]
    said = [j for j in judgements if j["target"] == target and j["source"] != "signals"]
    weight = sum(float(j["weight"]) for j in said)
    given = next((c for c in decision["candidates"] if c["target"]["id"] == target), None)
    if weight <= 0 or given is None:
        return float(kept["value"])
    signs = detail.get("signals") or {}
    bad = any(signs.get(name) for name in SIGN_WEIGHTS)
    judged = sum(float(j["score"]) * float(j["weight"]) for j in said) / weight
    moved = float(decision["weights"].get("quality", 0)) * (
        judged - (0.0 if bad else float(given["quality"]))
    )
    others = [c["scores"]["total"] for c in decision["candidates"] if c["target"]["id"] != target]
    got = float(kept["got"]) + moved
    return max([got, *(float(other) for other in others)]) - got


def _latency_utility(candidate: Candidate, latency_ms: float) -> float:
    """The utility of an observed latency, on the curve limit / (limit + x) through the predicted point."""
    return _on_curve(candidate.latency_ms_p50, candidate.scores.latency, latency_ms)


def _cost_utility(decision: Decision, given: Candidate, cost_usd: float) -> float:
    if cost_usd <= 0:
        return 1.0
    # Of a free candidate the curve cannot be told; any other of the same decision has the same one.
    priced = given if given.cost_usd > 0 else next((c for c in decision.candidates if c.cost_usd > 0), given)
    return _on_curve(priced.cost_usd, priced.scores.cost, cost_usd)


def _on_curve(predicted: float, utility: float, observed: float) -> float:
    if not (predicted > 0 and 0 < utility < 1):
        return utility
    limit = predicted * utility / (1 - utility)
    return limit / (limit + max(0.0, observed))
