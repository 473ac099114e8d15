"""Has a target changed? Cumulative sums over latency residuals and errors, and single outliers.

- Latency: a two-sided CUSUM (Page 1954, "Continuous inspection schemes") over the log of observed over
  predicted time, in units of its usual spread, with allowance 0.5 and threshold 8. In control it gives one
  false alarm in about 10,000 answers (Siegmund 1985); a shift by one spread is found after about 16.
- Errors: a CUSUM of log-likelihood ratios between the target's usual error rate and five times it.
- Outliers: the modified z-score by the median absolute deviation, beyond 3.5 (Iglewicz and Hoaglin 1993).

While an alarm stands, the predicted spread is widened or the availability lowered. It is lifted after as many
ordinary answers as it takes to tell.
"""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from mecroute.numbers import finite

_ALLOWANCE = 0.5
_THRESHOLD = 8.0
_CLIP = 4.0  # one absurd answer must not raise an alarm by itself
_USUAL_SIGMA = 0.35
#: Calls after which a target's predictions have been corrected by its answers; before that they are merely
#: wrong, and nothing has changed.
_WARM_AFTER = 10
_SIGMA_ALPHA = 0.05
_SIGMA_RANGE = (0.1, 1.5)
_ERROR_THRESHOLD = 5.0
_ERROR_FLOOR, _ERROR_RAISED = 0.01, 5.0
_ERROR_ALPHA = 0.02
_LIFTED_AFTER = 20
_OUTLIER_Z = 3.5
_WINDOW = 64
_OUTLIERS_NEED = 12
_TARGETS = 2000

SPREAD_FACTOR = 1.5
AVAILABILITY_FACTOR = 0.5

Alarm = Literal["slower", "faster", "failing"]


@dataclass(slots=True)
class TargetHealth:
    """The running sums of one target.

    Args:
        sigma: usual spread of the log residuals.
        slower, faster, failing: the cumulative sums.
        error_rate: usual share of calls that fail, 0..1.
        alarms: alarm to ordinary answers still to come before it is lifted.
        outliers: answers that were far off what is usual.
    """

    samples: int = 0
    sigma: float = _USUAL_SIGMA
    slower: float = 0.0
    faster: float = 0.0
    failing: float = 0.0
    error_rate: float = _ERROR_FLOOR
    outliers: int = 0
    alarms: dict[str, int] = field(default_factory=dict)
    recent: deque[float] = field(default_factory=lambda: deque(maxlen=_WINDOW))


class DriftMonitor:
    """Watches every target. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: dict[str, TargetHealth] = {}
        self._changed: set[str] = set()
        #: Targets with an alarm: what the request path looks at, without a lock.
        self._alarmed: dict[str, frozenset[str]] = {}

    def answered(self, target_id: str, observed_ms: float, predicted_ms: float) -> None:
        """A target answered: compare the time with the prediction. Nonsense is counted as no time at all."""
        with self._lock:
            health = self._of(target_id)
            health.samples += 1
            self._error(health, 0.0)
            if (
                math.isfinite(observed_ms)
                and math.isfinite(predicted_ms)
                and observed_ms > 0
                and predicted_ms > 0
            ):
                self._latency(health, math.log(observed_ms / predicted_ms))
            self._note(target_id, health)

    def failed(self, target_id: str) -> None:
        """A target did not answer."""
        with self._lock:
            health = self._of(target_id)
            health.samples += 1
            self._error(health, 1.0)
            self._note(target_id, health)

    @property
    def quiet(self) -> bool:
        """Whether no alarm stands for any target."""
        return not self._alarmed

    def alarms(self, target_id: str) -> frozenset[str]:
        """The alarms that stand for a target."""
        return self._alarmed.get(target_id, frozenset())

    def spread_factor(self, target_id: str) -> float:
        """What the predicted spread is multiplied by: 1 unless its latency has been found to drift."""
        return SPREAD_FACTOR if self.alarms(target_id) & {"slower", "faster"} else 1.0

    def availability_factor(self, target_id: str) -> float:
        """What the availability is multiplied by: 1 unless its errors have been found to rise."""
        return AVAILABILITY_FACTOR if "failing" in self.alarms(target_id) else 1.0

    def notes(self, target_id: str) -> tuple[str, ...]:
        """The standing alarms and what follows from them, in words."""
        alarms = self.alarms(target_id)
        found = []
        for name in ("slower", "faster"):
            if name in alarms:
                found.append(f"answers {name} than it used to: spread widened by {SPREAD_FACTOR:g}")
        if "failing" in alarms:
            found.append(f"fails more than it used to: availability times {AVAILABILITY_FACTOR:g}")
        return tuple(found)

    def __iter__(self) -> Iterator[tuple[str, TargetHealth]]:
        with self._lock:
            known = list(self._known.items())
        return iter(known)

    def take_changes(self) -> dict[str, dict[str, Any]]:
        """What changed since the last call, as JSON objects by target."""
        with self._lock:
            changed, self._changed = self._changed, set()
            found = {}
            for target in changed:
                if (h := self._known.get(target)) is not None:
                    found[target] = {
                        "samples": h.samples, "sigma": h.sigma, "slower": h.slower, "faster": h.faster,
                        "failing": h.failing, "error_rate": h.error_rate, "outliers": h.outliers,
                        "alarms": dict(h.alarms),
                    }  # fmt: skip
            return found

    def restore(self, name: str, value: Mapping[str, Any]) -> None:
        """Take back what `take_changes` gave. Damaged values are left out."""
        names = ("samples", "sigma", "slower", "faster", "failing", "error_rate", "outliers")
        alarms = value.get("alarms")
        if not all(_is_number(value.get(key)) for key in names) or not isinstance(alarms, Mapping):
            return
        health = TargetHealth(
            samples=int(value["samples"]),
            sigma=min(_SIGMA_RANGE[1], max(_SIGMA_RANGE[0], float(value["sigma"]))),
            slower=float(value["slower"]),
            faster=float(value["faster"]),
            failing=float(value["failing"]),
            error_rate=min(1.0, float(value["error_rate"])),
            outliers=int(value["outliers"]),
            alarms={str(alarm): int(left) for alarm, left in alarms.items() if _is_number(left)},
        )
        with self._lock:
            self._known[name] = health
            self._note(name, health)
            self._changed.discard(name)

    def forget(self) -> None:
        """Start afresh."""
        with self._lock:
            self._known.clear()
            self._changed.clear()
            self._alarmed.clear()

    def _of(self, target_id: str) -> TargetHealth:
        if target_id not in self._known and len(self._known) >= _TARGETS:
            oldest = next(iter(self._known))
            del self._known[oldest]
            self._alarmed.pop(oldest, None)
        return self._known.setdefault(target_id, TargetHealth())

    def _note(self, target_id: str, health: TargetHealth) -> None:
        self._changed.add(target_id)
        if health.alarms:
            self._alarmed[target_id] = frozenset(health.alarms)
        else:
            self._alarmed.pop(target_id, None)

    def _latency(self, health: TargetHealth, residual: float) -> None:
        if len(health.recent) >= _OUTLIERS_NEED and abs(_modified_z(residual, health.recent)) > _OUTLIER_Z:
            health.outliers += 1
        health.recent.append(residual)
        if health.samples <= _WARM_AFTER:
            return
        z = min(_CLIP, max(-_CLIP, residual / health.sigma))
        health.slower = max(0.0, health.slower + z - _ALLOWANCE)
        health.faster = max(0.0, health.faster - z - _ALLOWANCE)
        raised: tuple[tuple[Alarm, float], ...] = (("slower", health.slower), ("faster", health.faster))
        for alarm, reached in raised:
            if reached > _THRESHOLD:
                health.alarms[alarm] = _LIFTED_AFTER
                health.slower = health.faster = 0.0  # watch from here for the next change
            elif alarm in health.alarms and abs(z) < 2:
                _count_down(health, alarm)
        if not health.alarms:  # what is usual is learned while all is as usual
            variance = health.sigma**2 + _SIGMA_ALPHA * (min(residual**2, 4.0) - health.sigma**2)
            health.sigma = min(_SIGMA_RANGE[1], max(_SIGMA_RANGE[0], math.sqrt(variance)))

    def _error(self, health: TargetHealth, failed: float) -> None:
        usual = max(_ERROR_FLOOR, min(0.5, health.error_rate))
        raised = min(0.9, max(0.1, _ERROR_RAISED * usual))
        step = math.log(raised / usual) if failed else math.log((1 - raised) / (1 - usual))
        health.failing = max(0.0, health.failing + step)
        if health.failing > _ERROR_THRESHOLD:
            health.alarms["failing"] = _LIFTED_AFTER
            health.failing = 0.0
        elif "failing" in health.alarms:
            if failed:
                health.alarms["failing"] = _LIFTED_AFTER
            else:
                _count_down(health, "failing")
        else:
            health.error_rate += _ERROR_ALPHA * (failed - health.error_rate)


def _count_down(health: TargetHealth, alarm: Alarm) -> None:
    health.alarms[alarm] -= 1
    if health.alarms[alarm] <= 0:
        del health.alarms[alarm]


def _modified_z(value: float, recent: deque[float]) -> float:
    """0.6745 × (value - median) / median absolute deviation."""
    ordered = sorted(recent)
    median = ordered[len(ordered) // 2]
    deviation = sorted(abs(item - median) for item in ordered)[len(ordered) // 2]
    return 0.6745 * (value - median) / max(deviation, 0.02)


def _is_number(value: object) -> bool:
    number = finite(value)
    return number is not None and number >= 0
