"""A recorded decision in the form that a replay needs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from mecroute.outcome import ABANDONED


@dataclass(frozen=True, slots=True)
class LoggedCandidate:
    """A candidate as it was predicted. Utilities, quality and availability 0..1."""

    id: str
    tier: str
    latency_ms: float
    cost_usd: float
    quality: float
    availability: float
    latency_utility: float
    cost_utility: float


@dataclass(frozen=True, slots=True)
class LoggedDecision:
    """One request as it was decided and as it turned out.

    Args:
        chosen: id of the primary.
        propensity: with what probability it was chosen.
        possible: ids that could have been chosen at all; the chosen one alone without exploration.
        latency_ms, cost_usd: observed, including whatever failover added.
        answered: 1 where it was answered, else 0.
        quality: how good the answer was judged to be; None where nobody and nothing judged it.
        is_cut: whether it had more candidates than were kept.
    """

    id: str
    at: float
    candidates: tuple[LoggedCandidate, ...]
    chosen: str
    propensity: float
    possible: frozenset[str]
    latency_ms: float
    cost_usd: float
    answered: float
    quality: float | None
    is_cut: bool = False

    def candidate(self, id: str) -> LoggedCandidate:
        """One of the candidates."""
        return next(c for c in self.candidates if c.id == id)


def logged_decision(
    row: Mapping[str, Any], detail: Mapping[str, Any], judgements: Iterable[Mapping[str, Any]]
) -> LoggedDecision | None:
    """Read a recorded decision; None where it cannot be replayed.

    Left out are answers from the cache, requests whose caller went away, cascades (whose latency and cost are
    those of two targets), requests with no candidate, and records with numbers missing.
    """
    if row["cache"] is not None or row["error"] == ABANDONED:
        return None
    decision = detail.get("decision") or {}
    if decision.get("cascade") is not None:
        return None
    try:
        candidates = tuple(_candidate(entry) for entry in decision["candidates"])
        if not candidates:
            return None
        chosen = candidates[0].id
        propensity = float(row["propensity"])
        latency_ms, cost_usd = float(row["latency_ms"]), float(row["cost_usd"])
    except (KeyError, TypeError, ValueError):
        return None
    if not (0 < propensity <= 1) or not math.isfinite(latency_ms) or not math.isfinite(cost_usd):
        return None
    known = {candidate.id for candidate in candidates}
    possible = frozenset(decision.get("explorable") or ()) & known | {chosen}
    return LoggedDecision(
        id=str(row["id"]),
        at=float(row["at"]),
        candidates=candidates,
        chosen=chosen,
        propensity=propensity,
        possible=possible if propensity < 1 else frozenset({chosen}),
        latency_ms=latency_ms,
        cost_usd=cost_usd,
        answered=float(row["error"] is None),
        quality=_judged(judgements, str(row["target"])) if row["target"] == chosen else None,
        is_cut=int(decision.get("candidate_count") or 0) > len(candidates),
    )


def _candidate(entry: Mapping[str, Any]) -> LoggedCandidate:
    target, scores = entry["target"], entry["scores"]
    return LoggedCandidate(
        id=str(target["id"]),
        tier=str(target["tier"]),
        latency_ms=float(entry["latency_ms_p50"]),
        cost_usd=float(entry["cost_usd"]),
        quality=float(entry["quality"]),
        availability=float(entry["availability"]),
        latency_utility=float(scores["latency"]),
        cost_utility=float(scores["cost"]),
    )


def _judged(judgements: Iterable[Mapping[str, Any]], target: str) -> float | None:
    """The weighted mean of what was said of the chosen target's answer.

    Signals of the text itself are left out: only bad ones are recorded, so that their mean would be 0.
    """
    said = [
        (float(j["score"]), float(j["weight"]))
        for j in judgements
        if j["target"] == target and j["source"] != "signals"
    ]
    weight = sum(w for _, w in said)
    return sum(score * w for score, w in said) / weight if weight > 0 else None
