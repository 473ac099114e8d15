"""Predicted latency: network + waiting + loading + prefill + decode, corrected by what was observed."""

from __future__ import annotations

import math
from dataclasses import dataclass

from mecroute.context import RequestFeatures
from mecroute.target import TargetState

#: Spread of the 95th percentile over the median before anything was observed (log-normal, sigma 0.35).
_DEFAULT_SIGMA = 0.35
_Z95 = 1.645

#: Assumed speeds where nothing was measured; stated in the candidate's notes.
ASSUMED_PREFILL_TOKENS_PER_S = {"device": 200.0, "mec": 800.0, "cloud": 4000.0}
ASSUMED_DECODE_TOKENS_PER_S = {"device": 20.0, "mec": 40.0, "cloud": 60.0}
ASSUMED_CLOUD_TTFT_MS = 500.0


@dataclass(frozen=True, slots=True)
class Correction:
    """Observed over predicted, per target: factors on TTFT and on decode time, and the spread seen."""

    ttft: float = 1.0
    decode: float = 1.0
    sigma: float = _DEFAULT_SIGMA
    samples: int = 0


@dataclass(frozen=True, slots=True)
class LatencyPrediction:
    """Predicted times in ms. `raw_*` are before correction: what outcomes are compared with."""

    ttft_ms: float
    p50_ms: float
    p95_ms: float
    raw_ttft_ms: float
    raw_decode_ms: float
    notes: tuple[str, ...]


def predict_latency(
    state: TargetState, features: RequestFeatures, correction: Correction
) -> LatencyPrediction:
    """Predict time to first token and to the whole answer of one request on one target."""
    tier = state.target.tier
    notes: list[str] = []
    prefill, decode = state.prefill_tokens_per_s, state.decode_tokens_per_s
    if prefill is None or decode is None:
        notes.append("speed assumed: this target has no profile yet")
    else:
        notes.append(f"speed from {state.speed_source}: {prefill:.0f} / {decode:.1f} tokens/s")
    prefill = prefill or ASSUMED_PREFILL_TOKENS_PER_S[tier]
    decode = decode or ASSUMED_DECODE_TOKENS_PER_S[tier]

    decode_ms = features.output_tokens / decode * 1000
    service_ms = features.prompt_tokens / prefill * 1000 + decode_ms
    # Requests ahead of this one leave at the rate of `parallel` per service time.
    ahead = max(0, state.running + state.queued + 1 - state.parallel)
    wait_ms = ahead / state.parallel * service_ms
    ttft_ms = state.round_trip_ms + state.ready_in_ms + wait_ms + features.prompt_tokens / prefill * 1000
    if tier == "cloud":
        ttft_ms += ASSUMED_CLOUD_TTFT_MS
    if wait_ms:
        notes.append(f"{ahead} ahead: about {wait_ms:.0f} ms of waiting")
    if state.ready_in_ms:
        notes.append(f"the model must be loaded first: about {state.ready_in_ms:.0f} ms")
    if correction.samples:
        notes.append(
            f"corrected by {correction.samples} answers: "
            f"TTFT ×{correction.ttft:.2f}, decode ×{correction.decode:.2f}"
        )
    corrected_ttft = ttft_ms * correction.ttft
    p50 = corrected_ttft + decode_ms * correction.decode
    return LatencyPrediction(
        ttft_ms=corrected_ttft,
        p50_ms=p50,
        p95_ms=p50 * math.exp(_Z95 * correction.sigma),
        raw_ttft_ms=ttft_ms,
        raw_decode_ms=decode_ms,
        notes=tuple(notes),
    )
