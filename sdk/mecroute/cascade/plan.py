"""A cascade as a decision plans it, and what became of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class CascadePlan:
    """A first target answers, its answer is judged, and a second one is asked where it is too poor.

    The figures are those of both stages together; each candidate keeps its own.

    Args:
        first: id of the target that answers first: the decision's primary.
        escalate_to: id of the target that is asked where that answer is too poor: the candidate after it.
        judge: what the answer is judged by.
        threshold: least score of an answer that is kept, 0..1.
        max_error_rate: of the answers that are kept, at most this share is wrong, 0..1, ...
        confidence: ... with this confidence, 0..1.
        keep_share: share of answers that are expected to be kept, 0..1.
        samples: answers that the first target is asked for: more than one where they are compared.
        latency_ms_p50: first stage, and the second as often as it is expected to be needed.
        latency_ms_p95: the second stage included, unless it is needed by less than 5%.
        cost_usd: expected.
        cost_usd_most: predicted where the second stage is needed.
        quality: predicted share of right answers, 0..1.
        score: the policy's, of these figures.
        instead: id of the target that would be asked without the cascade, and `instead_score` its score.
    """

    first: str
    escalate_to: str
    judge: str
    threshold: float
    max_error_rate: float
    confidence: float
    keep_share: float
    samples: int
    latency_ms_p50: float
    latency_ms_p95: float
    cost_usd: float
    cost_usd_most: float
    quality: float
    score: float
    instead: str
    instead_score: float

    def to_dict(self) -> dict[str, Any]:
        """The plan as JSON types."""
        return {name: getattr(self, name) for name in CascadePlan.__slots__}

    def told(self) -> list[str]:
        """The plan in words and numbers."""
        asked = "answers first" if self.samples == 1 else f"answers {self.samples} times"
        return [
            f"cascade: {self.first} {asked}, judged by {self.judge}: below {self.threshold:.3f} (about "
            f"{1 - self.keep_share:.0%} of answers) {self.escalate_to} is asked; of those kept at most "
            f"{self.max_error_rate:.1%} are wrong, with {self.confidence:.0%} confidence",
            f"   both stages: whole {self.latency_ms_p50:.0f} ms (p95 {self.latency_ms_p95:.0f}), quality "
            f"{self.quality:.2f}, ${self.cost_usd:.6f} (at most ${self.cost_usd_most:.6f}); score "
            f"{self.score:.3f}, against {self.instead_score:.3f} of {self.instead} alone",
        ]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of a cascade's first answer.

    Args:
        first: id of the target that gave it.
        judge, threshold: as planned.
        score: 0..1; None where there was nothing to judge.
        kept: whether it was good enough.
        delivered: whether it was what the caller got: also where escalating failed.
        reason: why, in words.
        latency_ms: from the first call until the answer was judged.
        prompt_tokens, output_tokens: of all answers in the first stage.
        cost_usd: of all answers in the first stage; the outcome's cost includes it.
    """

    first: str
    judge: str
    threshold: float | None
    score: float | None
    kept: bool
    delivered: bool
    reason: str
    latency_ms: float
    prompt_tokens: int
    output_tokens: int
    cost_usd: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """The verdict as JSON types."""
        return {name: getattr(self, name) for name in Verdict.__slots__}
