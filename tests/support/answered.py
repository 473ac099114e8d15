"""The provenance of an answer, for tests of what is remembered."""

from __future__ import annotations

from mecroute.context import RequestFeatures
from mecroute.decision import Candidate, Decision, Scores
from mecroute.outcome import Outcome, Provenance, Segment
from mecroute.request import Request
from mecroute.target import Target
from mecroute_registry.facts import Tier


def answered_by(
    request: Request, tier: Tier = "device", region: str | None = None, quality: float = 0.5
) -> Provenance:
    """A whole answer by a target of that tier and region, whose predicted quality was this."""
    target = Target(tier, "m:1", node=None if tier == "device" else "n", region=region)
    candidate = Candidate(target, 1, 2, 3, quality, 0, 1, Scores(1, 1, 1, 1, 1))
    features = RequestFeatures(0.1, (), 4, 4, frozenset({"tools"}))
    decision = Decision(request.id, features, request.requirements, {"latency": 1.0}, (candidate,), ())
    return Provenance(
        request_id=request.id,
        decision=decision,
        outcome=Outcome(target.id, 1.0, 2.0, 4, 4, None, 0.0),
        segments=(Segment(target.id, target.tier),),
        tier=target.tier,
        node=target.node,
        model="m:1",
    )
