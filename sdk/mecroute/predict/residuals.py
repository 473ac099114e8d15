"""What observed latencies teach about the next ones: factors, and quantiles that hold.

Latencies are about log-normal, so everything is learned from logarithms of observed over predicted.
The centres of the waiting, of the time per token and of the answer's length follow their residuals by a Huber
step, which one absurd value cannot throw off; the time per token in each of four crowds by itself, since what
others' prompts take out of it grows with them. What a request takes by itself up to its first token is
learned as what any takes and what its prompt adds (`predict.first_token`): from answers that had the target
to themselves, with residuals bounded alike; beside others from the tokens that the target computed. The 95th
percentiles are tracked by online conformal prediction: q rises by η·0.95 when an answer was slower than q and
falls by η·0.05 when it was not, so that over time 5% are slower, whatever the distribution and however it
drifts (Gibbs and Candès, "Adaptive conformal inference under distribution shift", 2021; step sizes after
Angelopoulos, Candès and Tibshirani, "Conformal PID control for time series prediction", 2023).
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from mecroute.context import RequestFeatures
from mecroute.decision import Candidate
from mecroute.outcome import Segment
from mecroute.predict.first_token import BASE_BOUNDS_MS, FACTOR_BOUNDS, FirstToken

#: Log of p95 over p50 before anything was observed: log-normal with sigma 0.35, and twice that for lengths.
_Z95 = 1.645
_SPREAD = _Z95 * 0.35
_LENGTH_SPREAD = _Z95 * 0.7
_LEVEL = 0.95
_MAX_LOG = math.log(10.0)  # one absurd measurement (a suspended laptop) must not poison a target
_MIN_ALPHA = 0.08  # weight of the newest observation in the long run
#: A profile counts for as much as this many observations; an assumption for none.
_PROFILE_WEIGHT = 4
#: Log of observed over claimed time to first token past which a node's reports of its load are not believed,
#: and below which they are again; never before so many answers.
_DISTRUST, _TRUST = math.log(3.0), math.log(1.5)
_DISTRUST_AFTER = 8
#: Answers after which the centres are near enough for the percentiles to be learned.
_SETTLED_AFTER = 8
_TARGETS_KEPT = 10_000
#: A log residual that is no noise about a median.
_CHANGE = 0.7
_CROWDS = 4


@dataclass(frozen=True, slots=True)
class Correction:
    """Observed over predicted, per target.

    Args:
        ttft, waiting, length: factors on the time that the prompt takes, the waiting, the answer's length.
        decode: factors on the time per token, by crowd (see `Candidate.crowd`).
        ttft_spread, decode_spread, length_spread: log of p95 over p50 of each.
        calibration: factor on the log of p95 over p50 of the whole answer that made it hold so far.
        ttft_base_ms: what is added to the time to first token of any prompt; may be negative.
        samples: answers that these stand on.
        wait_ms: what requests waited there of late, in place of what the load it reports would mean;
            None while its reports are believed.
        disagreement: observed over claimed time to first token.
    """

    ttft: float = 1.0
    decode: tuple[float, float, float, float] = (1.0, 1.0, 1.0, 1.0)
    length: float = 1.0
    ttft_spread: float = _SPREAD
    decode_spread: float = _SPREAD
    length_spread: float = _LENGTH_SPREAD
    calibration: float = 1.0
    samples: int = 0
    wait_ms: float | None = None
    disagreement: float = 1.0
    ttft_base_ms: float = 0.0
    waiting: float = 1.0

    def widened(self, factor: float) -> Correction:
        """The same with its percentiles farther out, while something is amiss with the target.

        Args:
            factor: >= 1, on the logs of p95 over p50.
        """
        return replace(self, ttft_spread=self.ttft_spread * factor, calibration=self.calibration * factor)


#: Of a target that nothing was observed of.
NO_CORRECTION = Correction()


class Quantile:
    """The 95th percentile of a stream of residuals, tracked online.

    Args:
        start: the first guess.
    """

    __slots__ = ("_scale", "count", "value")

    def __init__(self, start: float) -> None:
        self.value = start
        self.count = 0
        self._scale = start

    def observe(self, residual: float) -> None:
        """Take one residual (finite); negative ones are below the median."""
        self.count += 1
        self._scale += 0.1 * (min(abs(residual), 3 * self._scale) - self._scale)
        # Larger steps at first, to get near, and from far above; then as small as drift allows.
        step = max(self._scale, self.value / 2, 0.02) * max(0.25, 1.5 / math.sqrt(self.count))
        missed = residual > self.value
        self.value += step * (_LEVEL if missed else _LEVEL - 1)
        self.value = min(max(self.value, 0.01), _MAX_LOG)


class DecodeFactors:
    """Factors on the time per token: over all, and by crowd where that was observed.

    Args:
        log_centre: of the factor over all, to begin with.
    """

    __slots__ = ("_by_crowd", "_samples", "log_centre")

    def __init__(self, log_centre: float = 0.0) -> None:
        self.log_centre = log_centre
        self._by_crowd: list[float | None] = [None] * _CROWDS
        self._samples = [0] * _CROWDS

    def learn(self, crowd: int, residual: float, alpha: float, limit: float) -> None:
        """Take the log of observed over predicted time per token, in a crowd of 0..3."""
        known, samples = self._by_crowd[crowd], self._samples[crowd]
        self._samples[crowd] += 1
        step = max(alpha, 1 / (samples + 2)) if samples else alpha
        now = self.log_centre if known is None else known
        self._by_crowd[crowd] = _moved(now, step, residual, limit)
        self.log_centre = _moved(self.log_centre, alpha, residual + now - self.log_centre, limit)

    def know(self, crowd: int, log_factor: float) -> None:
        """Take up what an earlier run learned of a crowd."""
        self._by_crowd[crowd], self._samples[crowd] = log_factor, max(1, self._samples[crowd])

    def to_dict(self) -> dict[str, float]:
        """The logs over all and by crowd, as JSON types."""
        known = {f"log_decode_{at}": log for at, log in enumerate(self._by_crowd) if log is not None}
        return {"log_decode": self.log_centre, **known}

    def factors(self) -> tuple[float, float, float, float]:
        """By crowd; where nothing was observed, what was over all."""
        none, few, many, full = (
            math.exp(self.log_centre if known is None else known) for known in self._by_crowd
        )
        return none, few, many, full


class TargetResiduals:
    """What was observed of one target.

    Attributes:
        correction: what to correct the next prediction by.
    """

    __slots__ = (
        *("correction", "first_token", "log_wait", "decode", "log_length", "samples", "_deviation"),
        *("_ttft", "_decode", "_length", "_whole", "_disagreement", "_wait_ms", "_distrusted"),
    )

    def __init__(self) -> None:
        self.log_wait = self.log_length = 0.0
        self.first_token = FirstToken()
        self.decode = DecodeFactors()
        self.samples = 0
        self._deviation = 0.3
        self._ttft, self._decode = Quantile(_SPREAD), Quantile(_SPREAD)
        self._length = Quantile(_LENGTH_SPREAD)
        self._whole = Quantile(1.0)
        self._disagreement = 0.0
        self._wait_ms: float | None = None
        self._distrusted = False
        self.correction = NO_CORRECTION

    def learn(
        self,
        candidate: Candidate,
        expected_tokens: float,
        segment: Segment,
        *,
        prompt_share: float | None = None,
    ) -> None:
        """Take a whole answer. Its prediction held today's factors already, so what is left over is added.

        Args:
            expected_tokens: that were expected of it.
            prompt_share: tokens of its prompt that were computed, over those that were claimed to be; None
                where that is not known.
        """
        tokens = segment.output_tokens
        per_token = (candidate.latency_ms_p50 - candidate.ttft_ms) / max(1.0, expected_tokens)
        whole = _log_ratio(segment.latency_ms, candidate.ttft_ms + per_token * tokens)
        if segment.ttft_ms is None:
            ttft = decode = whole
        else:
            ttft = _log_ratio(segment.ttft_ms, candidate.ttft_ms)
            decode = (
                _log_ratio((segment.latency_ms - segment.ttft_ms) / (tokens - 1), per_token)
                if tokens > 1
                else None
            )
            if segment.alone:
                self._doubt(candidate, segment.ttft_ms)
        length = _log_ratio(tokens, expected_tokens)
        alpha = self._alpha(candidate.assumed)
        limit = math.inf if candidate.assumed else max(2 * self._deviation, 0.2)
        # While the centres are still on their way, how far off an answer was says nothing of the spread.
        settled = self.samples >= _SETTLED_AFTER
        if ttft is not None:
            if segment.alone:
                prompt_share = None  # the time tells it, with all that a token and a request take
            is_own = segment.alone or prompt_share is None
            self._learn_first(candidate, ttft, limit, is_own=is_own, prompt_share=prompt_share)
            self._deviation += 0.1 * (abs(ttft) - self._deviation)
            if settled:
                self._ttft.observe(ttft)
        if decode is not None:
            self.decode.learn(candidate.crowd, decode, alpha, limit)
            if settled:
                self._decode.observe(decode)
        if length is not None:
            self.log_length = _moved(self.log_length, alpha, length, 2.0)
            if settled:
                self._length.observe(length)
        if settled:
            self._calibrate(candidate, segment.latency_ms)
        self.samples += 1
        self._publish()

    def learn_overtaken(self, candidate: Candidate, waited_ms: float, *, alone: bool = True) -> None:
        """Take an answer that had not begun after `waited_ms`, when another target was faster.

        Left out, the slow ones would be missing from what is learned, and every percentile too low.
        """
        at_least = _log_ratio(waited_ms, candidate.ttft_ms)
        if at_least is None or at_least <= 0:
            return
        self._learn_first(candidate, at_least, max(2 * self._deviation, 0.2), is_own=alone)
        self._ttft.observe(max(at_least, self._ttft.value + 1e-6))
        self.samples += 1
        self._publish()

    def _learn_first(
        self,
        candidate: Candidate,
        residual: float,
        limit: float,
        *,
        is_own: bool,
        prompt_share: float | None = None,
    ) -> None:
        """Take the log of observed over predicted time to first token, bounded by `limit`.

        Args:
            is_own: whether that is the request's own time, where it was not predicted to wait.
            prompt_share: see `learn`; what is known of the request itself where it was not its own time.
        """
        if self._distrusted:
            return  # what it takes by itself is not known while its waiting is guessed
        parts = candidate.parts
        own, prefill = candidate.ttft_ms, candidate.claimed_ttft_ms
        if parts is not None:
            own = parts.network_ms + parts.prefill_ms
            prefill -= candidate.claimed_wait_ms + parts.load_ms + parts.network_ms
            if prompt_share is not None and prefill > 0:
                line = self.first_token
                expected = line.base_ms + line.factor * prefill
                line.learn(prefill, prefill * prompt_share - expected, of_ms=own, surprise=False)
            if parts.queue_ms > own:
                # Most of it was waiting, and so is what was not foreseen.
                left = candidate.ttft_ms * math.exp(residual) - own - parts.load_ms
                waited = _log_ratio(max(left, parts.queue_ms * 1e-3), parts.queue_ms)
                self.log_wait = _moved(self.log_wait, _MIN_ALPHA, waited or 0.0, limit)
                return
        if not is_own:
            return
        self.first_token.learn(
            max(0.0, prefill),
            own * _relative(residual, limit),
            of_ms=candidate.ttft_ms,
            surprise=abs(residual) > limit,
            assumed=candidate.assumed,
        )

    def to_dict(self) -> dict[str, float]:
        """What is worth keeping over a restart, as JSON types."""
        return {
            "ttft_base_ms": self.first_token.base_ms,
            "ttft_factor": self.first_token.factor,
            **self.decode.to_dict(),
            "log_wait": self.log_wait,
            "log_length": self.log_length,
            "ttft_spread": self._ttft.value,
            "decode_spread": self._decode.value,
            "length_spread": self._length.value,
            "calibration": self._whole.value,
            "samples": self.samples,
        }

    def restore(self, kept: Mapping[str, Any]) -> None:
        """Take up what `to_dict` gave; numbers that cannot be are left out."""

        def number(name: str, low: float, high: float, default: float) -> float:
            value = kept.get(name)
            usable = isinstance(value, int | float) and low <= value <= high
            return float(value) if usable and value is not None else default

        self.first_token = FirstToken(
            number("ttft_base_ms", *BASE_BOUNDS_MS, 0.0), number("ttft_factor", *FACTOR_BOUNDS, 1.0)
        )
        self.decode = DecodeFactors(number("log_decode", -_MAX_LOG, _MAX_LOG, 0.0))
        for crowd in range(_CROWDS):
            known = number(f"log_decode_{crowd}", -_MAX_LOG, _MAX_LOG, math.nan)
            if not math.isnan(known):
                self.decode.know(crowd, known)
        self.log_wait = number("log_wait", -_MAX_LOG, _MAX_LOG, 0.0)
        self.log_length = number("log_length", -_MAX_LOG, _MAX_LOG, 0.0)
        self._ttft.value = number("ttft_spread", 0.01, _MAX_LOG, self._ttft.value)
        self._decode.value = number("decode_spread", 0.01, _MAX_LOG, self._decode.value)
        self._length.value = number("length_spread", 0.01, _MAX_LOG, self._length.value)
        self._whole.value = number("calibration", 0.01, _MAX_LOG, self._whole.value)
        self.samples = int(number("samples", 0, 1e9, 0))
        self._publish()

    def _alpha(self, assumed: bool) -> float:
        return max(_MIN_ALPHA, 1 / (self.samples + 1 + (0 if assumed else _PROFILE_WEIGHT)))

    def _calibrate(self, candidate: Candidate, latency_ms: float) -> None:
        residual = _log_ratio(latency_ms, candidate.latency_ms_p50)
        spread = _log_ratio(candidate.latency_ms_p95, candidate.latency_ms_p50)
        if residual is None or spread is None or spread <= 0:
            return
        # In units of the spread that this very request was predicted to have (normalised conformal score).
        self._whole.observe(residual / spread * self._whole.value)

    def _doubt(self, candidate: Candidate, ttft_ms: float) -> None:
        """Compare what a node claims (its profile and reported load) with what was observed."""
        claimed, claimed_wait = candidate.claimed_ttft_ms, candidate.claimed_wait_ms
        if candidate.target.tier != "mec" or candidate.assumed or not claimed:
            return  # nothing was claimed
        ratio = _log_ratio(ttft_ms, claimed)
        if ratio is None:
            return
        # A machine that is slow at everything does not lie about its load, nor does one that is only faster
        # than its profile.
        if ratio > 0:
            ratio = max(0.0, ratio - max(0.0, self.decode.log_centre))
        elif claimed_wait < claimed / 2:
            ratio = 0.0
        self._disagreement += self._alpha(True) * (ratio - self._disagreement)
        waited = max(0.0, ttft_ms - (claimed - claimed_wait))
        if self._wait_ms is None:
            self._wait_ms = waited
        self._wait_ms += max(0.1, 1 / (self.samples + 1)) * (waited - self._wait_ms)
        off = abs(self._disagreement)
        if not self._distrusted and off > _DISTRUST and self.samples >= _DISTRUST_AFTER:
            # The factor stood in for the waiting so far; from here on the waiting is counted itself.
            self._distrusted, self.first_token = True, FirstToken()
        elif self._distrusted and off < _TRUST:
            self._distrusted = False

    def _publish(self) -> None:
        self.correction = Correction(
            ttft=self.first_token.factor,
            ttft_base_ms=self.first_token.base_ms,
            decode=self.decode.factors(),
            waiting=math.exp(self.log_wait),
            length=math.exp(self.log_length),
            ttft_spread=self._ttft.value,
            decode_spread=self._decode.value,
            length_spread=self._length.value,
            calibration=self._whole.value,
            samples=self.samples,
            wait_ms=self._wait_ms if self._distrusted else None,
            disagreement=math.exp(self._disagreement),
        )


class Residuals:
    """What was observed of every target; of the 10,000 used last. Not thread-safe: the owner locks."""

    def __init__(self) -> None:
        self._targets: OrderedDict[str, TargetResiduals] = OrderedDict()
        self._changed: set[str] = set()

    def take_changes(self) -> dict[str, dict[str, float]]:
        """What was learned of each target since the last call, as JSON types."""
        changed, self._changed = self._changed, set()
        return {id: self._targets[id].to_dict() for id in changed if id in self._targets}

    def restore(self, target_id: str, kept: Mapping[str, Any]) -> None:
        """Take up what `take_changes` gave of a target in an earlier run."""
        self._of(target_id).restore(kept)
        self._changed.discard(target_id)

    def forget(self) -> None:
        """Begin anew."""
        self._targets.clear()
        self._changed.clear()

    def correction(self, target_id: str) -> Correction:
        """What to correct the next prediction for a target by. Needs no lock."""
        seen = self._targets.get(target_id)
        return NO_CORRECTION if seen is None else seen.correction

    def learn(self, candidate: Candidate, features: RequestFeatures, segment: Segment) -> None:
        """Take a whole answer, where it tells something of the target's usual speed."""
        # Loading a model says nothing of how fast it answers once it is loaded; the rest of a lost answer
        # is not what was predicted; an embedding has no tokens to time, and its model may chat as well. A
        # classifier does nothing else, and its whole answer is the first token.
        if candidate.cold or segment.seam is not None:
            return
        if segment.output_tokens <= 0 and candidate.task != "classify":
            return
        expected = candidate.output_tokens or features.output_tokens
        share = None
        claimed = features.prompt_tokens - candidate.cached_prompt_tokens
        if segment.computed_tokens is not None and claimed > 0 and candidate.target.tier != "cloud":
            share = segment.computed_tokens / claimed
        self._of(candidate.target.id).learn(candidate, expected, segment, prompt_share=share)

    def overtaken(self, candidate: Candidate, waited_ms: float, *, alone: bool = True) -> None:
        """Take that a target had not begun to answer after so long, when a hedge was faster.

        Args:
            alone: whether this client had nothing else under way there meanwhile.
        """
        if not candidate.cold:
            self._of(candidate.target.id).learn_overtaken(candidate, waited_ms, alone=alone)

    def _of(self, target_id: str) -> TargetResiduals:
        seen = self._targets.get(target_id)
        if seen is None:
            seen = self._targets[target_id] = TargetResiduals()
            while len(self._targets) > _TARGETS_KEPT:
                self._targets.popitem(last=False)
        self._targets.move_to_end(target_id)
        self._changed.add(target_id)
        return seen


def _relative(residual: float, limit: float) -> float:
    """How much longer it took, in times of what was predicted, of a log residual.

    About the residual itself, so that the median is learned and not the mean; a large one is a change.
    """
    bounded = min(max(residual, -limit), limit)
    return math.expm1(bounded) if bounded > _CHANGE else bounded


def _moved(centre: float, alpha: float, residual: float, limit: float) -> float:
    """A Huber step, bounded: the factor stays within 1/10 and 10."""
    moved = centre + alpha * min(max(residual, -limit), limit)
    return min(max(moved, -_MAX_LOG), _MAX_LOG)


def _log_ratio(observed: float, expected: float) -> float | None:
    """Log of observed over expected, within ±log 10; None where either is no positive number."""
    if not (0 < observed < math.inf and 0 < expected < math.inf):
        return None
    return min(max(math.log(observed) - math.log(expected), -_MAX_LOG), _MAX_LOG)
