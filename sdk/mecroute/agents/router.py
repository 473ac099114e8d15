"""The router agent: hard constraints first, then a score for each target that is left."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable
from dataclasses import replace

from mecroute.cascade.planner import CascadePlanner, Known
from mecroute.config.schema import RouterConfig
from mecroute.context import Context, RequestFeatures
from mecroute.decision import Decision
from mecroute.errors import ConfigError, InvalidRequestError
from mecroute.lazy import Lazy
from mecroute.policies import BUILT_IN, Policy, PolicyBook
from mecroute.predict.residuals import Correction
from mecroute.request import Request
from mecroute.requirements import TIERS_WITHIN
from mecroute.routing.balance import balance
from mecroute.routing.constraints import Screen, check_consistent, rejections
from mecroute.routing.dispatch import Dispatch
from mecroute.routing.hedging import hedge_after_ms
from mecroute.routing.ranking import Adjustment, Scoring
from mecroute.routing.rows import Rows
from mecroute.routing.sessions import goes_on, kept, session_name
from mecroute.target import Target, TargetState

_LOG = logging.getLogger("mecroute.router")
#: Who wants an answer sooner has no milliseconds for an encoder.
_ENCODES_FROM_MS = 100.0


class RouterAgent:
    """Decides where a request goes. Pure: the same input gives the same decision; holds no state.

    What came before is in the `Dispatch` passed in, which a decision only reads; chance is made from the
    request's id. No clock is read, so that it runs in virtual time as well.

    score = w_latency·u(latency) + w_quality·quality + w_cost·u(cost) + w_availability·availability,
    with u(x) = limit / (limit + x), which is 1 at nothing, 1/2 at the caller's limit and falls towards 0.

    Raises:
        ConfigError: the configured policy does not exist.
    """

    def __init__(self, config: RouterConfig) -> None:
        self._config = config
        self._policies = PolicyBook(config.policies)
        self._cascades = CascadePlanner(config.cascade, config.tie_margin)
        try:
            self._default = self._policies.find(config.policy)
        except InvalidRequestError as error:
            raise ConfigError(f"router.policy: {error.message}", hint=error.hint) from error

    def admit(self, request: Request) -> Request:
        """Check a request against itself, and add the privacy floor that its policy brings along.

        Raises:
            InvalidRequestError: the policy is unknown, or two requirements contradict each other.
        """
        policy = self._policy(request)
        asked = request.requirements
        if policy.floor is not None and not TIERS_WITHIN[asked.privacy] <= TIERS_WITHIN[policy.floor]:
            tier = request.model.tier
            if tier is not None and asked.allows_tier(tier) and tier not in TIERS_WITHIN[policy.floor]:
                raise InvalidRequestError(
                    f"model '{request.model.text}' and the policy '{policy.name}' contradict each other: "
                    f"the policy keeps requests within the privacy floor '{policy.floor}'",
                    hint="ask for a model of a tier within the floor, or name another policy",
                )
            request = replace(request, requirements=replace(asked, privacy=policy.floor))
        check_consistent(request)
        return request

    def decide(
        self,
        request: Request,
        context: Context,
        targets: Iterable[TargetState],
        *,
        battery_floor: float,
        correction: Callable[[Target], Correction],
        adjustment: Adjustment | None = None,
        dispatch: Dispatch | None = None,
        cascades: Known | None = None,
    ) -> Decision:
        """Rank the targets for one request.

        Args:
            battery_floor: 0..1; a discharging device below it is not used.
            correction: what was observed of a target so far.
            adjustment: what evidence adds to a target's quality at a complexity, and how much there is.
            dispatch: what was sent before; default: nothing.
            cascades: what is known of a target's answers, by which they could be judged; default: nothing is,
                and no cascade is planned.

        Returns:
            A decision; without candidates when every target was rejected.

        Raises:
            InvalidRequestError: as `admit`.
        """
        request = self.admit(request)
        dispatch = dispatch if dispatch is not None else Dispatch()
        policy, notes = self._policy(request), []
        screen = Screen(request, context, battery_floor)
        features = context.features
        weighed = policy if policy.scorer is None else BUILT_IN["balanced"]
        scoring = Scoring(
            request,
            context,
            weighed,
            self._config,
            correction=correction,
            adjustment=adjustment,
            dispatch=dispatch,
        )
        rows, refused = scoring.rank(targets, screen)
        if policy.scorer is not None:
            problem = _rescore(policy, rows, scoring, features)
            if problem:
                notes.append(problem)
        choice = self._choose(rows, request, policy, dispatch, notes) if rows else "no target is left"
        plan = None
        if cascades is not None and rows:
            plan, why = self._cascades.plan(request, policy, scoring, rows, cascades)
            if why:
                notes.append(why)
        if plan is not None:
            for id in (plan.escalate_to, plan.first):
                row = rows.find(id)
                assert row is not None, "a cascade is planned among the ranked"
                rows.put_first(row)
            choice = f"chosen {plan.first}: its answer is judged before it is delivered"
        candidates = Lazy(len(rows), lambda place: scoring.candidate(rows[place]))
        hedge_after = hedge_after_ms(request, rows, candidates, self._config) if plan is None else None
        return Decision(
            request_id=request.id,
            features=features,
            requirements=request.requirements,
            weights=policy.weights if policy.scorer is None else {},
            candidates=candidates,
            rejected=rejections(screen, refused),
            choice=choice,
            policy=policy.name,
            hedge_after_ms=hedge_after,
            hedge_to=None if hedge_after is None else candidates[1].target.id,
            notes=tuple(notes),
            cascade=plan,
        )

    def may_encode(self, request: Request) -> bool:
        """Whether a decision may wait some milliseconds for a model to read the request."""
        asked = request.requirements
        wished = [limit for limit in (asked.max_latency_ms, asked.deadline_ms) if limit is not None]
        return self._policy(request).encode and min(wished, default=math.inf) >= _ENCODES_FROM_MS

    def watches(self, request: Request, decision: Decision) -> bool:
        """Whether what the primary answers is to be measured, since it may be judged some day."""
        primary = decision.primary
        return primary is not None and self._cascades.watches(request, self._policy(request), primary)

    def zone(self, request: Request) -> str | None:
        """Where a request's user is; None where unknown."""
        return request.requirements.zone or self._config.zone

    def _policy(self, request: Request) -> Policy:
        name = request.requirements.policy
        return self._default if name is None else self._policies.find(name)

    def _choose(
        self, rows: Rows, request: Request, policy: Policy, dispatch: Dispatch, notes: list[str]
    ) -> str:
        """Put the row first that is tried first; returns why."""
        best, zone = rows[0], self.zone(request)
        if len(rows) == 1:
            return f"chosen {best.id}: nothing else is left"
        session = None
        if self._config.sticky_margin and goes_on(request):
            session = dispatch.session(session_name(request))
        first, why = kept(session, rows, zone=zone, margin=self._config.sticky_margin)
        if first is None:
            if why:
                notes.append(why)
            margin = self._config.tie_margin if policy.tie_margin is None else policy.tie_margin
            tied = rows.within(margin)
            nearest = min(row.nearness for row in tied)
            first, why = balance(
                self._config.balance,
                [row for row in tied if row.nearness == nearest],
                request_id=request.id,
                dispatch=dispatch,
                zone=zone,
            )
            if first.nearness < best.nearness:
                gap = best.score - first.score
                why = f"nearer, and within {margin} of the highest score (gap {gap:.4f})"
        if first.place != best.place:
            rows.put_first(first)
        return f"chosen {first.id}: {why or 'the highest score'}"


def _rescore(policy: Policy, rows: Rows, scoring: Scoring, features: RequestFeatures) -> str:
    """Rank by the scores of the policy's own code; where that fails nothing changes, and it is said why."""
    assert policy.scorer is not None
    scores = []
    for row in rows:
        try:
            score = float(policy.scorer(scoring.candidate(row), features, scoring.request.requirements))
        except Exception as error:  # noqa: BLE001 - the code is not ours, and a request is not lost over it
            problem = f"failed: {type(error).__name__}: {error}"
            break
        if not math.isfinite(score):
            problem = f"gave {score} for {row.id}"
            break
        scores.append(score)
    else:
        rows.rescore(scores)
        return ""
    _LOG.warning("the policy '%s' %s; the balanced weights were used", policy.name, problem)
    return f"the policy '{policy.name}' {problem}; the balanced weights were used instead"
