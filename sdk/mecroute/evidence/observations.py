"""What was observed of each target: whether it answers, and how far its latency is from what is predicted."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from mecroute.context import RequestFeatures
from mecroute.decision import Candidate
from mecroute.numbers import finite
from mecroute.outcome import Segment
from mecroute.predict.residuals import Correction, Residuals

_ALPHA = 0.2  # weight of the newest answer or failure
_BACKOFF_S = (1.0, 2.0, 5.0, 10.0, 30.0)
#: A node that asks to be left alone for longer is asked again all the same.
_MAX_RETRY_AFTER_S = 300.0


@dataclass(slots=True)
class _Seen:
    """Whether a target answers of late."""

    success: float = 1.0
    failures_in_a_row: int = 0
    retry_at: float = 0.0
    last_error: str = ""


class Observations:
    """What was observed of each target, in a form that survives a restart. Thread-safe.

    Args:
        clock: monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._seen: dict[str, _Seen] = {}
        self._changed: set[str] = set()
        self._residuals = Residuals()

    def correction(self, target_id: str) -> Correction:
        """What to correct the next prediction for a target by."""
        return self._residuals.correction(target_id)

    def success(self, target_id: str) -> float:
        """Share of recent calls that were answered, 0..1, the newest weighing most; 1 before the first."""
        seen = self._seen.get(target_id)
        return 1.0 if seen is None else seen.success

    def resting(self, target_id: str) -> str | None:
        """Why a target is not tried for now after failing; None when it may be tried."""
        seen = self._seen.get(target_id)
        if seen is None or not seen.failures_in_a_row:
            return None
        with self._lock:
            left, count = seen.retry_at - self._clock(), seen.failures_in_a_row
            # A clock that jumped back would otherwise make the pause longer than any can be.
            if not 0 < left <= _MAX_RETRY_AFTER_S or not count:
                return None
            return f"failed {count} times in a row ({seen.last_error}); next try in {left:.1f} s"

    def failed(self, target_id: str, error: str, retry_after_s: float | None) -> None:
        """A target did not answer: it rests for longer each time, or for as long as it asks.

        To requests that it refused together it may have named a time each: then it rests until the first.
        """
        with self._lock:
            seen, now = self._of(target_id), self._clock()
            seen.success += _ALPHA * (0.0 - seen.success)
            retry_at = now + _BACKOFF_S[min(seen.failures_in_a_row, len(_BACKOFF_S) - 1)]
            if retry_after_s is not None:
                retry_at = now + min(retry_after_s, _MAX_RETRY_AFTER_S)
                if seen.failures_in_a_row and now < seen.retry_at:
                    retry_at = min(retry_at, seen.retry_at)
            seen.failures_in_a_row += 1
            seen.retry_at = retry_at
            seen.last_error = error

    def answered(
        self, target_id: str, candidate: Candidate | None, features: RequestFeatures, segment: Segment
    ) -> None:
        """A target answered; where it was predicted how fast, that is compared."""
        with self._lock:
            seen = self._of(target_id)
            seen.success += _ALPHA * (1.0 - seen.success)
            seen.failures_in_a_row = 0
            if candidate is not None:
                self._residuals.learn(candidate, features, segment)

    def overtaken(self, candidate: Candidate, segment: Segment) -> None:
        """A target had not begun to answer after so long, when a hedge was faster."""
        with self._lock:
            self._residuals.overtaken(candidate, segment.latency_ms, alone=segment.alone)

    def take_changes(self) -> dict[str, dict[str, Any]]:
        """What changed since the last call, as JSON objects by target."""
        with self._lock:
            found: dict[str, dict[str, Any]] = {
                target: dict(value) for target, value in self._residuals.take_changes().items()
            }
            for target in self._changed:
                found.setdefault(target, {})
            self._changed.clear()
            for target, value in found.items():
                value["success"] = self.success(target)
            return found

    def restore(self, name: str, value: Mapping[str, Any]) -> None:
        """Take one entry back; what is damaged is left out."""
        success = finite(value.get("success"))
        with self._lock:
            if success is not None:
                # That a target was resting is not kept: it has had the time of a restart.
                self._seen[name] = _Seen(success=min(1.0, max(0.0, success)))
            if "samples" in value:
                self._residuals.restore(name, value)

    def forget(self) -> None:
        """Start afresh."""
        with self._lock:
            self._seen.clear()
            self._changed.clear()
            self._residuals.forget()

    def _of(self, target_id: str) -> _Seen:
        self._changed.add(target_id)
        return self._seen.setdefault(target_id, _Seen())
