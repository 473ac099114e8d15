"""What happened: one outcome per request, one segment per target that took part."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from mecroute.cascade.plan import Verdict
from mecroute.decision import Decision
from mecroute_registry.facts import Tier

Seam = Literal["exact", "instructed"]

#: The outcome's error where the caller closed a stream before its end, which says nothing of the target.
ABANDONED = "the caller stopped reading"


@dataclass(slots=True)
class Segment:
    """The part of an answer that one target gave.

    Args:
        output_tokens: tokens received in this segment.
        text_chars: characters of it that were delivered to the caller.
        ttft_ms: from this segment's start to its first text; for an answer that came whole, as the
            target reports it; None where neither is known.
        seam: how it was joined to the segment before it: `exact` (the model continued from the
            delivered text), `instructed` (it was asked to continue); None for the first.
        error: why the segment ended early; None when it ran to its end.
        begun_ms: from the first segment's start to this one's.
        hedge: whether it was begun because the segment before it was late.
        overtaken_by: the target that answered first, when this one was dropped for it; that is no failure.
        escalated_to: the target that was asked because this answer was judged too poor; none of it was
            delivered.
        computed_tokens: of the prompt, less what the target held already; None where it does not tell.
        alone: whether this client had nothing else under way at the target until its first text.
    """

    target_id: str
    tier: Tier
    output_tokens: int = 0
    text_chars: int = 0
    ttft_ms: float | None = None
    latency_ms: float = 0.0
    seam: Seam | None = None
    error: str | None = None
    begun_ms: float = 0.0
    hedge: bool = False
    overtaken_by: str | None = None
    escalated_to: str | None = None
    computed_tokens: int | None = None
    alone: bool = True

    def to_dict(self) -> dict[str, Any]:
        """The segment as JSON types."""
        return {name: getattr(self, name) for name in Segment.__slots__}


@dataclass(frozen=True, slots=True)
class Outcome:
    """What happened to one request, measured by the client. Times in ms from the call.

    Args:
        prompt_tokens, output_tokens: of the answer that was delivered.
        cost_usd: of every answer that was begun for the request, delivered or not.
        cascade: what became of the first answer, where one was judged.
    """

    target_id: str
    ttft_ms: float | None
    latency_ms: float
    prompt_tokens: int
    output_tokens: int
    tokens_per_s: float | None
    cost_usd: float
    error: str | None = None
    cascade: Verdict | None = None

    def to_dict(self) -> dict[str, Any]:
        """The outcome as JSON types."""
        told = {name: getattr(self, name) for name in Outcome.__slots__}
        return told | {"cascade": self.cascade.to_dict() if self.cascade is not None else None}


@dataclass(frozen=True, slots=True)
class Provenance:
    """Where an answer comes from: the decision, the outcome and every segment.

    `cache` is `exact` when the answer to the same request was remembered, `semantic` when that to one which
    means the same was, else None.
    """

    request_id: str
    decision: Decision
    outcome: Outcome
    segments: tuple[Segment, ...]
    tier: Tier
    node: str | None
    model: str
    cache: Literal["exact", "semantic"] | None = None

    def to_dict(self) -> dict[str, Any]:
        """The provenance as JSON types."""
        return {
            "request_id": self.request_id,
            "tier": self.tier,
            "node": self.node,
            "model": self.model,
            "cache": self.cache,
            "outcome": self.outcome.to_dict(),
            "segments": [segment.to_dict() for segment in self.segments],
            "decision": self.decision.to_dict(),
        }
