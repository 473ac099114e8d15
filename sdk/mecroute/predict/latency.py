"""Predicted latency: network + loading + waiting + prefill + decode, corrected by what was observed.

What a request does by itself up to its first token (network and prefill) is corrected by a factor on its
prefill and by a time that it takes in any case. The waiting is that of what stands before it, which is
predicted like it. The whole is a distribution: the median is the sum of the parts' medians, and the 95th
percentile adds their spreads (and that of the answer's length) as independent deviations, scaled by a factor
per target that makes it hold (`predict.residuals`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

from mecroute.decision import LatencyParts
from mecroute.network.links import BURST_BYTES
from mecroute.predict.line import Line, Pace, Place
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
#: How much slower each request in a batch decodes for every other one in it, where that was not measured.
#: llama-batched-bench on 2 CPU cores (SmolLM2-135M) gave 134 / 195 / 221 tokens/s in all for 1 / 4 / 16
#: sequences, which is 1 + 0.58·(n-1) at both points. A cloud's batches are none of its callers' business.
BATCH_SLOWDOWN: dict[Tier, float] = {"device": 0.58, "mec": 0.58, "cloud": 0.0}
#: Beyond these a reported number is no measurement.
_LEAST_TOKENS_PER_S = 1e-3
_ABSURD_TOKENS_PER_S = 1e9
_ABSURD_MS = 86_400_000.0
_ABSURD_COUNT = 1_000_000
#: However much less than claimed the first token is learned to take, so much of the claim is left.
_LEAST_SHARE = 0.1


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


class Ahead(NamedTuple):
    """What stands before a request at a target.

    Args:
        in_flight: requests of this client that are under way there; a report may not count them yet.
        output_tokens: that the answer of one of them is expected to have.
        now_s: monotonic seconds, by which the age of what the target told is reckoned.
        line: how they get on, in milliseconds of the same clock; None where nothing is known of that.
    """

    in_flight: int = 0
    output_tokens: float = 0.0
    now_s: float = 0.0
    line: Line | None = None


NOTHING_AHEAD = Ahead()


@dataclass(frozen=True, slots=True)
class LatencyPrediction:
    """Predicted times in ms.

    Args:
        parts: of the median, corrected; they sum to `p50_ms`.
        output_tokens: predicted tokens to write, as this target is used to.
        claimed_ttft_ms, claimed_wait_ms: what the target's profile and its known load mean by themselves.
        crowd: 0..3, how many others are expected beside it (see `Candidate`).
        pace: how fast it computes; None for a cloud.
    """

    ttft_ms: float
    ttft_p95_ms: float
    p50_ms: float
    p95_ms: float
    parts: LatencyParts
    output_tokens: float
    claimed_ttft_ms: float
    claimed_wait_ms: float
    crowd: int
    pace: Pace | None


def predict_latency(
    state: TargetState,
    work: Workload,
    correction: Correction,
    *,
    cached_tokens: int = 0,
    ahead: Ahead = NOTHING_AHEAD,
) -> LatencyPrediction:
    """Predict time to first token and to the whole answer of one request on one target.

    Numbers that cannot be (NaN, negative, absurdly large) count as unknown. Arguments: as `latency_parts`.
    """
    claimed, load, wait, own, decode, claimed_wait, crowd = latency_parts(
        state, work, correction, cached_tokens, ahead
    )
    network = min(own, network_ms(state, work.transfer))
    ttft = load + wait + own
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
        parts=LatencyParts(network, load, wait, own - network, decode),
        output_tokens=tokens,
        claimed_ttft_ms=claimed + load + claimed_wait,
        claimed_wait_ms=claimed_wait,
        crowd=crowd,
        pace=pace_of(state),
    )


def latency_parts(
    state: TargetState, work: Workload, correction: Correction, cached_tokens: int, ahead: Ahead
) -> tuple[float, float, float, float, float, float, int]:
    """The parts of the median, in ms: all that a ranking needs.

    Args:
        cached_tokens: prompt tokens that the target holds already and does not compute again.
        ahead: what stands before it.

    Returns:
        network and prefill as claimed; then loading, waiting, network and prefill as corrected, and decoding:
        the median is their sum; the waiting that the known load means by itself; and the crowd.
    """
    prompt_tokens, output_tokens, most_tokens, transfer = work
    tier = state.target.tier
    speed = state.prefill_tokens_per_s
    if speed is None or not _LEAST_TOKENS_PER_S <= speed < _ABSURD_TOKENS_PER_S:
        speed = ASSUMED_PREFILL_TOKENS_PER_S[tier]
    prefill = (prompt_tokens - cached_tokens) * 1000 / speed
    load = state.ready_in_ms
    if not 0 <= load < _ABSURD_MS:
        load = 0.0
    network = network_ms(state, transfer)
    claimed = network + prefill
    own = network + correction.ttft_base_ms + prefill * correction.ttft
    if own < claimed * _LEAST_SHARE:
        own = claimed * _LEAST_SHARE
    prefill_speed, speed = speed, state.decode_tokens_per_s
    if speed is None or not _LEAST_TOKENS_PER_S <= speed < _ABSURD_TOKENS_PER_S:
        speed = ASSUMED_DECODE_TOKENS_PER_S[tier]
    tokens = output_tokens * correction.length
    if tokens > most_tokens:
        tokens = most_tokens
    token = 1000 / speed
    crowd, wait, writing = 0, 0.0, tokens * token
    if tier != "cloud":  # takes what it is sent; how busy it is shows in the corrections
        busy = told = state.running + state.queued
        if not 0 <= busy < _ABSURD_COUNT:
            busy = told = 0
        if ahead.in_flight > busy:
            busy = ahead.in_flight
        if busy:
            slots = state.parallel
            if not 1 <= slots < _ABSURD_COUNT:
                slots = 1
            slowdown = state.decode_slowdown
            if slowdown is None or not 0 <= slowdown <= 1:
                slowdown = BATCH_SLOWDOWN[tier]
            crowd = 3 if busy >= slots else 2 if busy * 2 >= slots else 1
            line, prompt = ahead.line, own - network if own > network else 0.0
            if not (prompt < _ABSURD_MS and tokens < _ABSURD_COUNT):
                line = None
            if line is None or told > ahead.in_flight:
                # Of others no more is known than what the target tells. Prompts are computed one after the
                # other.
                if 0 < state.prefill_left_tokens < _ABSURD_COUNT:
                    wait = state.prefill_left_tokens * 1000 / prefill_speed * correction.ttft
                    wait = max(0.0, wait - (ahead.now_s - state.told_at_s) * 1000)
                if busy >= slots:
                    # Slots are freed at the rate at which a full batch writes the answers ahead of this one.
                    # Where nobody told of their prompts, they are as long as this one's.
                    ahead_tokens = ahead.output_tokens if ahead.in_flight else tokens
                    full = token * (1 + slowdown * (slots - 1))
                    wait += (busy + 1 - slots) / slots * (ahead_tokens * full + (0.0 if wait else own))
                writing *= 1 + slowdown * min(busy, slots - 1)
            if line is not None:
                # Of those that this client has there it knows more. They hold part of what the target told,
                # or it of them: whichever is more.
                pace = Pace(slots, token, slowdown, prefill_speed)
                first, end = line.foresee(ahead.now_s * 1000, Place(prompt, tokens - 1), pace)
                wait, writing = max(wait, first - prompt), max(writing, end - first)
    claimed_wait = wait
    wait *= correction.waiting
    if correction.wait_ms is not None:
        wait = correction.wait_ms
    decode = writing * correction.decode[crowd]
    if transfer.answer_bytes > BURST_BYTES or transfer.event_bytes:
        decode += download_ms(state, transfer, tokens, decode)
    return claimed, load, wait, own, decode, claimed_wait, crowd


def pace_of(state: TargetState) -> Pace | None:
    """How fast a target computes several requests, as far as known or assumed; None for a cloud."""
    tier = state.target.tier
    if tier == "cloud":
        return None
    prefill, decode = state.prefill_tokens_per_s, state.decode_tokens_per_s
    if prefill is None or not _LEAST_TOKENS_PER_S <= prefill < _ABSURD_TOKENS_PER_S:
        prefill = ASSUMED_PREFILL_TOKENS_PER_S[tier]
    if decode is None or not _LEAST_TOKENS_PER_S <= decode < _ABSURD_TOKENS_PER_S:
        decode = ASSUMED_DECODE_TOKENS_PER_S[tier]
    slots, slowdown = state.parallel, state.decode_slowdown
    if not 1 <= slots < _ABSURD_COUNT:
        slots = 1
    if slowdown is None or not 0 <= slowdown <= 1:
        slowdown = BATCH_SLOWDOWN[tier]
    return Pace(slots, 1000 / decode, slowdown, prefill)


def network_ms(state: TargetState, transfer: Transfer) -> float:
    """The way there and back, with what is sent, and what a cloud takes to begin."""
    network = state.round_trip_ms
    if not 0 <= network < _ABSURD_MS:
        network = 0.0
    if transfer.upload_bytes > BURST_BYTES:
        network += upload_ms(state, transfer)
    return network + ASSUMED_CLOUD_TTFT_MS if state.target.tier == "cloud" else network


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
            f"corrected by {correction.samples} answers: prefill ×{correction.ttft:.2f} "
            f"{correction.ttft_base_ms:+.0f} ms, "
            f"waiting ×{correction.waiting:.2f}, decode ×{correction.decode[prediction.crowd]:.2f}, "
            f"length ×{correction.length:.2f}"
        )
    if correction.wait_ms is not None:
        notes.append(
            f"its reported load is not believed (TTFT was ×{correction.disagreement:.1f} of what it means); "
            f"reckoned with the {correction.wait_ms:.0f} ms that requests waited of late"
        )
    return notes
