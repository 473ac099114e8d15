"""Embedding and reranking requests: one at a time, a bounded number waiting, and 429 for the rest."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from mecroute.errors import OverloadedError
from mecroute_server.slot import Lease

_T = TypeVar("_T")
#: Weight of the newest request in the running mean of their duration.
_NEWEST = 0.2


class EmbeddingQueue:
    """Runs embedding requests off the event loop, in one thread: an engine embeds one batch after another.

    Args:
        max_queue: requests that may wait, >= 0.
    """

    def __init__(self, max_queue: int) -> None:
        self._max_queue = max_queue
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="mecroute-embed")
        self._admitted = 0
        self._mean_s = 0.0

    async def embed(
        self, lease: Lease, texts: Sequence[str | Sequence[int]]
    ) -> tuple[list[list[float]], int]:
        """Embed texts, or token ids of texts; takes the lease over, and gives it back when that is done.

        Returns:
            float32 values [len(texts), dim], and the number of prompt tokens.

        Raises: as `relevance`.
        """
        engine = lease.engine
        return await self._answer(lease, lambda: engine.embed(texts))

    async def relevance(self, lease: Lease, query: str, documents: Sequence[str]) -> tuple[list[float], int]:
        """Judge documents with whatever the model is; takes the lease over as `embed` does.

        Returns:
            For each document 0..1 from a reranker, else -1..1 (a cosine), and the number of tokens.

        Raises:
            OverloadedError: as many requests wait as may.
            MecrouteError: what the engine raises.
        """
        engine = lease.engine
        if engine.pooling == "rank":
            return await self._answer(lease, lambda: engine.relevance(query, documents))
        vectors, tokens = await self._answer(lease, lambda: engine.embed([query, *documents]))
        return cosines(vectors), tokens

    async def _answer(self, lease: Lease, work: Callable[[], _T]) -> _T:
        if self._admitted > self._max_queue:
            lease.release()
            raise OverloadedError(
                f"{self._admitted} embedding requests are waiting already",
                retry_after_s=max(0.1, self._mean_s * self._admitted),
                tier="mec",
            )
        loop = asyncio.get_running_loop()
        self._admitted += 1

        def ended() -> None:
            self._admitted -= 1
            lease.release()

        future = self._worker.submit(self._run, work)
        # Not tied to the waiting task: a caller that leaves takes its request out of the queue, but one that
        # has begun keeps the engine open until it ends.
        future.add_done_callback(lambda _: loop.call_soon_threadsafe(ended))
        return await asyncio.wrap_future(future)

    def _run(self, work: Callable[[], _T]) -> _T:
        started = time.perf_counter()
        result = work()
        took_s = time.perf_counter() - started
        self._mean_s = took_s if not self._mean_s else (1 - _NEWEST) * self._mean_s + _NEWEST * took_s
        return result

    async def close(self) -> None:
        """Drop what waits, and wait for what runs."""
        await asyncio.to_thread(self._worker.shutdown, cancel_futures=True)


def cosines(vectors: Sequence[Sequence[float]]) -> list[float]:
    """The cosine between the first of some vectors of length 1 and each of the others."""
    query, *others = vectors
    return [sum(a * b for a, b in zip(query, other, strict=True)) for other in others]
