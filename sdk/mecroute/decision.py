"""A decision: ranked candidates, rejected targets with their reasons, and every number behind them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, overload

from mecroute.cascade.plan import CascadePlan
from mecroute.context import RequestFeatures
from mecroute.lazy import Lazy
from mecroute.predict.line import Pace
from mecroute.requirements import Requirements
from mecroute.target import Target
from mecroute_registry.facts import Task

#: Why a target cannot serve a request: the hard constraints, by name.
Reason = Literal[
    "model",
    "privacy",
    "residency",
    "offline",
    "metered",
    "capability",
    "labels",
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


class Notes(Sequence[str]):
    """Notes that are put into words when somebody reads them."""

    __slots__ = ("_made", "_make")

    def __init__(self, make: Callable[[], Iterable[str]]) -> None:
        self._make = make
        self._made: tuple[str, ...] | None = None

    def _all(self) -> tuple[str, ...]:
        if self._made is None:
            self._made = tuple(self._make())
        return self._made

    def __len__(self) -> int:
        return len(self._all())

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[str, ...]: ...
    def __getitem__(self, index: int | slice) -> str | tuple[str, ...]:
        return self._all()[index]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and self._all() == tuple(other)

    def __repr__(self) -> str:
        return repr(self._all())

    def __reduce__(self) -> tuple[type[tuple[Any, ...]], tuple[Any, ...]]:
        # What is copied or pickled is what it says, and not the request it was made from.
        return tuple, (tuple(self),)

    __hash__ = None  # type: ignore[assignment]  # as a list's: it is compared, never looked up


@dataclass(frozen=True, slots=True)
class LatencyParts:
    """What a predicted median latency is made of, in ms."""

    network_ms: float
    load_ms: float
    queue_ms: float
    prefill_ms: float
    decode_ms: float


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
        ttft_ms_p95: time to first token at the 95th percentile.
        parts: what the median latency is made of; None where it was not predicted from parts.
        output_tokens: tokens this target is expected to write; 0 where only the request's estimate is known.
        cached_prompt_tokens: tokens of the prompt that the target holds already, about.
        claimed_ttft_ms, claimed_wait_ms: what the target's profile and reported load mean by themselves,
            before any correction; 0 where unknown.
        crowd: 0..3, how many others were expected beside it: none, less than half the slots, more, all.
        pace: how fast it computes beside others; None where that is none of its callers' business.
        notes: where the numbers come from, and what had to be assumed.
        quality_adjusted_by: what evidence added to the predicted quality, -1..1.
        task: what it is asked for: `chat` where a chat model is asked for classes; None: what the request is
            for.
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
    ttft_ms_p95: float = 0.0
    parts: LatencyParts | None = None
    output_tokens: float = 0.0
    cached_prompt_tokens: int = 0
    claimed_ttft_ms: float = 0.0
    claimed_wait_ms: float = 0.0
    crowd: int = 0
    pace: Pace | None = None
    notes: Sequence[str] = ()
    quality_adjusted_by: float = 0.0
    task: Task | None = None

    def to_dict(self) -> dict[str, Any]:
        """The candidate as JSON types."""
        scores, parts = self.scores, self.parts
        return {
            "target": _target_dict(self.target),
            "ttft_ms": self.ttft_ms,
            "ttft_ms_p95": self.ttft_ms_p95,
            "latency_ms_p50": self.latency_ms_p50,
            "latency_ms_p95": self.latency_ms_p95,
            "quality": self.quality,
            "cost_usd": self.cost_usd,
            "availability": self.availability,
            "scores": {name: getattr(scores, name) for name in Scores.__slots__},
            "cold": self.cold,
            "assumed": self.assumed,
            "parts": {name: getattr(parts, name) for name in LatencyParts.__slots__} if parts else None,
            "output_tokens": self.output_tokens,
            "cached_prompt_tokens": self.cached_prompt_tokens,
            "claimed_ttft_ms": self.claimed_ttft_ms,
            "claimed_wait_ms": self.claimed_wait_ms,
            "crowd": self.crowd,
            "quality_adjusted_by": self.quality_adjusted_by,
            "task": self.task,
            "notes": list(self.notes),
        }


def annotated(
    candidates: Sequence[Candidate], notes: Callable[[str], tuple[str, ...]]
) -> Sequence[Candidate]:
    """Candidates with further notes, which are looked up when a candidate is first read.

    Args:
        candidates: as they are.
        notes: what to add to the notes of the target with that id.
    """

    def make(place: int) -> Candidate:
        candidate = candidates[place]
        more = notes(candidate.target.id)
        if not more:
            return candidate
        plain = candidate.notes
        return replace(candidate, notes=Notes(lambda: (*plain, *more)))

    return Lazy(len(candidates), make)


@dataclass(frozen=True, slots=True)
class Rejection:
    """A target that a hard constraint excludes, and why."""

    target: Target
    reason: Reason
    detail: str

    def to_dict(self) -> dict[str, Any]:
        """The rejection as JSON types."""
        return {"target": _target_dict(self.target), "reason": self.reason, "detail": self.detail}


@dataclass(frozen=True, slots=True)
class Decision:
    """Where a request goes and why. `candidates` is in the order in which targets are tried.

    Candidates and rejections may be sequences that make their items when they are read: a decision among a
    thousand targets is looked at only at its top.

    Args:
        policy: name of the policy whose weights were used.
        hedge_after_ms: when the first fallback is asked as well, if the primary has not begun to answer by
            then (a whole answer has begun when it is there); None without a hedge.
        hedge_to: the id of that fallback; should another stand in its place, nothing is hedged.
        propensity: 0..1, probability with which this primary was chosen (1 unless something was explored);
            what off-policy estimates divide by.
        explored: whether the primary was put first to learn about it, and not for its score.
        notes: what else bore on the whole decision.
        explorable: ids of the targets that exploring could have put first instead of the best one.
        cascade: what is planned where the primary's answer is to be judged, with the figures of both stages.
    """

    request_id: str
    features: RequestFeatures
    requirements: Requirements
    weights: Mapping[str, float]
    candidates: Sequence[Candidate]
    rejected: Sequence[Rejection]
    choice: str = ""
    policy: str = "balanced"
    hedge_after_ms: float | None = None
    hedge_to: str | None = None
    propensity: float = 1.0
    explored: bool = False
    notes: tuple[str, ...] = ()
    explorable: tuple[str, ...] = ()
    cascade: CascadePlan | None = None

    @property
    def primary(self) -> Candidate | None:
        """The candidate tried first; None when every target was rejected."""
        return self.candidates[0] if self.candidates else None

    @property
    def fallbacks(self) -> Sequence[Candidate]:
        """The candidates tried after the primary, in order."""
        return self.candidates[1:]

    def to_dict(self) -> dict[str, Any]:
        """The decision as JSON types."""
        f = self.features
        return {
            "request_id": self.request_id,
            "features": {name: getattr(f, name) for name in RequestFeatures.__slots__}
            | {"reasons": list(f.reasons), "needs": sorted(f.needs)},
            "requirements": self.requirements.to_dict(),
            "policy": self.policy,
            "weights": dict(self.weights),
            "candidates": [candidate.to_dict() for candidate in self.candidates],
            "rejected": [rejection.to_dict() for rejection in self.rejected],
            "choice": self.choice,
            "hedge_after_ms": self.hedge_after_ms,
            "hedge_to": self.hedge_to,
            "propensity": self.propensity,
            "explored": self.explored,
            "notes": list(self.notes),
            "cascade": self.cascade.to_dict() if self.cascade is not None else None,
        }

    def without_cascade(self, why: str) -> Decision:
        """The decision as it would be had no cascade been planned, with a note that says why."""
        if self.cascade is None:
            return self
        instead = self.cascade.instead
        left = sorted(self.candidates, key=lambda c: (c.target.id != instead, -c.scores.total))
        return replace(
            self,
            candidates=tuple(left),
            cascade=None,
            choice=f"chosen {left[0].target.id}" if left else "no target is left",
            notes=(*self.notes, f"no cascade: {why}"),
        )

    def outline(self) -> list[str]:
        """What the decision started from: the request's features, the requirements, the weighting."""
        f = self.features
        asked = ", ".join(f"{name}={value}" for name, value in self.requirements.to_dict().items())
        weighting = " + ".join(f"{weight:.2f} {factor}" for factor, weight in self.weights.items())
        return [
            f"request {self.request_id}: complexity {f.complexity:.2f}"
            + (f" ({', '.join(f.reasons)})" if f.reasons else "")
            + f", about {f.prompt_tokens} tokens in, {f.output_tokens} out"
            + "".join(f", {told}" for told in _nature(f)),
            f"requirements: {asked}",
            f"policy {self.policy}: score = {weighting or 'what its code says'}",
        ]

    def outcome(self) -> list[str]:
        """What was chosen and why, the hedge, and what else bore on it."""
        lines = [self.choice] if self.choice else []
        if self.hedge_after_ms is not None:
            lines.append(
                f"hedge: {self.hedge_to} is asked as well after {self.hedge_after_ms:.0f} ms "
                "without an answer"
            )
        if self.cascade is not None:
            lines += self.cascade.told()
        return [*lines, *self.notes]

    def explain(self) -> str:
        """The decision in words and numbers, a few lines per target."""
        lines = self.outline()
        for rank, c in enumerate(self.candidates, 1):
            s, p = c.scores, c.parts
            lines.append(
                f"{rank}. {c.target.id}: {s.total:.3f} = latency {s.latency:.3f}, quality {s.quality:.3f}, "
                f"cost {s.cost:.3f}, availability {s.availability:.3f}"
            )
            lines.append(
                f"   TTFT {c.ttft_ms:.0f} ms (p95 {c.ttft_ms_p95:.0f}), whole {c.latency_ms_p50:.0f} ms "
                f"(p95 {c.latency_ms_p95:.0f}), quality {c.quality:.2f}, ${c.cost_usd:.6f}, "
                f"availability {c.availability:.3f}"
            )
            if p is not None:
                lines.append(
                    f"   = network {p.network_ms:.0f} + loading {p.load_ms:.0f} + queue {p.queue_ms:.0f} + "
                    f"prefill {p.prefill_ms:.0f} + decode {p.decode_ms:.0f} ms"
                )
            lines += [f"   {note}" for note in c.notes]
        lines += self.outcome()
        lines += [f"rejected {r.target.id}: {r.reason}: {r.detail}" for r in self.rejected]
        return "\n".join(lines)


def _nature(features: RequestFeatures) -> Iterable[str]:
    """Language, question and state of the conversation, where they are known."""
    if features.language is not None:
        yield f"language {features.language}"
    if features.question is not None:
        yield f"asks for: {features.question}"
    if features.conversation is not None:
        yield f"{features.conversation} ({features.turns} turns)"


def _target_dict(target: Target) -> dict[str, Any]:
    return {
        "tier": target.tier,
        "model": target.model,
        "node": target.node,
        "digest": target.digest,
        "region": target.region,
        "id": target.id,
    }
