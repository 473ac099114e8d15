"""Predicted latency: network + loading + waiting + prefill + decode, corrected by what was observed.

The whole is a distribution: the median is the sum of the parts' medians, and the 95th percentile adds
their spreads (and that of the answer's length) as independent deviations, scaled by a factor per target
that makes it hold (`predict.residuals`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

from mecroute.decision import LatencyParts
from mecroute.network.links import BURST_BYTES
from mecroute.predict.residuals import Correction
from mecroute.predict.transfer import (
    NOTHING_SENT,
    Transfer,
    download_ms,
    spread_ms,
    upload_ms,
)
from mecroute.target import TargetState
from mecroute_registry.facts import Tier

#: Assumed speeds where nothing was measured; stated in the candidate's notes.
ASSUMED_PREFILL_TOKENS_PER_S: dict[Tier, float] = {"device": 200.0, "mec": 800.0, "cloud": 4000.0}
ASSUMED_DECODE_TOKENS_PER_S: dict[Tier, float] = {"device": 20.0, "mec": 40.0, "cloud": 60.0}
ASSUMED_CLOUD_TTFT_MS = 500.0
#: How much slower each request in a batch decodes for every other one in it. llama-batched-bench on 2 CPU
#: cores (SmolLM2-135M) gave 134 / 195 / 221 tokens/s in all for 1 / 4 / 16 sequences, which is 1 + 0.58·(n-1)
#: at both points. A cloud's batches are none of its callers' business.
BATCH_SLOWDOWN: dict[Tier, float] = {"device": 0.58, "mec": 0.58, "cloud": 0.0}
#: Beyond these a reported number is no measurement.
_LEAST_TOKENS_PER_S = 1e-3
_ABSURD_TOKENS_PER_S = 1e9
_ABSURD_MS = 86_400_000.0
_ABSURD_COUNT = 1_000_000


class Workload(NamedTuple):
    """What one request asks of a target.

    Args:
        output_tokens: predicted tokens to write.
        max_output_tokens: the caller's limit; infinite without one.
        transfer: what it sends over the network, and takes from it.
    """

    prompt_tokens: int
    output_tokens: int
    max_output_tokens: float = math.inf
    transfer: Transfer = NOTHING_SENT


@dataclass(frozen=True, slots=True)
class LatencyPrediction:
    """Predicted times in ms.

    Args:
        parts: of the median, corrected; they sum to `p50_ms`.
        output_tokens: predicted tokens to write, as this target is used to.
        claimed_ttft_ms, claimed_wait_ms: what the target's profile and reported load mean by themselves,
            before any correction.
    """

    ttft_ms: float
    ttft_p95_ms: float
    p50_ms: float
    p95_ms: float
    parts: LatencyParts
    output_tokens: float
    claimed_ttft_ms: float
    claimed_wait_ms: float


def predict_latency(
    state: TargetState,
    work: Workload,
    correction: Correction,
    *,
    cached_tokens: int = 0,
    in_flight: int = 0,
) -> LatencyPrediction:
    """Predict time to first token and to the whole answer of one request on one target.

    Numbers that cannot be (NaN, negative, absurdly large) count as unknown. Arguments: as `latency_parts`.
    """
    network, load, wait, prefill, ttft, decode, claimed_wait = latency_parts(
        state, work, correction, cached_tokens, in_flight
    )
    factor = correction.ttft
    p50 = ttft + decode
    # What was observed holds the way's own variation, as it was then; it is never less than that of now.
    ttft_p95 = ttft + max(ttft * math.expm1(correction.ttft_spread), spread_ms(state))
    tokens = min(work.output_tokens * correction.length, work.max_output_tokens)
    # The caller's limit bounds how much longer an answer can become.
    longer = correction.length_spread
    if tokens > 0:
        longer = min(longer, math.log(max(1.0, work.max_output_tokens / tokens)))
    decode_p95 = decode * math.exp(math.hypot(correction.decode_spread, longer))
    spread = math.log1p(math.hypot(ttft_p95 - ttft, decode_p95 - decode) / p50) if p50 > 0 else 0.0
    return LatencyPrediction(
        ttft_ms=ttft,
        ttft_p95_ms=ttft_p95,
        p50_ms=p50,
        p95_ms=p50 * math.exp(spread * correction.calibration),
        parts=LatencyParts(network * factor, load * factor, wait * factor, prefill * factor, decode),
        output_tokens=tokens,
        claimed_ttft_ms=network + load + claimed_wait + prefill,
        claimed_wait_ms=claimed_wait,
    )


def latency_parts(
    state: TargetState, work: Workload, correction: Correction, cached_tokens: int, in_flight: int
) -> tuple[float, float, float, float, float, float, float]:
    """The parts of the median, in ms: all that a ranking needs.

    Args:
        cached_tokens: prompt tokens that the target holds already and does not compute again.
        in_flight: requests of this client that are under way there; a report may not count them yet.

    Returns:
        network, loading, waiting, prefill (all four before correction), time to first token and decoding
        (corrected), and the waiting that the reported load means by itself.
    """
    prompt_tokens, output_tokens, most_tokens, transfer = work
    tier = state.target.tier
    speed = state.prefill_tokens_per_s
    if speed is None or not _LEAST_TOKENS_PER_S <= speed < _ABSURD_TOKENS_PER_S:
        speed = ASSUMED_PREFILL_TOKENS_PER_S[tier]
    prefill = (prompt_tokens - cached_tokens) * 1000 / speed
    network, load = state.round_trip_ms, state.ready_in_ms
    if not 0 <= network < _ABSURD_MS:
        network = 0.0
    if transfer.upload_bytes > BURST_BYTES:
        network += upload_ms(state, transfer)
    if not 0 <= load < _ABSURD_MS:
        load = 0.0
    speed = state.decode_tokens_per_s
    if speed is None or not _LEAST_TOKENS_PER_S <= speed < _ABSURD_TOKENS_PER_S:
        speed = ASSUMED_DECODE_TOKENS_PER_S[tier]
    tokens = output_tokens * correction.length
    if tokens > most_tokens:
        tokens = most_tokens
    decode = tokens * 1000 / speed * correction.decode
    wait = claimed_wait = 0.0
    if tier == "cloud":  # takes what it is sent; how busy it is shows in the corrections
        network += ASSUMED_CLOUD_TTFT_MS
    else:
        busy = state.running + state.queued
        if not 0 <= busy < _ABSURD_COUNT:
            busy = 0
        if in_flight > busy:
            busy = in_flight
        if busy:
            slots = state.parallel
            if not 1 <= slots < _ABSURD_COUNT:
                slots = 1
            slowdown = 0.0 if state.speed_is_shared else BATCH_SLOWDOWN[tier]
            if busy >= slots:
                # Requests ahead of this one leave at the rate of `slots` per service time of a full batch.
                service = prefill + decode * (1 + slowdown * (slots - 1))
                wait = claimed_wait = (busy + 1 - slots) / slots * service
                busy = slots - 1
            decode *= 1 + slowdown * busy
    if transfer.answer_bytes > BURST_BYTES or transfer.event_bytes:
        decode += download_ms(state, transfer, tokens, decode)
    if correction.wait_ms is not None:
        wait = correction.wait_ms
    ttft = (network + load + wait + prefill) * correction.ttft
    return network, load, wait, prefill, ttft, decode, claimed_wait


def latency_notes(
    state: TargetState, prediction: LatencyPrediction, correction: Correction, cached_tokens: int
) -> list[str]:
    """Where the numbers come from, and what had to be assumed."""
    tier = state.target.tier
    prefill, decode = state.prefill_tokens_per_s, state.decode_tokens_per_s
    notes = []
    if prefill is None or decode is None:
        notes.append(
            "speed assumed: this target has no profile yet; reckoned with "
            f"{prefill or ASSUMED_PREFILL_TOKENS_PER_S[tier]:.0f} / "
            f"{decode or ASSUMED_DECODE_TOKENS_PER_S[tier]:.1f} tokens/s"
        )
    elif not all(_LEAST_TOKENS_PER_S <= speed < _ABSURD_TOKENS_PER_S for speed in (prefill, decode)):
        notes.append(f"speed assumed: what is reported ({prefill} / {decode} tokens/s) cannot be")
    else:
        notes.append(f"speed from {state.speed_source}: {prefill:.0f} / {decode:.1f} tokens/s")
    if not 0 <= state.round_trip_ms < _ABSURD_MS:
        notes.append(f"the round trip ({state.round_trip_ms} ms) cannot be, and is left out")
    if not 0 <= state.running + state.queued < _ABSURD_COUNT:
        notes.append("the load it reports cannot be, and is left out")
    if cached_tokens:
        notes.append(f"holds about {cached_tokens} tokens of the prompt already")
    if prediction.parts.queue_ms:
        busy = state.running + state.queued
        notes.append(
            f"{busy} requests there, {state.parallel} at once: about "
            f"{prediction.parts.queue_ms:.0f} ms of waiting"
        )
    if prediction.parts.load_ms:
        notes.append(f"the model must be loaded first: about {prediction.parts.load_ms:.0f} ms")
    if correction.samples:
        notes.append(
            f"corrected by {correction.samples} answers: TTFT ×{correction.ttft:.2f}, "
            f"decode ×{correction.decode:.2f}, length ×{correction.length:.2f}"
        )
    if correction.wait_ms is not None:
        notes.append(
            f"its reported load is not believed (TTFT was ×{correction.disagreement:.1f} of what it means); "
            f"reckoned with the {correction.wait_ms:.0f} ms that requests waited of late"
        )
    return notes
