"""A decision: ranked candidates, rejected targets with their reasons, and every number behind them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from mecroute.context import RequestFeatures
from mecroute.requirements import Requirements
from mecroute.target import Target

#: Why a target cannot serve a request: the hard constraints, by name.
Reason = Literal[
    "model",
    "privacy",
    "residency",
    "offline",
    "capability",
    "context_length",
    "memory",
    "battery",
    "unavailable",
    "budget",
    "quality",
    "cost",
    "deadline",
]


@dataclass(frozen=True, slots=True)
class Scores:
    """Utility per factor, each 0..1 (1 is best), and their weighted sum."""

    latency: float
    quality: float
    cost: float
    availability: float
    total: float


@dataclass(frozen=True, slots=True)
class Candidate:
    """A target with its prediction for one request and its scores.

    Args:
        ttft_ms: predicted time to first token, p50.
        latency_ms_p50: predicted time to the whole answer.
        latency_ms_p95: the same at the 95th percentile.
        quality: predicted share of right answers, 0..1.
        cost_usd: predicted price.
        availability: 0..1.
        cold: whether the model must be loaded first, which the latency then includes.
        assumed: whether the speed behind the latency is an assumption.
        notes: where the numbers come from, and what had to be assumed.
        quality_adjusted_by: what evidence added to the predicted quality, -1..1.
    """

    target: Target
    ttft_ms: float
    latency_ms_p50: float
    latency_ms_p95: float
    quality: float
    cost_usd: float
    availability: float
    scores: Scores
    cold: bool = False
    assumed: bool = False
    notes: tuple[str, ...] = ()
    quality_adjusted_by: float = 0.0


@dataclass(frozen=True, slots=True)
class Rejection:
    """A target that a hard constraint excludes, and why."""

    target: Target
    reason: Reason
    detail: str


@dataclass(frozen=True, slots=True)
class Decision:
    """Where a request goes and why. `candidates` is in the order in which targets are tried.

    Args:
        policy: name of the policy whose weights were used.
        hedge_after_ms: when the first fallback is asked as well, if the primary has not begun to answer by
            then; None without a hedge.
        propensity: 0..1, probability with which this primary was chosen (1 unless something was explored);
            what off-policy estimates divide by.
        explored: whether the primary was put first to learn about it, and not for its score.
        explorable: ids of the targets that exploring could have put first instead of the best one.
    """

    request_id: str
    features: RequestFeatures
    requirements: Requirements
    weights: Mapping[str, float]
    candidates: tuple[Candidate, ...]
    rejected: tuple[Rejection, ...]
    choice: str = ""
    policy: str = "balanced"
    hedge_after_ms: float | None = None
    propensity: float = 1.0
    explored: bool = False
    explorable: tuple[str, ...] = ()

    @property
    def primary(self) -> Candidate | None:
        """The candidate tried first; None when every target was rejected."""
        return self.candidates[0] if self.candidates else None

    @property
    def fallbacks(self) -> tuple[Candidate, ...]:
        """The candidates tried after the primary, in order."""
        return self.candidates[1:]

    def to_dict(self) -> dict[str, Any]:
        """The decision as JSON types."""
        data = asdict(self)
        data["features"]["needs"] = sorted(self.features.needs)
        data["requirements"] = self.requirements.to_dict()
        data["weights"] = dict(self.weights)
        for entry, item in zip(data["candidates"], self.candidates, strict=True):
            entry["target"]["id"] = item.target.id
        for entry, refused in zip(data["rejected"], self.rejected, strict=True):
            entry["target"]["id"] = refused.target.id
        return data

    def explain(self) -> str:
        """The decision in words and numbers, one line per target."""
        f = self.features
        lines = [
            f"request {self.request_id}: complexity {f.complexity:.2f}"
            + (f" ({', '.join(f.reasons)})" if f.reasons else "")
            + f", about {f.prompt_tokens} tokens in, {f.output_tokens} out",
            "requirements: " + ", ".join(f"{k}={v}" for k, v in self.requirements.to_dict().items()),
            "score = " + " + ".join(f"{weight:.2f} {factor}" for factor, weight in self.weights.items()),
        ]
        for rank, c in enumerate(self.candidates, 1):
            s = c.scores
            lines.append(
                f"{rank}. {c.target.id}: {s.total:.3f} = latency {s.latency:.3f}, quality {s.quality:.3f}, "
                f"cost {s.cost:.3f}, availability {s.availability:.3f}"
            )
            lines.append(
                f"   TTFT {c.ttft_ms:.0f} ms, whole {c.latency_ms_p50:.0f} ms (p95 {c.latency_ms_p95:.0f}), "
                f"quality {c.quality:.2f}, ${c.cost_usd:.6f}, availability {c.availability:.3f}"
            )
            lines += [f"   {note}" for note in c.notes]
        if self.choice:
            lines.append(self.choice)
        lines += [f"rejected {r.target.id}: {r.reason}: {r.detail}" for r in self.rejected]
        return "\n".join(lines)
