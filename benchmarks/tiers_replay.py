"""The product's own decisions over answers that were collected before.

What a client does with a request is done here by the same agents: the Context agent reads the request, the
Router agent decides with what the Monitor agent has learned. Only the call is left out: what the chosen
tier answered, and how long it took, was written down before. Targets are described by what was measured on
the calibration requests, and nothing but their outcomes is learned from: each was asked of every tier, and
judged.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from mecroute.agents import ContextAgent, MonitorAgent, RouterAgent
from mecroute.cascade.calibration import Pair
from mecroute.cascade.marks import Marks, logprob_marks
from mecroute.cascade.plan import CascadePlan
from mecroute.config.cascade import CascadeConfig
from mecroute.config.schema import RouterConfig, Weighting
from mecroute.context import DeviceState, NetworkState
from mecroute.decision import Decision
from mecroute.outcome import Outcome, Provenance, Segment
from mecroute.predict.difficulty import difficulty_source
from mecroute.prefix_keys import prefix_keys
from mecroute.request import Request, ingest
from mecroute.requirements import Requirements
from mecroute.routing.dispatch import Dispatch
from mecroute.state.store import StateStore
from mecroute.target import Target, TargetState
from tiers_answers import Answer
from tiers_front import Run
from tiers_workload import Item

#: The encoder and the smallest model run on the device, the others on a node and in a stand-in for a cloud.
TARGETS: Mapping[str, Target] = {
    "encoder": Target("device", "minilm-intents"),
    "device": Target("device", "smollm2-135m:q4_1"),
    "mec": Target("mec", "qwen2.5-coder-0.5b-instruct-q4_k_m", node="edge"),
    "cloud": Target("cloud", "qwen2.5-coder-1.5b-instruct-q4_k_m", node="stand-in"),
}
_TIERS = {target.id: tier for tier, target in TARGETS.items()}
_ABILITIES = frozenset({"grammar", "json_schema", "logprobs"})
_CONTEXT_LENGTH = 1024

Answers = Mapping[tuple[str, str], Answer]


def tier_of(target_id: str) -> str:
    """The name here of a target."""
    return _TIERS[target_id]


@dataclass(frozen=True, slots=True)
class Profile:
    """What a tier does to the calibration requests.

    Args:
        prefill_tokens_per_s: prompt tokens that no cache held, over the time to the first token.
        decode_tokens_per_s: of the others; None for a classifier.
        accuracy: 0..1, share of right answers.
    """

    prefill_tokens_per_s: float
    decode_tokens_per_s: float | None
    accuracy: float


def measure(answers: Sequence[Answer]) -> Profile:
    """The profile of one tier, from its answers."""
    computed = sum(one.prompt_tokens - one.cached_tokens for one in answers)
    first_s = sum(one.ttft_ms for one in answers) / 1000
    later = sum(one.output_tokens - 1 for one in answers if one.output_tokens > 1)
    later_s = sum(one.latency_ms - one.ttft_ms for one in answers if one.output_tokens > 1) / 1000
    return Profile(
        computed / first_s,
        later / later_s if later_s else None,
        sum(one.right for one in answers) / len(answers),
    )


def marks_of(answer: Answer) -> Marks:
    """What an answer is judged by."""
    if answer.probability is not None:
        return Marks(probability=answer.probability)
    mean, least = logprob_marks(answer.logprobs)
    return Marks(mean_logprob=mean, min_logprob=least)


def request_of(item: Item, *, model: str = "auto", policy: str | None = None, **asked: Any) -> Request:
    """The request that an application makes of an item."""
    requirements = Requirements(policy=policy, **asked)
    if item.set == "intents":
        body: dict[str, Any] = {"input": item.text, "labels": list(item.choices)}
        return ingest("classify", model=model, body=body, requirements=requirements)
    return ingest("chat", model=model, body=item.body(), requirements=requirements)


class Replay:
    """One client's agents, which have learned from the calibration requests.

    Args:
        items: all requests; those of the part `calibration` are learned from.
        answers: by request and tier.
        policies: weightings of one's own, by name.
        cascade: `[router.cascade]`.
        store: where what was learned is kept for a client that goes on with it; default: nowhere.
    """

    def __init__(
        self,
        items: Sequence[Item],
        answers: Answers,
        *,
        policies: Mapping[str, Weighting] | None = None,
        cascade: CascadeConfig | None = None,
        store: StateStore | None = None,
    ) -> None:
        self._answers = answers
        config = RouterConfig(policies=dict(policies or {}), cascade=cascade or CascadeConfig())
        self.monitor = MonitorAgent(store or StateStore(enabled=False), cascade=config.cascade)
        self._context = ContextAgent(
            usual_output_tokens=self.monitor.usual_output_tokens,
            read_device=lambda: DeviceState("benchmark"),
            read_network=NetworkState,
            difficulty=difficulty_source(config.predictor),
        )
        self._router = RouterAgent(config)
        self._dispatch = Dispatch(hedge_budget=0)
        calibration = [item for item in items if item.part == "calibration"]
        self.profiles = {
            tier: measure([answers[item.id, tier] for item in calibration if (item.id, tier) in answers])
            for tier in TARGETS
            if any((item.id, tier) in answers for item in calibration)
        }
        instructions = {prefix_keys(item.body()["messages"])[0] for item in calibration}
        labels = frozenset(next(item.choices for item in items if item.set == "intents"))
        self._states = [
            self._state(tier, profile, frozenset(instructions), labels)
            for tier, profile in self.profiles.items()
        ]
        for item in calibration:
            for tier in self.profiles:
                if (item.id, tier) in answers:
                    self._learn(item, tier)
        self.monitor.flush()
        if config.cascade.enabled:
            for tier in self.profiles:
                known = [answers[item.id, tier] for item in calibration if (item.id, tier) in answers]
                pairs = [Pair(marks_of(one), one.right) for one in known]
                self.monitor.cascade.read(TARGETS[tier].id, pairs)

    def run(self, items: Sequence[Item], name: str, policy: str, **asked: Any) -> tuple[Run, list[str]]:
        """Decide each request; what came of it, and which tier's answer was delivered."""
        right, took, chosen = [], [], []
        for item in items:
            begun = time.perf_counter()
            request = request_of(item, policy=policy, **asked)
            decision = self.decide(request)
            spent = (time.perf_counter() - begun) * 1e3
            assert decision.primary is not None, f"no target is left for {item.id}"
            tier = tier_of(decision.primary.target.id)
            answer = self._answers[item.id, tier]
            if decision.cascade is not None and not self._is_kept(decision.cascade, answer):
                tier, spent = tier_of(decision.cascade.escalate_to), spent + answer.latency_ms
                answer = self._answers[item.id, tier]
            right.append(answer.right)
            took.append(answer.latency_ms + spent)
            chosen.append(tier)
        return Run(name, np.array(right, float), np.array(took)), chosen

    def decide(self, request: Request) -> Decision:
        """As `mecroute.pipeline.Pipeline.decide`."""
        return self._router.decide(
            request,
            self._context.assess(request),
            self._states,
            battery_floor=0.0,
            correction=self.monitor.correction,
            adjustment=self.monitor.adjustment,
            dispatch=self._dispatch,
            cascades=self.monitor.cascade.of,
        )

    def _is_kept(self, plan: CascadePlan, answer: Answer) -> bool:
        """Whether a first answer passes, as `mecroute.cascade.execution.CascadeExecution` judges it."""
        known = self.monitor.cascade.of(plan.first)
        score = known.score(marks_of(answer)) if known is not None else None
        return score is not None and score >= plan.threshold

    def _learn(self, item: Item, tier: str) -> None:
        """What the client learns of an answer: how long it took, and what the user says of it."""
        answer, target = self._answers[item.id, tier], TARGETS[tier]
        request = request_of(item, model=f"{target.tier}/{target.model}")
        decision = self.decide(request)
        segment = Segment(
            target_id=target.id,
            tier=target.tier,
            output_tokens=answer.output_tokens,
            text_chars=len(answer.answer),
            ttft_ms=answer.ttft_ms,
            latency_ms=answer.latency_ms,
        )
        self.monitor.answered(decision, segment)
        outcome = Outcome(
            target_id=target.id,
            ttft_ms=answer.ttft_ms,
            latency_ms=answer.latency_ms,
            prompt_tokens=answer.prompt_tokens,
            output_tokens=answer.output_tokens,
            tokens_per_s=None,
            cost_usd=0.0,
        )
        provenance = Provenance(
            request.id, decision, outcome, (segment,), target.tier, target.node, target.model
        )
        self.monitor.record(provenance, user=None)
        self.monitor.feedback(request.id, float(answer.right))

    def _state(
        self, tier: str, profile: Profile, instructions: frozenset[str], labels: frozenset[str]
    ) -> TargetState:
        """As the Resource agent describes a target: a node tells its speeds and what it remembers, and not
        how good its model is; of a cloud only its declared quality is known."""
        classifies, target = tier == "encoder", TARGETS[tier]
        state = TargetState(
            target=target,
            tasks=frozenset({"classify"} if classifies else {"chat"}),
            abilities=frozenset() if classifies else _ABILITIES,
            context_length=_CONTEXT_LENGTH,
            accuracy=None if target.tier == "mec" else profile.accuracy,
            accuracy_source="declared",
            prefill_tokens_per_s=profile.prefill_tokens_per_s,
            decode_tokens_per_s=profile.decode_tokens_per_s,
            speed_source="the calibration requests",
        )
        if classifies:
            return replace(state, labels=labels)
        if target.tier == "cloud":
            return replace(state, prefill_tokens_per_s=None, decode_tokens_per_s=None, speed_source="assumed")
        return replace(state, prefixes=instructions) if target.tier == "mec" else state
