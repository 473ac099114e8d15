"""Yesterday's traffic under another weighting: whom it would have chosen, and what that would have got."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from mecroute.errors import InvalidRequestError
from mecroute.replay.estimate import MetricEstimates, Sample, effective_samples, estimate
from mecroute.replay.logged import LoggedCandidate, LoggedDecision, logged_decision
from mecroute.replay.weighting import Weighting
from mecroute.state.history import Filter, History

METRICS = ("latency_ms", "cost_usd", "quality", "answered")
#: Effective samples below which an interval by resampling is not to be trusted.
_FEW = 30


@dataclass(frozen=True, slots=True)
class ReplayReport:
    """What a replay found.

    Args:
        decisions: requests replayed; `skipped` could not be (cached, abandoned, damaged).
        agreement: share in which both choose alike.
        supported: share in which the other policy's choice had any chance of being made.
        explored: share made under exploration, where other choices had a chance.
        effective_samples: how many observations the weighted estimates are worth (Kish).
        chosen, logged: share of requests by target, under the other policy and as it was.
        metrics: estimates by metric, for all the requests.
        warnings: what a reader has to know before believing any of it.
    """

    policy: str
    decisions: int
    skipped: int
    agreement: float
    supported: float
    explored: float
    effective_samples: float
    chosen: Mapping[str, float]
    logged: Mapping[str, float]
    metrics: Mapping[str, MetricEstimates]
    warnings: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON types."""
        return asdict(self)


def replay(history: History, weighting: Weighting, wanted: Filter, *, limit: int = 100_000) -> ReplayReport:
    """Replay the newest decisions of a kind.

    Only the order of the candidates is decided anew: what a hard constraint or a stated limit excluded stays
    excluded, for no weighting changes that. Runs nothing and needs no network.

    Raises:
        InvalidRequestError: there is nothing to replay.
        StateError: the decisions cannot be read.
    """
    judged = history.judgements(wanted)
    decisions: list[LoggedDecision] = []
    seen = 0
    for row, detail in history.details(wanted, limit):
        seen += 1
        found = logged_decision(row, detail, judged.get(row["id"], ()))
        if found is not None:
            decisions.append(found)
    if not decisions:
        raise InvalidRequestError(
            f"there is nothing to replay in {history.path}: {seen} decisions match, none of them can be used",
            hint="`mecroute decisions list` shows what is recorded; widen --since",
        )
    return report(decisions, weighting, skipped=seen - len(decisions))


def report(decisions: Sequence[LoggedDecision], weighting: Weighting, *, skipped: int = 0) -> ReplayReport:
    """Replay decisions that were read already; see `replay`."""
    choices = [weighting.choose(decision.candidates) for decision in decisions]
    pairs = list(zip(decisions, choices, strict=True))
    count = len(pairs)
    agreement = sum(choice.id == d.chosen for d, choice in pairs) / count
    supported = sum(choice.id in d.possible for d, choice in pairs) / count
    weights = [1 / d.propensity if choice.id == d.chosen else 0.0 for d, choice in pairs]
    worth = effective_samples(weights)
    metrics = {name: estimate(_samples(pairs, name)) for name in METRICS}
    return ReplayReport(
        policy=weighting.name,
        decisions=count,
        skipped=skipped,
        agreement=agreement,
        supported=supported,
        explored=sum(d.propensity < 1 for d in decisions) / count,
        effective_samples=worth,
        chosen=_shares([choice.id for choice in choices]),
        logged=_shares([d.chosen for d in decisions]),
        metrics=metrics,
        warnings=tuple(_warnings(decisions, supported, worth, metrics)),
    )


def _samples(pairs: Sequence[tuple[LoggedDecision, LoggedCandidate]], metric: str) -> list[Sample]:
    samples = []
    for decision, choice in pairs:
        logged = decision.candidate(decision.chosen)
        samples.append(
            Sample(
                weight=1 / decision.propensity if choice.id == decision.chosen else 0.0,
                observed=getattr(decision, metric),
                predicted_logged=_predicted(logged, metric),
                predicted_other=_predicted(choice, metric),
            )
        )
    return samples


def _predicted(candidate: LoggedCandidate, metric: str) -> float:
    value: float = getattr(candidate, "availability" if metric == "answered" else metric)
    return value


def _shares(ids: Sequence[str]) -> dict[str, float]:
    return {id: number / len(ids) for id, number in Counter(ids).most_common()}


def _warnings(
    decisions: Sequence[LoggedDecision],
    supported: float,
    worth: float,
    metrics: Mapping[str, MetricEstimates],
) -> list[str]:
    count = len(decisions)
    found = []
    if cut := sum(decision.is_cut for decision in decisions):
        found.append(
            f"{cut} of {count} requests had more candidates than are kept; only the best were ranked anew"
        )
    if supported < 1:
        found.append(
            f"support is missing for {1 - supported:.1%} of the requests: this policy chooses a target there "
            "that had no chance of being chosen. IPS and SNIPS say nothing of them (they speak of the other "
            f"{supported:.1%}), and the doubly robust estimate has only the prediction for them. "
            "Set [monitor] explore_rate to gain support"
        )
    if worth < _FEW:
        found.append(
            f"the weighted estimates stand on {worth:.0f} effective samples of {count}: too few to trust them"
        )
    judged = metrics["quality"].observations
    if judged == 0:
        found.append("no answer was judged: the quality is what was predicted, and nothing else")
    elif judged < count:
        found.append(
            f"{judged} of {count} answers were judged by people or a second target; the weighted estimates "
            "of quality speak of those only, and people judge bad answers more often than good ones"
        )
    return found
