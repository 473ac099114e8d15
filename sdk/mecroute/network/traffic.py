"""Reads from the answers that come anyway what they tell of the network and of the nodes."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from mecroute.network.health import CloudHealth
from mecroute.network.links import Links
from mecroute.nodes.load_header import LOAD_HEADER, ModelLoad

if TYPE_CHECKING:
    from mecroute.nodes.watch import NodeWatch
    from mecroute.target import Target

#: W3C Server-Timing, as our servers send it; OpenAI's own header, which says the same.
_SERVER_TIMING = re.compile(r"(?:^|,)\s*total\s*;\s*dur=([0-9]{1,9}(?:\.[0-9]{1,6})?)")
_OPENAI_TIMING = "openai-processing-ms"


class Traffic:
    """Hears of every exchange with a remote and passes on what it tells. For one event loop.

    Args:
        links: where round trips, losses and rates are kept.
        health: where it is kept whether clouds take requests.
        watch_of: the watch of a MEC node by name; None where it is not watched.
    """

    def __init__(
        self, links: Links, health: CloudHealth, watch_of: Callable[[str], NodeWatch | None]
    ) -> None:
        self._links = links
        self._health = health
        self._watch_of = watch_of

    def answered(
        self,
        target: Target,
        status: int,
        headers: Mapping[str, str],
        waited_ms: float,
        sent_bytes: int,
    ) -> None:
        """The headers of an answer came.

        Args:
            headers: with lower-case names, or a mapping that does not tell cases apart.
            waited_ms: from the request's first byte to the headers.
            sent_bytes: of the request's body.
        """
        remote = target.node or ""
        self._links.heard(remote, network_ms(headers, waited_ms), sent_bytes=sent_bytes)
        if target.tier == "cloud":
            self._health.answered(remote, status, headers)
        elif (watch := self._watch_of(remote)) is not None:
            watch.heard(target.model, ModelLoad.parse(headers.get(LOAD_HEADER)))

    def received(self, target: Target, size_bytes: int, took_s: float) -> None:
        """A whole body came in."""
        self._links.received(target.node or "", size_bytes, took_s)
        self._changed(target)

    def streamed(self, target: Target) -> None:
        """A stream ended: the load that its headers told counted it among what runs."""
        watch = self._watch_of(target.node or "") if target.tier == "mec" else None
        if watch is not None:
            watch.left(target.model)

    def lost(self, target: Target) -> None:
        """No connection, or one that broke."""
        self._links.lost(target.node or "")
        self._changed(target)

    def _changed(self, target: Target) -> None:
        watch = self._watch_of(target.node or "") if target.tier == "mec" else None
        if watch is not None:
            watch.changes += 1


def network_ms(headers: Mapping[str, str], waited_ms: float) -> float | None:
    """A wait less what the server says it took of it; None where it says nothing."""
    timing = _SERVER_TIMING.search(headers.get("server-timing", "")[:1024])
    told = timing[1] if timing else headers.get(_OPENAI_TIMING, "")
    if not re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,6})?", told):
        return None
    left = waited_ms - float(told)
    return left if left >= 0 else None
