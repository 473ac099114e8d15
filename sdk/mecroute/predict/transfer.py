"""What the way to a target takes: the round trip, sending the request, taking the answer; and how it varies.

A body that fits the first window of TCP is part of the round trip; what is longer takes its bytes over the
rate at which bodies went that way before. The rate is the target's own, else that of the
network as a whole (a device's own access to it is mostly what limits), else assumed.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

from mecroute.context import NetworkState, RequestFeatures
from mecroute.network.links import BURST_BYTES
from mecroute.request import Request

if TYPE_CHECKING:
    from mecroute.target import TargetState

#: Where nothing was measured: 10 Mbit/s up and 40 down, of a middling mobile network; stated in the notes.
ASSUMED_UPLOAD_BYTES_PER_S = 1.25e6
ASSUMED_DOWNLOAD_BYTES_PER_S = 5e6
#: Rates beyond these are no measurement.
_LEAST_RATE, _MOST_RATE = 1.0, 1e12
#: An answer's frame and its text, and a token of a stream with the event around it (measured at our server).
_ANSWER_BYTES, _BYTES_PER_TOKEN, _EVENT_BYTES = 600, 5, 230
#: A vector of 768 numbers as JSON.
_VECTOR_BYTES = 8_000
#: 95th percentile of a normal or Laplace deviation, over its mean deviation (2.06 and 2.3).
_P95_OVER_MEAN = 2.1
#: What a lost packet costs at least before it is sent again (RFC 6298, first timeout).
_RETRANSMISSION_MS = 1000.0
_MOST_RETRANSMISSIONS = 5.0


class Transfer(NamedTuple):
    """What a request sends over the network and takes from it.

    Args:
        upload_bytes: of the request.
        answer_bytes: of a whole answer; 0 for a stream, whose events come one by one.
        event_bytes: of each token's event in a stream; 0 for a whole answer.
        upload_bytes_per_s, download_bytes_per_s: of the network as a whole; None where nothing was measured.
    """

    upload_bytes: int = 0
    answer_bytes: int = 0
    event_bytes: int = 0
    upload_bytes_per_s: float | None = None
    download_bytes_per_s: float | None = None


NOTHING_SENT = Transfer()


def transfer_of(
    request: Request, features: RequestFeatures, upload_bytes: int, network: NetworkState
) -> Transfer:
    """What one request sends and takes, about."""
    answer = event = 0
    if request.task == "embed":
        given = request.body["input"]
        answer = _VECTOR_BYTES * (1 if isinstance(given, str) else len(given))
    elif request.stream:
        event = _EVENT_BYTES
    else:
        answer = _ANSWER_BYTES + _BYTES_PER_TOKEN * features.output_tokens
    return Transfer(upload_bytes, answer, event, network.upload_bytes_per_s, network.bandwidth_bytes_per_s)


def upload_ms(state: TargetState, transfer: Transfer) -> float:
    """What sending a request takes beyond the round trip; nothing within this machine."""
    beyond = transfer.upload_bytes - BURST_BYTES
    if beyond <= 0 or not state.reached_over_network:
        return 0.0
    rate = _usable(state.upload_bytes_per_s) or _usable(transfer.upload_bytes_per_s)
    return beyond / (rate or ASSUMED_UPLOAD_BYTES_PER_S) * 1000


def download_ms(state: TargetState, transfer: Transfer, tokens: float, decode_ms: float) -> float:
    """What taking the answer adds to the time in which it is written.

    Args:
        tokens: of the answer.
        decode_ms: in which they are written; the events of a stream come down meanwhile.
    """
    if not state.reached_over_network:
        return 0.0
    rate = (
        _usable(state.download_bytes_per_s)
        or _usable(transfer.download_bytes_per_s)
        or ASSUMED_DOWNLOAD_BYTES_PER_S
    )
    if transfer.event_bytes:
        return max(0.0, transfer.event_bytes * tokens / rate * 1000 - decode_ms)
    return max(0, transfer.answer_bytes - BURST_BYTES) / rate * 1000


def spread_ms(state: TargetState) -> float:
    """How much longer the way takes at the 95th percentile than at the median, by jitter and by loss.

    Of exchanges lost with the probability p, one in twenty takes more than ln 0.05 / ln p attempts.
    """
    jitter, loss = state.jitter_ms, state.loss
    found = jitter * _P95_OVER_MEAN if 0 < jitter < math.inf else 0.0
    if 0.05 < loss < 1:
        again = min(_MOST_RETRANSMISSIONS, math.log(0.05) / math.log(loss) - 1)
        found = math.hypot(found, again * _RETRANSMISSION_MS)
    return found


def transfer_notes(state: TargetState, transfer: Transfer) -> list[str]:
    """What was reckoned with, where it says anything."""
    notes = []
    if sending := upload_ms(state, transfer):
        rate = _usable(state.upload_bytes_per_s)
        source = "measured there"
        if rate is None:
            rate, source = _usable(transfer.upload_bytes_per_s), "measured elsewhere"
        if rate is None:
            rate, source = ASSUMED_UPLOAD_BYTES_PER_S, "assumed: nothing was measured yet"
        notes.append(
            f"{transfer.upload_bytes / 1e6:.2f} MB to send at {rate / 1e6:.2f} MB/s ({source}): "
            f"about {sending:.0f} ms"
        )
    if (varies := spread_ms(state)) >= 1:
        notes.append(
            f"the way there varies by {varies:.0f} ms at p95 (jitter {state.jitter_ms:.0f} ms, "
            f"loss {state.loss:.0%})"
        )
    return notes


def _usable(rate: float | None) -> float | None:
    return rate if rate is not None and _LEAST_RATE <= rate <= _MOST_RATE else None
