"""Predicts and scores every target that is left, and puts them in order.

A thousand targets are ranked by a few numbers each; what a person or a fallback reads of a candidate
(percentiles, parts, notes) is made when it is read. Both come from the same functions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

from mecroute.classification import chat_instructions
from mecroute.config.schema import RouterConfig
from mecroute.context import Context, RequestFeatures
from mecroute.decision import Candidate, Notes, Reason, Scores
from mecroute.policies import Policy
from mecroute.predict.complexity import estimate_tokens
from mecroute.predict.cost import cost_usd
from mecroute.predict.latency import (
    NOTHING_AHEAD,
    Ahead,
    Workload,
    latency_notes,
    latency_parts,
    predict_latency,
)
from mecroute.predict.quality import predict_quality
from mecroute.predict.residuals import Correction
from mecroute.predict.transfer import transfer_notes, transfer_of
from mecroute.prefix_keys import prefix_keys
from mecroute.request import Request, message_text
from mecroute.requirements import Requirements
from mecroute.routing.constraints import Screen, asked_for
from mecroute.routing.dispatch import Dispatch
from mecroute.routing.rows import Row, Rows
from mecroute.target import Target, TargetState

#: Where the availability is no share, as much speaks for a target as against it.
_UNKNOWN_SHARE = 0.5
_TOKENS_PER_MESSAGE = 6
#: Requests under way up to which lines are run ahead: a line of so many takes 2 ms, and four times that with
#: twice as many. Beyond it the counts say enough, as they do of other clients' requests.
MOST_IN_LINES = 64
_ASKED_IN_CHAT = "asked in a chat for each text, for one of the labels"
#: What evidence adds to a target's quality at a complexity and for a kind of request, and how many judged
#: answers it stands on.
Adjustment = Callable[[Target, float, str | None], tuple[float, float]]
Refused = tuple[TargetState, Reason, str | None]


class Scoring:
    """Scores targets for one request under one policy."""

    def __init__(
        self,
        request: Request,
        context: Context,
        policy: Policy,
        config: RouterConfig,
        *,
        correction: Callable[[Target], Correction],
        adjustment: Adjustment | None,
        dispatch: Dispatch,
    ) -> None:
        self.request = request
        self.features = features = context.features
        self.policy = policy
        asked = request.requirements
        self._asked: Requirements = asked
        self._latency_limit = asked.max_latency_ms or config.latency_target_ms
        # A limit of nothing admits only what is free, and what is free has the full utility.
        self._cost_limit = asked.max_cost_usd or config.cost_target_usd
        self._correction = correction
        self._adjustment = adjustment
        self._dispatch = dispatch
        self._now_s = dispatch.now_s()
        self._runs_lines: bool | None = None
        self._nothing_ahead = NOTHING_AHEAD._replace(now_s=self._now_s)
        limit = request.body.get("max_completion_tokens") or request.body.get("max_tokens")
        self._work = Workload(
            features.prompt_tokens,
            features.output_tokens,
            float(limit) if isinstance(limit, int | float) else math.inf,
            transfer_of(request, features, context.upload_bytes, context.network),
        )
        # What a chat model has to do that is asked for the class of each text.
        self._chat_work = Workload(
            features.prompt_tokens + features.texts * features.chat_prompt_tokens,
            features.texts * features.chat_output_tokens,
            transfer=self._work.transfer,
        )
        self._beginnings: list[tuple[str, int]] | None = None

    def rank(self, targets: Iterable[TargetState], screen: Screen) -> tuple[Rows, list[Refused]]:
        """The targets that may serve, best first, and those that may not.

        Raises: nothing, whatever the states hold: numbers that cannot be count as unknown.
        """
        # One pass over numbers alone: an object per target would cost more than its prediction, and wake
        # the garbage collector every time.
        left: list[TargetState] = []
        negative_scores: list[float] = []
        p50s: list[float] = []
        prices: list[float] = []
        cached_tokens: list[int] = []
        refused: list[Refused] = []
        policy, asked, work = self.policy, self._asked, self._work
        w_latency, w_cost = policy.latency * self._latency_limit, policy.cost * self._cost_limit
        w_quality, w_availability = policy.quality, policy.availability
        latency_limit, cost_limit = self._latency_limit, self._cost_limit
        check, ahead_of, correction_of = screen.check, self._ahead, self._correction
        of_classes = self.request.task == "classify"
        complexity, kind, adjustment = self.features.complexity, self.features.kind, self._adjustment
        has_limits = not (asked.min_quality is asked.max_cost_usd is asked.deadline_ms is None)
        qualities: dict[tuple[object, ...], float] = {}
        for state in targets:
            reason = check(state)
            if reason is not None:
                refused.append((state, reason, None))
                continue
            target = state.target
            correction = correction_of(target)
            cached = self.cached_tokens(state) if state.prefixes else 0
            if of_classes:
                work = self._work if "classify" in state.tasks else self._chat_work
            _, load, wait, own, decode, *_ = latency_parts(
                state, work, correction, cached, ahead_of(target.id)
            )
            p50 = load + wait + own + decode
            model = (target.model, target.tier, state.accuracy)
            quality = qualities.get(model)
            if quality is None:
                quality = qualities[model] = _share(predict_quality(state, complexity)[0])
            if adjustment is not None:
                quality = min(1.0, max(0.0, quality + adjustment(target, complexity, kind)[0]))
            if state.input_usd_per_mtok == 0 and state.output_usd_per_mtok == 0:
                price = 0.0
            else:
                prompt_tokens, output_tokens, most_tokens, _ = work
                price = cost_usd(state, prompt_tokens, min(output_tokens * correction.length, most_tokens))
                if not 0 <= price < math.inf:
                    refused.append((state, "unavailable", None))
                    continue
            availability = state.availability
            if not 0 <= availability <= 1:
                availability = _UNKNOWN_SHARE
            if has_limits and (limit := _stated_limit(asked, state, p50, quality, price)) is not None:
                refused.append((state, *limit))
                continue
            left.append(state)
            p50s.append(p50)
            prices.append(price)
            cached_tokens.append(cached)
            negative_scores.append(
                -(
                    w_latency / (latency_limit + p50)
                    + w_quality * quality
                    + w_cost / (cost_limit + price)
                    + w_availability * availability
                )
            )
        return Rows(left, negative_scores, p50s, prices, cached_tokens), refused

    def candidate(self, row: Row) -> Candidate:
        """Everything that is predicted of a ranked target."""
        state = row.state
        target = state.target
        correction = self._correction(target)
        task = asked_for(self.request.task, state)
        latency = predict_latency(
            state,
            self._work if task == self.request.task else self._chat_work,
            correction,
            cached_tokens=row.cached_tokens,
            ahead=self._ahead(row.id),
        )
        predicted, quality_note = predict_quality(state, self.features.complexity)
        quality = predicted = _share(predicted)
        if self._adjustment is not None:
            by, evidence = self._adjustment(target, self.features.complexity, self.features.kind)
            quality = min(1.0, max(0.0, predicted + by))
            if quality != predicted:
                quality_note += f", {quality - predicted:+.3f} by {evidence:.1f} judged answers alike"
        availability = _share(state.availability)

        return Candidate(
            target=target,
            ttft_ms=latency.ttft_ms,
            latency_ms_p50=latency.p50_ms,
            latency_ms_p95=latency.p95_ms,
            quality=quality,
            cost_usd=row.cost_usd,
            availability=availability,
            scores=Scores(
                self._latency_limit / (self._latency_limit + latency.p50_ms),
                quality,
                self._cost_limit / (self._cost_limit + row.cost_usd),
                availability,
                row.score,
            ),
            cold=latency.parts.load_ms > 0,
            assumed=state.decode_tokens_per_s is None,
            ttft_ms_p95=latency.ttft_p95_ms,
            parts=latency.parts,
            output_tokens=latency.output_tokens,
            cached_prompt_tokens=row.cached_tokens,
            claimed_ttft_ms=latency.claimed_ttft_ms,
            claimed_wait_ms=latency.claimed_wait_ms,
            crowd=latency.crowd,
            pace=latency.pace,
            notes=Notes(
                lambda: (
                    *latency_notes(state, latency, correction, row.cached_tokens),
                    *transfer_notes(state, self._work.transfer),
                    quality_note,
                    *(() if task == self.request.task else (_ASKED_IN_CHAT,)),
                )
            ),
            quality_adjusted_by=quality - predicted,
            task=task,
        )

    def scores(self, latency_ms: float, quality: float, cost_usd: float, availability: float) -> Scores:
        """The utilities of such an answer, and the policy's score of it."""
        latency = self._latency_limit / (self._latency_limit + latency_ms)
        cost = self._cost_limit / (self._cost_limit + cost_usd)
        policy = self.policy
        total = (
            policy.latency * latency
            + policy.quality * quality
            + policy.cost * cost
            + policy.availability * availability
        )
        return Scores(latency, quality, cost, availability, total)

    def _ahead(self, target_id: str) -> Ahead:
        at = self._dispatch.under_way.get(target_id)
        if at is None or not at.count:
            return self._nothing_ahead
        line = at.line if at.line and self._reckons_lines() else None
        return Ahead(at.count, at.output_tokens / at.count, self._now_s, line)

    def _reckons_lines(self) -> bool:
        """Whether lines are run ahead in this decision: all of them or none, so that targets compare."""
        if self._runs_lines is None:
            in_lines = sum(len(at.line) for at in self._dispatch.under_way.values())
            self._runs_lines = in_lines <= MOST_IN_LINES
        return self._runs_lines

    def cached_tokens(self, state: TargetState) -> int:
        """Prompt tokens that a target holds already: those of the longest beginning it has."""
        if self._beginnings is None:
            self._beginnings = _beginnings(self.request, self.features)
        prefixes = state.prefixes
        work = self._chat_work if self.request.task == "classify" else self._work
        for key, tokens in self._beginnings:
            if key in prefixes:
                # At least one token is always computed, to have something to sample from.
                return max(0, min(tokens, work.prompt_tokens - 1))
        return 0


def _beginnings(request: Request, features: RequestFeatures) -> list[tuple[str, int]]:
    """Key and estimated tokens of each beginning of the conversation, the longest first.

    The instructions of a request for classes begin the conversation about each of its texts.
    """
    if request.task == "classify":
        labels = request.body.get("labels")
        told = [chat_instructions(labels, "mec")] if labels else []
        return [(key, features.texts * features.chat_prompt_tokens) for key in prefix_keys(told)]
    messages = request.body.get("messages")
    if not messages:
        return []
    tools = request.body.get("tools")
    tokens = estimate_tokens(str(tools)) if tools else 0
    found = []
    for key, message in zip(prefix_keys(messages, tools=tools), messages, strict=False):
        tokens += _TOKENS_PER_MESSAGE + estimate_tokens(message_text(message))
        found.append((key, tokens))
    return found[::-1]


def _stated_limit(
    asked: Requirements, state: TargetState, p50_ms: float, quality: float, price: float
) -> tuple[Reason, str] | None:
    """The caller's own limits, held against the prediction."""
    if asked.min_quality is not None and quality < asked.min_quality:
        return "quality", f"predicted {quality:.2f}, at least {asked.min_quality:.2f} is required"
    if asked.max_cost_usd is not None and price > asked.max_cost_usd:
        return "cost", f"predicted ${price:.6f}, at most ${asked.max_cost_usd:.6f} is allowed"
    # Only a measured speed may refuse: an assumed one is no reason to give up on an answer.
    measured = state.decode_tokens_per_s is not None
    if measured and asked.deadline_ms is not None and p50_ms > asked.deadline_ms:
        return "deadline", f"predicted {p50_ms:.0f} ms, the deadline is {asked.deadline_ms:.0f} ms"
    return None


def _share(value: float) -> float:
    return value if 0 <= value <= 1 else _UNKNOWN_SHARE
