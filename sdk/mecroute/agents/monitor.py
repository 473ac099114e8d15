"""The monitor agent: records what happened and turns it into corrections of the predictions."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

from mecroute.decision import Decision
from mecroute.errors import InvalidRequestError
from mecroute.outcome import Provenance, Segment
from mecroute.predict.residuals import Correction, Residuals
from mecroute.state.store import StateStore
from mecroute.target import Target

_ALPHA = 0.2  # weight of the newest observation
_FAILURES_TO_OPEN = 1
_BACKOFF_S = (1.0, 2.0, 5.0, 10.0, 30.0)
#: A target that asks to be left alone for longer is asked again all the same.
_MAX_RETRY_AFTER_S = 300.0
_USERS_KEPT = 1000
_REPLIES_KEPT = 2000


@dataclass(slots=True)
class _Observed:
    """Whether a target answers of late."""

    success: float = 1.0
    failures_in_a_row: int = 0
    retry_at: float = 0.0
    last_error: str = ""


@dataclass(slots=True)
class _Users:
    mean_output: OrderedDict[str, float] = field(default_factory=OrderedDict)

    def learn(self, user: str, output_tokens: int) -> None:
        known = self.mean_output.get(user)
        mean = float(output_tokens) if known is None else known + _ALPHA * (output_tokens - known)
        self.mean_output[user] = mean
        self.mean_output.move_to_end(user)
        while len(self.mean_output) > _USERS_KEPT:
            self.mean_output.popitem(last=False)


class MonitorAgent:
    """Learns from outcomes. Thread-safe.

    Args:
        store: where decisions, outcomes and feedback are kept between runs.
        clock: monotonic seconds.
    """

    def __init__(self, store: StateStore, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._store = store
        self._clock = clock
        self._lock = threading.Lock()
        self._observed: dict[str, _Observed] = {}
        self._residuals = Residuals()
        self._users = _Users()
        self._replies: OrderedDict[str, str] = OrderedDict()

    def correction(self, target: Target) -> Correction:
        """How this target's answers differed from what was predicted, so far."""
        return self._residuals.correction(target.id)

    def availability(self, target_id: str) -> float:
        """Share of recent calls that were answered, 0..1, the newest weighing most; 1 before the first."""
        with self._lock:
            seen = self._observed.get(target_id)
            return seen.success if seen else 1.0

    def resting(self, target_id: str) -> str | None:
        """Why a target is not tried for now after failing; None when it may be tried.

        After the pause one request may try it again; while that fails, the pause grows.
        """
        with self._lock:
            seen = self._observed.get(target_id)
            if seen is None or seen.failures_in_a_row < _FAILURES_TO_OPEN:
                return None
            left = seen.retry_at - self._clock()
            if left <= 0:
                return None
            count = seen.failures_in_a_row
            return f"failed {count} times in a row ({seen.last_error}); next try in {left:.1f} s"

    def usual_output_tokens(self, user: str | None) -> float | None:
        """Mean answer length of a user, in tokens; None where unknown."""
        if user is None:
            return None
        with self._lock:
            return self._users.mean_output.get(user)

    def failed(self, target_id: str, error: str, *, retry_after_s: float | None = None) -> None:
        """A target did not answer, or stopped in the middle of an answer.

        Args:
            target_id: which.
            error: what it failed with.
            retry_after_s: how long it asks to be left alone; None where it says nothing.
        """
        with self._lock:
            seen = self._observed.setdefault(target_id, _Observed())
            seen.success += _ALPHA * (0.0 - seen.success)
            pause = _BACKOFF_S[min(seen.failures_in_a_row, len(_BACKOFF_S) - 1)]
            if retry_after_s is not None:
                pause = min(retry_after_s, _MAX_RETRY_AFTER_S)
            seen.failures_in_a_row += 1
            seen.retry_at = self._clock() + pause
            seen.last_error = error

    def answered(self, decision: Decision, segment: Segment) -> None:
        """A target gave a whole answer or the rest of one: compare it with what was predicted."""
        candidate = next((c for c in decision.candidates if c.target.id == segment.target_id), None)
        with self._lock:
            seen = self._observed.setdefault(segment.target_id, _Observed())
            seen.success += _ALPHA * (1.0 - seen.success)
            seen.failures_in_a_row = 0
            if candidate is not None:
                self._residuals.learn(candidate, decision.features, segment)

    def overtaken(self, decision: Decision, segment: Segment) -> None:
        """A target was late, and a hedge answered before it: no failure, but it says how slow it was."""
        candidate = next((c for c in decision.candidates if c.target.id == segment.target_id), None)
        if candidate is not None:
            with self._lock:
                self._residuals.overtaken(candidate, segment.latency_ms)

    def record(self, provenance: Provenance, *, user: str | None) -> None:
        """Keep a finished request: in memory for feedback, in the store for later."""
        with self._lock:
            if user is not None and provenance.outcome.error is None:
                self._users.learn(user, provenance.outcome.output_tokens)
            self._replies[provenance.request_id] = provenance.outcome.target_id
            while len(self._replies) > _REPLIES_KEPT:
                self._replies.popitem(last=False)
        self._store.add(provenance)

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
            known = request_id in self._replies
        if not known and not self._store.has(request_id):
            raise InvalidRequestError(
                f"no answer with the id '{request_id}' is known", hint="pass the `id` of a reply"
            )
        self._store.add_feedback(request_id, float(score))
