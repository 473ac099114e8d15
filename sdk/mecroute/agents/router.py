"""The router agent: hard constraints first, then a score for each target that is left."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from mecroute.config.schema import RouterConfig
from mecroute.context import Context
from mecroute.decision import Candidate, Decision, Reason, Rejection, Scores
from mecroute.predict.cost import cost_usd
from mecroute.predict.latency import Correction, predict_latency
from mecroute.predict.quality import predict_quality
from mecroute.request import Request
from mecroute.target import Target, TargetState
from mecroute_registry.facts import Tier

#: How near a tier is: a tie goes to the nearer one, which needs no network and no shared capacity.
_NEARNESS: dict[Tier, int] = {"device": 0, "mec": 1, "cloud": 2}
_GB = 1e9


class RouterAgent:
    """Decides where a request goes. Pure: the same input gives the same decision; holds no state.

    score = w_latency·u(latency) + w_quality·quality + w_cost·u(cost) + w_availability·availability,
    with u(x) = limit / (limit + x), which is 1 at nothing, 1/2 at the caller's limit and falls towards 0.
    """

    def __init__(self, config: RouterConfig) -> None:
        self._config = config
        self._weights = {
            "latency": config.latency_weight,
            "quality": config.quality_weight,
            "cost": config.cost_weight,
            "availability": config.availability_weight,
        }

    def decide(
        self,
        request: Request,
        context: Context,
        targets: Iterable[TargetState],
        *,
        battery_floor: float,
        correction: Callable[[Target], Correction],
        adjustment: Callable[[Target, float], tuple[float, float]] = lambda _target, _complexity: (0.0, 0.0),
    ) -> Decision:
        """Rank the targets for one request.

        Args:
            battery_floor: 0..1; a discharging device below it is not used.
            correction: what was observed of a target so far.
            adjustment: what evidence adds to a target's quality at a complexity, and how much there is.

        Returns:
            A decision; without candidates when every target was rejected.
        """
        candidates: list[Candidate] = []
        rejected: list[Rejection] = []
        for state in targets:
            refusal = _hard_constraint(request, context, state, battery_floor)
            if refusal is None:
                adjusted = adjustment(state.target, context.features.complexity)
                candidate = self._predict(request, context, state, correction(state.target), adjusted)
                refusal = _stated_limit(request, candidate, state)
                if refusal is None:
                    candidates.append(candidate)
                    continue
            rejected.append(Rejection(state.target, *refusal))
        ranked, choice = self._rank(candidates)
        return Decision(
            request_id=request.id,
            features=context.features,
            requirements=request.requirements,
            weights=self._weights,
            candidates=ranked,
            rejected=tuple(rejected),
            choice=choice,
        )

    def _predict(
        self,
        request: Request,
        context: Context,
        state: TargetState,
        correction: Correction,
        adjusted: tuple[float, float],
    ) -> Candidate:
        features, asked = context.features, request.requirements
        latency = predict_latency(state, features, correction)
        predicted, quality_note = predict_quality(state, features.complexity)
        quality, evidence = min(1.0, max(0.0, predicted + adjusted[0])), adjusted[1]
        if quality != predicted:
            quality_note += (
                f", {quality - predicted:+.3f} by {evidence:.1f} judged answers of this difficulty"
            )
        cost = cost_usd(state, features.prompt_tokens, features.output_tokens)
        latency_utility = _utility(latency.p50_ms, asked.max_latency_ms or self._config.latency_target_ms)
        # A limit of nothing admits only what is free, and what is free has the full utility.
        cost_limit = asked.max_cost_usd or self._config.cost_target_usd
        cost_utility = _utility(cost, cost_limit)
        total = (
            self._config.latency_weight * latency_utility
            + self._config.quality_weight * quality
            + self._config.cost_weight * cost_utility
            + self._config.availability_weight * state.availability
        )
        return Candidate(
            target=state.target,
            ttft_ms=latency.ttft_ms,
            latency_ms_p50=latency.p50_ms,
            latency_ms_p95=latency.p95_ms,
            quality=quality,
            cost_usd=cost,
            availability=state.availability,
            scores=Scores(latency_utility, quality, cost_utility, state.availability, total),
            cold=state.ready_in_ms > 0,
            assumed=state.decode_tokens_per_s is None,
            notes=(*latency.notes, quality_note),
            quality_adjusted_by=quality - predicted,
        )

    def _rank(self, candidates: list[Candidate]) -> tuple[tuple[Candidate, ...], str]:
        if not candidates:
            return (), "no target is left"
        by_score = sorted(candidates, key=lambda c: (-c.scores.total, _NEARNESS[c.target.tier], c.target.id))
        best = by_score[0]
        tied = [c for c in by_score if best.scores.total - c.scores.total <= self._config.tie_margin]
        first = min(tied, key=lambda c: (_NEARNESS[c.target.tier], -c.scores.total, c.target.id))
        if first is best:
            choice = f"chosen {first.target.id}: the highest score"
        else:
            gap = best.scores.total - first.scores.total
            choice = (
                f"chosen {first.target.id}: nearer, and within {self._config.tie_margin} "
                f"of the highest score (gap {gap:.4f})"
            )
        return (first, *(c for c in by_score if c is not first)), choice


def _utility(value: float, limit: float) -> float:
    return limit / (limit + value)


def _hard_constraint(
    request: Request, context: Context, state: TargetState, battery_floor: float
) -> tuple[Reason, str] | None:
    """The first hard constraint that excludes a target; privacy and residency come before all others."""
    target, asked, features = state.target, request.requirements, context.features
    if not asked.allows_tier(target.tier):
        return "privacy", f"privacy is '{asked.privacy}'"
    if not asked.allows_region(target.tier, target.region):
        return (
            "residency",
            f"data must stay in '{asked.residency}', this is in {target.region or 'an unknown region'}",
        )
    if not request.model.admits(target.tier, target.model):
        return "model", f"the request asks for '{request.model.text}'"
    if request.task not in state.tasks:
        return "capability", f"cannot do '{request.task}'"
    missing = features.needs - state.abilities
    if missing:
        return "capability", f"lacks {', '.join(sorted(missing))}"
    if context.network.offline and state.reached_over_network:
        return "offline", "this host has no network route"
    if state.unavailable is not None:
        return "unavailable", state.unavailable
    if features.prompt_tokens > state.context_length:
        return "context_length", f"about {features.prompt_tokens} tokens do not fit {state.context_length}"
    if target.tier == "device":
        return _device_constraint(context, state, battery_floor)
    return None


def _device_constraint(
    context: Context, state: TargetState, battery_floor: float
) -> tuple[Reason, str] | None:
    device = context.device
    free = device.memory_available_bytes
    if free is not None and state.memory_needed_bytes > free:
        needed = state.memory_needed_bytes
        return "memory", f"needs {needed / _GB:.2f} GB, {free / _GB:.2f} GB are free"
    if device.battery is not None and not device.charging and device.battery < battery_floor:
        return "battery", f"battery at {device.battery:.0%}, the floor is {battery_floor:.0%}"
    return None


def _stated_limit(request: Request, candidate: Candidate, state: TargetState) -> tuple[Reason, str] | None:
    """The caller's own limits, held against the prediction."""
    asked = request.requirements
    if asked.min_quality is not None and candidate.quality < asked.min_quality:
        return "quality", f"predicted {candidate.quality:.2f}, at least {asked.min_quality:.2f} is required"
    if asked.max_cost_usd is not None and candidate.cost_usd > asked.max_cost_usd:
        return "cost", f"predicted ${candidate.cost_usd:.6f}, at most ${asked.max_cost_usd:.6f} is allowed"
    # Only a measured speed may refuse: an assumed one is no reason to give up on an answer.
    measured = state.decode_tokens_per_s is not None
    if measured and asked.deadline_ms is not None and candidate.latency_ms_p50 > asked.deadline_ms:
        return "deadline", (
            f"predicted {candidate.latency_ms_p50:.0f} ms, the deadline is {asked.deadline_ms:.0f} ms"
        )
    return None
