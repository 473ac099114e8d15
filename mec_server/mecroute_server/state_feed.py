"""Long-poll on the node's state: an answer when something changed that a router would act on."""

from __future__ import annotations

import asyncio
import hashlib
import json
import math
import secrets
from collections.abc import Callable
from typing import Any

#: How often the state is looked at while somebody waits; what changes in between is told as one change.
TICK_S = 0.25
#: Callers that may wait at once; one more is answered at once.
MAX_WAITERS = 64
#: Longest that one may ask to wait, in seconds.
MAX_WAIT_S = 60.0


class StateFeed:
    """Lets callers wait for a change of the node's models. For one event loop.

    Nothing is looked at while nobody waits.

    Args:
        models: the state of every model, as `/admin/node` tells it.
        stopping: whether the node is about to stop; whoever waits is then answered.
    """

    def __init__(
        self,
        models: Callable[[], list[dict[str, Any]]],
        *,
        stopping: Callable[[], bool],
        tick_s: float = TICK_S,
        max_waiters: int = MAX_WAITERS,
    ) -> None:
        self._models = models
        self._stopping = stopping
        self._tick_s = tick_s
        self._max_waiters = max_waiters
        self._changed = asyncio.Event()
        self._waiters = 0
        self._ticker: asyncio.Task[None] | None = None
        # The same state after a restart is another one: what a client knew of the old process is void.
        self._epoch = secrets.token_hex(4)

    @property
    def waiters(self) -> int:
        """Callers that wait now."""
        return self._waiters

    def tag(self) -> str:
        """The entity tag of the state as it is now; equal tags mean nothing changed materially."""
        told = json.dumps([material(model) for model in self._models()], sort_keys=True)
        digest = hashlib.sha256(f"{self._stopping()} {told}".encode()).hexdigest()[:16]
        return f'"{self._epoch}-{digest}"'

    async def wait(self, known: str | None, wait_s: float) -> str:
        """Wait until the state is another than the known one.

        Args:
            known: the tag that the caller knows; None does not wait.
            wait_s: longest to wait, in seconds.

        Returns:
            The tag of the state now; it equals `known` when the time is over, or when too many wait already.
        """
        tag = self.tag()
        if known != tag or wait_s <= 0 or self._waiters >= self._max_waiters or self._stopping():
            return tag
        self._waiters += 1
        try:
            async with asyncio.timeout(wait_s):
                while (tag := self.tag()) == known and not self._stopping():
                    if self._ticker is None or self._ticker.done():
                        self._ticker = asyncio.create_task(self._watch(tag))
                    await self._changed.wait()
        except TimeoutError:
            return tag
        finally:
            self._waiters -= 1
        return tag

    async def _watch(self, tag: str) -> None:
        """One look per tick for everybody who waits; ends with the last of them, or with a change."""
        while self._waiters:
            await asyncio.sleep(self._tick_s)
            if self.tag() != tag or self._stopping():
                changed, self._changed = self._changed, asyncio.Event()
                changed.set()
                return


def material(model: dict[str, Any]) -> list[Any]:
    """What of a model's state a router acts on, in steps coarse enough not to change with every token."""
    return [
        *(model[name] for name in ("ref", "state", "digest", "context_length", "parallel")),
        _load_level(model["running"] + model["queued"], model["parallel"] or 1),
        _octave(model["prefill_tokens_per_s"]),
        _octave(model["decode_tokens_per_s"]),
    ]


def _load_level(requests: int, parallel: int) -> int:
    """0 idle, 1 up to half full, 2 not yet full, 3 full; then one more with each doubling."""
    if requests == 0:
        return 0
    share = requests / parallel
    if share < 1:
        return 1 if share <= 0.5 else 2
    return 3 + int(math.log2(share))


def _octave(value: float | None) -> int | None:
    return None if not value else round(math.log2(value))
