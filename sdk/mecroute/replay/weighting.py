"""The weights under which traffic is replayed, and how they rank the candidates of a recorded decision."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from mecroute.config.schema import RouterConfig
from mecroute.errors import InvalidRequestError
from mecroute.policies import PolicyBook
from mecroute.replay.logged import LoggedCandidate

FACTORS = ("latency", "quality", "cost", "availability")
_NEARNESS = {"device": 0, "mec": 1, "cloud": 2}


@dataclass(frozen=True, slots=True)
class Weighting:
    """The weight of each factor; they sum to 1."""

    name: str
    latency: float
    quality: float
    cost: float
    availability: float
    tie_margin: float

    def score(self, candidate: LoggedCandidate) -> float:
        """The candidate's score under these weights."""
        return (
            self.latency * candidate.latency_utility
            + self.quality * candidate.quality
            + self.cost * candidate.cost_utility
            + self.availability * candidate.availability
        )

    def choose(self, candidates: Sequence[LoggedCandidate]) -> LoggedCandidate:
        """Whom the router would try first: the highest score, the nearest tier among those that tie."""
        scored = [(self.score(candidate), candidate) for candidate in candidates]
        best = max(score for score, _ in scored)
        tied = [(score, c) for score, c in scored if best - score <= self.tie_margin]
        return min(tied, key=lambda item: (_NEARNESS[item[1].tier], -item[0], item[1].id))[1]


def weighting_of(config: RouterConfig, *, policy: str | None = None, weights: str | None = None) -> Weighting:
    """The weighting that a policy's name or a list of weights stands for.

    Args:
        policy: a name, built in or configured.
        weights: `latency=0.5,quality=0.5`; factors that are not named weigh nothing, and what is given is
            scaled to sum to 1.

    Raises:
        InvalidRequestError: neither or both are given, the policy is unknown, or a weight is no number.
    """
    if (policy is None) == (weights is None):
        raise InvalidRequestError(
            "name a policy or give weights", hint="--policy balanced, or --weights latency=0.7,quality=0.3"
        )
    if weights is not None:
        return _parse(weights, config.tie_margin)
    assert policy is not None
    found = PolicyBook(config.policies).find(policy)
    if found.scorer is not None:
        raise InvalidRequestError(
            f"the policy '{policy}' is code of its own, which a record cannot be replayed under",
            hint="name a policy that is a weighting, or give --weights",
        )
    margin = config.tie_margin if found.tie_margin is None else found.tie_margin
    return Weighting(
        found.name, found.latency, found.quality, found.cost, found.availability, tie_margin=margin
    )


def _parse(text: str, tie_margin: float) -> Weighting:
    found: dict[str, float] = {}
    for part in text.split(","):
        name, _, value = (word.strip() for word in part.partition("="))
        try:
            number = float(value)
        except ValueError:
            number = math.nan
        if name not in FACTORS or name in found or not math.isfinite(number) or number < 0:
            raise InvalidRequestError(
                f"'{part.strip()}' is no weight", hint=f"as latency=0.7,quality=0.3; {', '.join(FACTORS)}"
            )
        found[name] = number
    total = sum(found.values())
    if total <= 0:
        raise InvalidRequestError("all the weights are 0", hint="as latency=0.7,quality=0.3")
    latency, quality, cost, availability = (found.get(name, 0.0) / total for name in FACTORS)
    name = ", ".join(f"{factor} {value / total:.2f}" for factor, value in found.items())
    return Weighting(name, latency, quality, cost, availability, tie_margin)
