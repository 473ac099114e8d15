"""A policy: weights of the four factors, and what else goes with a way to choose."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from mecroute.requirements import Privacy

if TYPE_CHECKING:
    from mecroute.context import RequestFeatures
    from mecroute.decision import Candidate
    from mecroute.requirements import Requirements


class Scorer(Protocol):
    """Your own way to score, found by the entry point group `mecroute.policies`.

    It is called once per candidate that passed every hard constraint, with the prediction and the four
    utilities in `candidate.scores` (whose `total` is the balanced one), and returns a finite number; the
    highest goes first. It sees no prompt, and it cannot bring back a rejected target.
    """

    def __call__(
        self, candidate: Candidate, features: RequestFeatures, requirements: Requirements
    ) -> float: ...


@dataclass(frozen=True, slots=True)
class Policy:
    """How candidates are scored. The weights are 0..1 and sum to 1.

    Args:
        floor: a privacy floor that goes with the policy; it only ever tightens the request's own.
        tie_margin: scores this close go to the nearer tier; None: the configured margin.
        scorer: code in place of the weights.
        cascade: whether an answer may be asked for twice, where `[router.cascade]` is enabled.
        encode: whether a decision may wait for `[router] encoder`.
    """

    name: str
    latency: float = 0.40
    quality: float = 0.30
    cost: float = 0.20
    availability: float = 0.10
    floor: Privacy | None = None
    tie_margin: float | None = None
    scorer: Scorer | None = None
    cascade: bool = True
    encode: bool = True

    @property
    def weights(self) -> Mapping[str, float]:
        """The weight of each factor, by its name."""
        return {
            "latency": self.latency,
            "quality": self.quality,
            "cost": self.cost,
            "availability": self.availability,
        }


#: `private` stays on the device and on MEC nodes, and takes a node only where it is clearly better.
BUILT_IN: Mapping[str, Policy] = {
    policy.name: policy
    for policy in (
        Policy("balanced", 0.40, 0.30, 0.20, 0.10),
        Policy("latency-first", 0.70, 0.15, 0.05, 0.10, cascade=False, encode=False),
        Policy("quality-first", 0.15, 0.70, 0.05, 0.10),
        Policy("cheap", 0.15, 0.20, 0.55, 0.10),
        Policy("private", 0.40, 0.40, 0.10, 0.10, floor="edge", tie_margin=0.10),
    )
}
