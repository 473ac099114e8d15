"""The monitor agent: records what happened and turns it into corrections of the predictions."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from mecroute.cascade.judged import JudgedAnswers
from mecroute.config.cascade import CascadeConfig
from mecroute.decision import Decision, annotated
from mecroute.errors import InvalidRequestError
from mecroute.evidence.confidence import LogprobEvidence
from mecroute.evidence.drift import DriftMonitor
from mecroute.evidence.learning import Judgement, Learned, Learning
from mecroute.evidence.lengths import UsualLengths, known_as
from mecroute.evidence.observations import Observations
from mecroute.evidence.posterior import QualityEvidence
from mecroute.evidence.signals import Answer
from mecroute.outcome import Provenance, Segment
from mecroute.predict.residuals import Correction
from mecroute.request_body import shown
from mecroute.routing.ranking import Adjustment
from mecroute.state.store import StateStore
from mecroute.target import Target

_REPLIES_KEPT = 2000


@dataclass(frozen=True, slots=True)
class _Reply:
    """What feedback on a reply is held against."""

    target_id: str
    complexity: float
    predicted: float | None
    kind: str | None = None


class MonitorAgent:
    """Learns from outcomes. Thread-safe.

    What happens on the caller's thread is counted in microseconds; the rest is done in a thread of its own.

    Args:
        store: where decisions, outcomes and what was learned are kept between runs.
        adapt: whether evidence of quality moves the predictions.
        cascade: how first answers are judged.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        store: StateStore,
        *,
        adapt: bool = True,
        cascade: CascadeConfig | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._adapt = adapt
        self._lock = threading.Lock()
        self._observations = Observations(clock)
        self._users = UsualLengths()
        self._replies: OrderedDict[str, _Reply] = OrderedDict()
        self.quality = QualityEvidence()
        self.drift = DriftMonitor()
        self.confidence = LogprobEvidence()
        #: What is known of first answers, and from which score on they are kept.
        self.cascade = JudgedAnswers(cascade or CascadeConfig())
        kinds: dict[str, Learned] = {
            "correction": self._observations,
            "user": self._users,
            "quality": self.quality,
            "drift": self.drift,
            "cascade": self.cascade,
            "logprobs": self.confidence,
        }
        self._learning = Learning(
            store, self.quality, self.drift, self.confidence, kinds, on_judged=self.cascade.judged
        )
        self.cascade.ready()

    def close(self) -> None:
        """Learn and write what is left."""
        self._learning.close()

    def flush(self) -> None:
        """Wait until what was recorded so far is learned and on disk (at most a few seconds)."""
        self._learning.flush()

    def correction(self, target: Target) -> Correction:
        """How this target's answers differed from what was predicted, so far."""
        found = self._observations.correction(target.id)
        if self.drift.quiet:
            return found
        factor = self.drift.spread_factor(target.id)
        return found if factor == 1.0 else found.widened(factor)

    def availability(self, target_id: str) -> float:
        """Share of recent calls that were answered, 0..1, the newest weighing most; 1 before the first."""
        success = self._observations.success(target_id)
        return success if self.drift.quiet else success * self.drift.availability_factor(target_id)

    @property
    def adjustment(self) -> Adjustment | None:
        """What evidence adds to predicted qualities; None while it adds nothing to any."""
        return self.quality_adjustment if self._adapt and self.quality else None

    def quality_adjustment(
        self, target: Target, complexity: float, kind: str | None = None
    ) -> tuple[float, float]:
        """What evidence adds to a predicted quality, and how much there is; see `QualityEvidence`."""
        return self.quality.adjustment(target.id, complexity, kind) if self._adapt else (0.0, 0.0)

    def annotated(self, decision: Decision) -> Decision:
        """The decision, with a note at each candidate whose predictions an alarm has changed."""
        if self.drift.quiet:
            return decision
        return replace(decision, candidates=annotated(decision.candidates, self.drift.notes))

    def resting(self, target_id: str) -> str | None:
        """Why a target is not tried for now after failing; None when it may be tried.

        After the pause one request may try it again; while that fails, the pause grows.
        """
        return self._observations.resting(target_id)

    def usual_output_tokens(self, user: str | None) -> float | None:
        """Mean answer length of a user, in tokens; None where unknown."""
        return None if user is None else self._users.of(known_as(user))

    def failed(self, target_id: str, error: str, *, retry_after_s: float | None = None) -> None:
        """A target did not answer, or stopped in the middle of an answer.

        Args:
            target_id: which.
            error: what it failed with.
            retry_after_s: how long it asks to be left alone; None where it says nothing.
        """
        self.drift.failed(target_id)
        self._observations.failed(target_id, error, retry_after_s)

    def answered(self, decision: Decision, segment: Segment) -> None:
        """A target gave a whole answer or the rest of one: compare it with what was predicted."""
        candidate = next((c for c in decision.candidates if c.target.id == segment.target_id), None)
        self._observations.answered(segment.target_id, candidate, decision.features, segment)

    def named_no_class(self, decision: Decision, segment: Segment) -> None:
        """A chat model that was asked for a class named none: it did answer, and wrongly."""
        predicted = _predicted_quality(decision, segment.target_id)
        self._learning.judged(
            Judgement(
                request_id=decision.request_id,
                source="signals",
                target_id=segment.target_id,
                complexity=decision.features.complexity,
                predicted=0.0 if predicted is None else predicted,
                score=0.0,
                note="no_class",
                kind=decision.features.kind,
            )
        )

    def overtaken(self, decision: Decision, segment: Segment) -> None:
        """A target was late, and a hedge answered before it: no failure, but it says how slow it was."""
        candidate = next((c for c in decision.candidates if c.target.id == segment.target_id), None)
        if candidate is not None:
            self._observations.overtaken(candidate, segment)

    def record(self, provenance: Provenance, *, user: str | None, answer: Answer | None = None) -> None:
        """Keep a finished request: in memory for feedback, in the store for later. Returns at once.

        Args:
            answer: what was answered; it is looked at for signs of a bad answer, and not kept.
        """
        outcome, decision = provenance.outcome, provenance.decision
        digest = known_as(user) if user is not None else None
        if digest is not None and outcome.error is None:
            self._users.learn(digest, outcome.output_tokens)
        predicted = _predicted_quality(decision, outcome.target_id)
        with self._lock:
            self._replies[provenance.request_id] = _Reply(
                outcome.target_id, decision.features.complexity, predicted, decision.features.kind
            )
            while len(self._replies) > _REPLIES_KEPT:
                self._replies.popitem(last=False)
        self._learning.finished(provenance, digest, answer)

    def judged(self, judgement: Judgement) -> None:
        """Take in what was found out about an answer after its delivery. Returns at once."""
        self._learning.judged(judgement)

    def feedback(self, request_id: str, score: float) -> None:
        """Keep a person's judgement of an answer.

        Args:
            score: 0 (useless) to 1 (right).

        Raises:
            InvalidRequestError: the score is out of range, or no such answer is known.
        """
        if isinstance(score, bool) or not isinstance(score, int | float) or not 0 <= score <= 1:
            raise InvalidRequestError(f"score must be a number from 0 to 1, not {shown(score)}")
        if not isinstance(request_id, str) or not request_id.isascii():
            raise InvalidRequestError(f"an id is that of a reply, not {shown(request_id)}")
        with self._lock:
            reply = self._replies.get(request_id)
        if reply is None:
            self._learning.flush()
            reply = _reply_from(self._store.detail(request_id))
        if reply is None:
            raise InvalidRequestError(
                f"no answer with the id '{request_id[:80]}' is known", hint="pass the `id` of a reply"
            )
        predicted = float(score) if reply.predicted is None else reply.predicted
        self._learning.judged(
            Judgement(
                request_id=request_id,
                source="feedback",
                target_id=reply.target_id,
                complexity=reply.complexity,
                predicted=predicted,
                score=float(score),
                kind=reply.kind,
            )
        )


def _predicted_quality(decision: Decision, target_id: str) -> float | None:
    for candidate in decision.candidates:
        if candidate.target.id == target_id:
            return candidate.quality - candidate.quality_adjusted_by
    return None


def _reply_from(detail: Mapping[str, Any] | None) -> _Reply | None:
    """A reply of an earlier run, as the store kept it."""
    if detail is None:
        return None
    target_id, decision = str(detail["outcome"]["target_id"]), detail["decision"]
    predicted = next(
        (
            float(c["quality"]) - float(c.get("quality_adjusted_by") or 0)
            for c in decision["candidates"]
            if c["target"]["id"] == target_id
        ),
        None,
    )
    features = decision["features"]
    return _Reply(target_id, float(features["complexity"]), predicted, features.get("kind"))
