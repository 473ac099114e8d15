"""The monitor agent: records what happened and turns it into corrections of the predictions."""

from __future__ import annotations

import math
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from mecroute.decision import Candidate, Decision
from mecroute.errors import InvalidRequestError
from mecroute.evidence.drift import DriftMonitor
from mecroute.evidence.learning import Judgement, Learned, Learning
from mecroute.evidence.lengths import UsualLengths, known_as
from mecroute.evidence.posterior import QualityEvidence
from mecroute.evidence.signals import Answer
from mecroute.outcome import Provenance, Segment
from mecroute.predict.latency import Correction
from mecroute.state.store import StateStore
from mecroute.target import Target

_ALPHA = 0.2  # weight of the newest observation
_MAX_FACTOR = 10.0  # one absurd measurement (a suspended laptop) must not poison a target
_FAILURES_TO_OPEN = 1
_BACKOFF_S = (1.0, 2.0, 5.0, 10.0, 30.0)
_REPLIES_KEPT = 2000


@dataclass(slots=True)
class _Observed:
    """Running observations of one target, in the log domain (latencies are about log-normal)."""

    log_ttft: float = 0.0
    log_decode: float = 0.0
    variance: float = 0.35**2
    samples: int = 0
    success: float = 1.0
    failures_in_a_row: int = 0
    retry_at: float = 0.0
    last_error: str = ""


class _Observations:
    """What was observed of each target, in a form that survives a restart."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.by_target: dict[str, _Observed] = {}
        self.changed: set[str] = set()

    def of(self, target_id: str) -> _Observed:
        """The observations of a target, about to be changed; under the lock."""
        self.changed.add(target_id)
        return self.by_target.setdefault(target_id, _Observed())

    def take_changes(self) -> dict[str, dict[str, Any]]:
        with self.lock:
            changed, self.changed = self.changed, set()
            return {target: asdict(self.by_target[target]) for target in changed}

    def restore(self, name: str, value: Mapping[str, Any]) -> None:
        numbers = [value.get(key) for key in ("log_ttft", "log_decode", "variance", "samples", "success")]
        if not all(isinstance(n, int | float) and math.isfinite(n) for n in numbers):
            return
        log_ttft, log_decode, variance, samples, success = (float(n or 0) for n in numbers)
        bound = math.log(_MAX_FACTOR) * 3
        with self.lock:
            # That a target was resting is not kept: it has had the time of a restart.
            self.by_target[name] = _Observed(
                log_ttft=min(bound, max(-bound, log_ttft)),
                log_decode=min(bound, max(-bound, log_decode)),
                variance=min(4.0, max(0.01, variance)),
                samples=max(0, int(samples)),
                success=min(1.0, max(0.0, success)),
            )

    def forget(self) -> None:
        with self.lock:
            self.by_target.clear()
            self.changed.clear()


@dataclass(frozen=True, slots=True)
class _Reply:
    """What feedback on a reply is held against."""

    target_id: str
    complexity: float
    predicted: float | None


class MonitorAgent:
    """Learns from outcomes. Thread-safe.

    What happens on the caller's thread is counted in microseconds; the rest is done in a thread of its own.

    Args:
        store: where decisions, outcomes and what was learned are kept between runs.
        adapt: whether evidence of quality moves the predictions.
        clock: monotonic seconds.
    """

    def __init__(
        self, store: StateStore, *, adapt: bool = True, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._store = store
        self._clock = clock
        self._adapt = adapt
        self._lock = threading.Lock()
        self._observations = _Observations()
        self._users = UsualLengths()
        self._replies: OrderedDict[str, _Reply] = OrderedDict()
        self.quality = QualityEvidence()
        self.drift = DriftMonitor()
        kinds: dict[str, Learned] = {
            "correction": self._observations,
            "user": self._users,
            "quality": self.quality,
            "drift": self.drift,
        }
        self._learning = Learning(store, self.quality, self.drift, kinds)

    def close(self) -> None:
        """Learn and write what is left."""
        self._learning.close()

    def flush(self) -> None:
        """Wait until what was recorded so far is learned and on disk (at most a few seconds)."""
        self._learning.flush()

    def correction(self, target: Target) -> Correction:
        """How this target's answers differed from what was predicted, so far."""
        with self._observations.lock:
            seen = self._observations.by_target.get(target.id)
            if seen is None or not seen.samples:
                return Correction()
            return Correction(
                ttft=math.exp(seen.log_ttft),
                decode=math.exp(seen.log_decode),
                sigma=math.sqrt(seen.variance) * self.drift.spread_factor(target.id),
                samples=seen.samples,
            )

    def availability(self, target_id: str) -> float:
        """Share of recent calls that were answered, 0..1, the newest weighing most; 1 before the first."""
        with self._observations.lock:
            seen = self._observations.by_target.get(target_id)
            return seen.success * self.drift.availability_factor(target_id) if seen else 1.0

    def quality_adjustment(self, target: Target, complexity: float) -> tuple[float, float]:
        """What evidence adds to a predicted quality, and how much there is; see `QualityEvidence`."""
        return self.quality.adjustment(target.id, complexity) if self._adapt else (0.0, 0.0)

    def annotated(self, decision: Decision) -> Decision:
        """The decision, with a note at each candidate whose predictions an alarm has changed."""
        if self.drift.quiet:
            return decision
        return replace(
            decision,
            candidates=tuple(
                replace(c, notes=(*c.notes, *notes)) if (notes := self.drift.notes(c.target.id)) else c
                for c in decision.candidates
            ),
        )

    def resting(self, target_id: str) -> str | None:
        """Why a target is not tried for now after failing; None when it may be tried.

        After the pause one request may try it again; while that fails, the pause grows.
        """
        with self._observations.lock:
            seen = self._observations.by_target.get(target_id)
            if seen is None or seen.failures_in_a_row < _FAILURES_TO_OPEN:
                return None
            left = seen.retry_at - self._clock()
            if left <= 0:
                return None
            count = seen.failures_in_a_row
            return f"failed {count} times in a row ({seen.last_error}); next try in {left:.1f} s"

    def usual_output_tokens(self, user: str | None) -> float | None:
        """Mean answer length of a user, in tokens; None where unknown."""
        return None if user is None else self._users.of(known_as(user))

    def failed(self, target_id: str, error: str) -> None:
        """A target did not answer, or stopped in the middle of an answer."""
        self.drift.failed(target_id)
        with self._observations.lock:
            seen = self._observations.of(target_id)
            seen.success += _ALPHA * (0.0 - seen.success)
            pause = _BACKOFF_S[min(seen.failures_in_a_row, len(_BACKOFF_S) - 1)]
            seen.failures_in_a_row += 1
            seen.retry_at = self._clock() + pause
            seen.last_error = error

    def answered(self, decision: Decision, segment: Segment) -> None:
        """A target gave a whole answer or the rest of one: compare it with what was predicted."""
        candidate = next((c for c in decision.candidates if c.target.id == segment.target_id), None)
        with self._observations.lock:
            seen = self._observations.of(segment.target_id)
            seen.success += _ALPHA * (1.0 - seen.success)
            seen.failures_in_a_row = 0
            # The rest of a lost answer is not what was predicted; an embedding has no tokens to time.
            # Loading a model says nothing of how fast it answers once it is loaded.
            usable = candidate is not None and not candidate.cold and segment.seam is None
            if candidate is not None and usable and segment.output_tokens > 0:
                _learn(seen, candidate, decision.features.output_tokens, segment)

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
                outcome.target_id, decision.features.complexity, predicted
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
            raise InvalidRequestError(f"score must be a number from 0 to 1, not {score!r}")
        with self._lock:
            reply = self._replies.get(request_id)
        if reply is None:
            self._learning.flush()
            reply = _reply_from(self._store.detail(request_id))
        if reply is None:
            raise InvalidRequestError(
                f"no answer with the id '{request_id}' is known", hint="pass the `id` of a reply"
            )
        predicted = float(score) if reply.predicted is None else reply.predicted
        self._learning.judged(
            Judgement(request_id, "feedback", reply.target_id, reply.complexity, predicted, float(score))
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
    return _Reply(target_id, float(decision["features"]["complexity"]), predicted)


def _learn(seen: _Observed, candidate: Candidate, expected_tokens: int, segment: Segment) -> None:
    """Move the correction factors towards observed over predicted.

    The prediction already holds today's factor, so what is left over is added to its logarithm.
    """
    expected_per_token = (candidate.latency_ms_p50 - candidate.ttft_ms) / max(1, expected_tokens)
    expected_total = candidate.ttft_ms + expected_per_token * segment.output_tokens
    total = _log_ratio(segment.latency_ms, expected_total)
    # What was merely assumed may be off by far, so the first observations then count in full.
    alpha = max(_ALPHA, 1 / (seen.samples + 1)) if candidate.assumed else _ALPHA
    if segment.ttft_ms is None:
        seen.log_ttft += alpha * total
        seen.log_decode += alpha * total
    else:
        seen.log_ttft += alpha * _log_ratio(segment.ttft_ms, candidate.ttft_ms)
        if segment.output_tokens > 1:
            observed = (segment.latency_ms - segment.ttft_ms) / (segment.output_tokens - 1)
            seen.log_decode += alpha * _log_ratio(observed, expected_per_token)
    if seen.samples:
        seen.variance += _ALPHA * (total**2 - seen.variance)
    seen.samples += 1


def _log_ratio(observed: float, expected: float) -> float:
    if not (math.isfinite(observed) and math.isfinite(expected)) or observed <= 0 or expected <= 0:
        return 0.0
    return math.log(min(_MAX_FACTOR, max(1 / _MAX_FACTOR, observed / expected)))
