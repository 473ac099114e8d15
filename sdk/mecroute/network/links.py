"""What is known of the way to each remote, learned from the traffic itself."""

from __future__ import annotations

import math
import statistics
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, field

#: Weights of RFC 6298 (TCP's own estimator): round trip 1/8, deviation 1/4.
_RTT_ALPHA = 1 / 8
_JITTER_BETA = 1 / 4
_LOSS_ALPHA = 0.1
#: TCP's first window: ten segments of 1,460 bytes (RFC 6928), which arrive within the round trip.
BURST_BYTES = 14_600
#: A body smaller than this arrives in one burst and tells nothing of the rate.
MIN_BODY_BYTES = 64 * 1024
#: The application, not the network, often limits a transfer, so the best of the last few counts
#: (as in BBR: Cardwell et al. 2016, "BBR: Congestion-Based Congestion Control").
_RATES_KEPT = 10
#: What was not heard of for so long says nothing of the network as it is now.
_FRESH_S = 60.0
_MAX_REMOTES = 1024
#: No upload is told to have taken less beyond its round trip.
_LEAST_MS = 0.5
_MAX_RTT_MS = 60_000.0


@dataclass(frozen=True, slots=True)
class LinkState:
    """One way, or all of them together; None where nothing was measured.

    Args:
        rtt_ms: smoothed round trip.
        jitter_ms: smoothed mean deviation of the round trip.
        loss: 0..1, share of recent exchanges that were lost on the way.
        bandwidth_bytes_per_s: best rate at which a body recently came in.
        upload_bytes_per_s: median rate at which bodies recently went out.
    """

    rtt_ms: float | None = None
    jitter_ms: float | None = None
    loss: float = 0.0
    bandwidth_bytes_per_s: float | None = None
    upload_bytes_per_s: float | None = None


@dataclass(slots=True)
class _Link:
    rtt_ms: float | None = None
    jitter_ms: float = 0.0
    loss: float = 0.0
    rates: deque[float] = field(default_factory=lambda: deque(maxlen=_RATES_KEPT))
    sent_rates: deque[float] = field(default_factory=lambda: deque(maxlen=_RATES_KEPT))
    heard_at: float = 0.0


class Links:
    """Estimates of every remote's link. For one event loop.

    Args:
        clock: monotonic seconds.
    """

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._links: OrderedDict[str, _Link] = OrderedDict()

    def heard(self, remote: str, rtt_ms: float | None = None, *, sent_bytes: int = 0) -> None:
        """An exchange reached the remote and came back.

        Args:
            sent_bytes: of the request's body. One beyond TCP's first window takes more than a round trip: how
                much more tells the rate at which it went out, and nothing is learned of the round trip.
            rtt_ms: its round trip without the remote's own work; None where that cannot be told. Values
                that no network has (negative, NaN, over a minute) are left out.
        """
        link = self._link(remote)
        link.loss += _LOSS_ALPHA * (0.0 - link.loss)
        if rtt_ms is None or not 0 <= rtt_ms <= _MAX_RTT_MS:
            return
        if sent_bytes > BURST_BYTES:
            if sent_bytes >= MIN_BODY_BYTES:
                beyond_ms = rtt_ms - (link.rtt_ms or 0.0)
                # Less than the round trip varies by cannot be told from nothing.
                beyond_ms = max(beyond_ms, link.jitter_ms, _LEAST_MS)
                link.sent_rates.append((sent_bytes - BURST_BYTES) / beyond_ms * 1000)
            return
        if link.rtt_ms is None:
            link.rtt_ms, link.jitter_ms = rtt_ms, rtt_ms / 2
            return
        link.jitter_ms += _JITTER_BETA * (abs(rtt_ms - link.rtt_ms) - link.jitter_ms)
        link.rtt_ms += _RTT_ALPHA * (rtt_ms - link.rtt_ms)

    def lost(self, remote: str) -> None:
        """An exchange was lost: no connection, or one that broke."""
        link = self._link(remote)
        link.loss += _LOSS_ALPHA * (1.0 - link.loss)

    def received(self, remote: str, size_bytes: int, took_s: float) -> None:
        """A body came in as fast as it could (not a stream, whose pace is the model's)."""
        if size_bytes < MIN_BODY_BYTES or not (math.isfinite(took_s) and took_s > 0):
            return
        self._link(remote).rates.append(size_bytes / took_s)

    def of(self, remote: str) -> LinkState:
        """What is known of one remote."""
        link = self._links.get(remote)
        return LinkState() if link is None else _state(link)

    def overall(self) -> LinkState:
        """The network as a whole: over the remotes heard of in the last minute, the median round trip and
        jitter, the mean loss and the best rates."""
        now = self._clock()
        recent = [_state(link) for link in self._links.values() if 0 <= now - link.heard_at <= _FRESH_S]
        if not recent:
            return LinkState()
        trips = [s.rtt_ms for s in recent if s.rtt_ms is not None]
        jitters = [s.jitter_ms for s in recent if s.jitter_ms is not None]
        rates = [s.bandwidth_bytes_per_s for s in recent if s.bandwidth_bytes_per_s is not None]
        sent = [s.upload_bytes_per_s for s in recent if s.upload_bytes_per_s is not None]
        return LinkState(
            rtt_ms=statistics.median(trips) if trips else None,
            jitter_ms=statistics.median(jitters) if jitters else None,
            loss=statistics.fmean(s.loss for s in recent),
            bandwidth_bytes_per_s=max(rates, default=None),
            upload_bytes_per_s=max(sent, default=None),
        )

    def _link(self, remote: str) -> _Link:
        link = self._links.get(remote)
        if link is None:
            link = self._links[remote] = _Link()
            while len(self._links) > _MAX_REMOTES:
                self._links.popitem(last=False)
        self._links.move_to_end(remote)
        link.heard_at = self._clock()
        return link


def _state(link: _Link) -> LinkState:
    return LinkState(
        rtt_ms=link.rtt_ms,
        jitter_ms=link.jitter_ms if link.rtt_ms is not None else None,
        loss=link.loss,
        bandwidth_bytes_per_s=max(link.rates, default=None),
        upload_bytes_per_s=statistics.median(link.sent_rates) if link.sent_rates else None,
    )
