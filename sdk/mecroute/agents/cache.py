"""The cache agent: remembered answers, and how hot each model is."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

from mecroute.caching.answers import Answers, Remembered
from mecroute.caching.keys import CacheKey, cache_key
from mecroute.config.caching import CacheConfig
from mecroute.errors import MecrouteError
from mecroute.outcome import Provenance
from mecroute.placement.demand import Demand
from mecroute.request import Request
from mecroute.target import TargetState

if TYPE_CHECKING:
    from mecroute.caching.disk import AnswerDisk
    from mecroute.caching.embedder import Embedder, Vector
    from mecroute.caching.similar import SimilarQuestions

Heat = Literal["hot", "warm", "cold"]

_LOG = logging.getLogger("mecroute.cache")
#: Questions that were looked up and whose answers are still being made.
_PENDING = 1024


class CacheAgent:
    """Remembers answers and counts demand per model. For one event loop.

    Only what would come out the same again is remembered, unless a request states otherwise (see
    `caching.keys.cache_key`). The key holds the whole request and the user, so that nobody gets another's
    answer; and an answer is given only where its own target would have been allowed, so that none crosses a
    privacy floor, a residency or a least quality. Nothing is written to disk unless that was switched on.

    Args:
        config: `[cache]`.
        demand: where requests per model are counted.
        on_demand: told of every request that was counted.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        config: CacheConfig | None = None,
        *,
        demand: Demand | None = None,
        on_demand: Callable[[], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._config = config or CacheConfig()
        self.demand = demand or Demand()
        self._on_demand = on_demand
        self._answers = Answers(ttl_s=self._config.ttl_s, max_bytes=self._config.max_bytes, clock=clock)
        self._similar: SimilarQuestions | None = None
        self._opening: asyncio.Future[SimilarQuestions | None] | None = None
        self._pending: OrderedDict[str, Vector] = OrderedDict()
        self._disk: AnswerDisk | None = None
        if self._config.enabled and self._config.persist:
            from mecroute.caching.disk import AnswerDisk, default_path

            path = self._config.path.expanduser() if self._config.path is not None else default_path()
            self._disk = AnswerDisk(path, ttl_s=self._config.ttl_s, max_bytes=self._config.max_bytes)

    def lookup(self, request: Request) -> Remembered | None:
        """The remembered answer to exactly this request, or None."""
        key = self._key(request)
        if key is None:
            return None
        found = self._get(key.exact)
        return found if found is not None and may_be_given(request, found.provenance) else None

    async def lookup_similar(self, request: Request) -> Remembered | None:
        """The remembered answer to a request that means the same, or None; needs `[cache] semantic`."""
        if not self._config.semantic or (key := self._key(request)) is None or key.frame is None:
            return None
        if self._opening is None:
            self._opening = asyncio.ensure_future(asyncio.to_thread(open_similar, self._config))
        # Opened once, whoever stops waiting for it.
        similar = self._similar = await asyncio.shield(self._opening)
        if similar is None:
            return None
        vector = await self._embed(similar.embedder, key.text)
        if vector is None:
            return None
        self._pending[request.id] = vector
        while len(self._pending) > _PENDING:
            self._pending.popitem(last=False)
        if self._disk is not None and not similar.knows(key.frame):
            for other, question in reversed(self._disk.questions(key.frame)):
                if (known := await self._embed(similar.embedder, question)) is not None:
                    similar.add(key.frame, other, known)
        for other in similar.find(key.frame, vector):
            found = self._get(other)
            if found is None:
                similar.remove(key.frame, other)
            elif may_be_given(request, found.provenance):
                self._pending.pop(request.id, None)
                return replace(found, kind="semantic")
        return None

    def remember(self, request: Request, body: Mapping[str, Any], provenance: Provenance) -> None:
        """Keep a whole, undisturbed answer where the request allows it."""
        vector = self._pending.pop(request.id, None)
        key = self._key(request)
        if key is None or provenance.outcome.error is not None or len(provenance.segments) != 1:
            return
        try:
            size = len(json.dumps(dict(body))) + len(key.text)
        except (TypeError, ValueError):
            return
        answer = Remembered(body, provenance)
        if not self._answers.put(key.exact, answer, size):
            return
        if self._similar is not None and key.frame is not None and vector is not None:
            self._similar.add(key.frame, key.exact, vector)
        if self._disk is not None:
            self._disk.put(key, answer, size)

    def asked_for(self, model: str) -> None:
        """Count one request answered by a model."""
        self.demand.asked_for(model)
        if self._on_demand is not None:
            self._on_demand()

    def close(self) -> None:
        """Close the file of answers, and unload the encoder."""
        if self._disk is not None:
            self._disk.close()
        if self._similar is not None:
            self._similar.embedder.close()
        elif self._opening is not None:
            self._opening.add_done_callback(_close_opened)

    @staticmethod
    def heat(model: str, targets: Iterable[TargetState], in_store: bool) -> Heat:
        """`hot` when loaded on a MEC node, `warm` when it lies in the store, else `cold`."""
        if any(t.target.tier == "mec" and t.target.model == model and not t.ready_in_ms for t in targets):
            return "hot"
        return "warm" if in_store else "cold"

    def _key(self, request: Request) -> CacheKey | None:
        return cache_key(request) if self._config.enabled else None

    def _get(self, key: str) -> Remembered | None:
        found = self._answers.get(key)
        if found is None and self._disk is not None and (kept := self._disk.get(key)) is not None:
            found, size, age_s = kept
            self._answers.put(key, found, size, age_s=age_s)
        return found

    async def _embed(self, embedder: Embedder, text: str) -> Vector | None:
        try:
            if embedder.is_fast:
                return embedder.embed([text])[0]
            return (await asyncio.to_thread(embedder.embed, [text]))[0]
        except MecrouteError:
            return None  # too long for the model, or it is busy: then the question is simply answered


def _close_opened(opening: asyncio.Future[SimilarQuestions | None]) -> None:
    """Unload an encoder for which nobody waits any more."""
    if not opening.cancelled() and opening.exception() is None and (opened := opening.result()) is not None:
        opened.embedder.close()


def may_be_given(request: Request, provenance: Provenance) -> bool:
    """Whether the target that gave an answer would have been allowed to answer this request.

    Nothing leaves the device with a hit, yet a request that must stay on the device is not answered by what a
    cloud said, and one that wants quality not by what a weaker model said.
    """
    asked = request.requirements
    answered = next(
        (c for c in provenance.decision.candidates if c.target.id == provenance.outcome.target_id), None
    )
    if answered is None:
        return False
    target = answered.target
    if not (asked.allows_tier(target.tier) and asked.allows_region(target.tier, target.region)):
        return False
    return asked.min_quality is None or answered.quality >= asked.min_quality


def open_similar(config: CacheConfig) -> SimilarQuestions | None:
    """The semantic side of the cache; None, and a line in the log, where it was not calibrated for this."""
    from mecroute.caching.similar import SimilarQuestions

    embedder: Embedder | None = None
    try:
        embedder = open_embedder(config)
        problem, threshold = semantic_problem(config, embedder)
    except MecrouteError as error:
        problem, threshold = error.message, None
    if embedder is not None and problem is None and threshold is not None:
        return SimilarQuestions(embedder, threshold)
    _LOG.warning("the semantic cache is off: %s", problem)
    if embedder is not None:
        embedder.close()
    return None


def open_embedder(config: CacheConfig) -> Embedder:
    """The embedder that `[cache] encoder` means.

    Raises:
        InvalidModelFileError: it is no text encoder.
        MissingExtraError: the `device` extra is not installed.
    """
    if config.encoder is None:
        from mecroute.caching.embedder import HashingEmbedder

        return HashingEmbedder()
    try:
        from mecroute.caching.encoder_embedder import EncoderEmbedder
    except ImportError as error:
        from mecroute.errors import MissingExtraError

        raise MissingExtraError("device", "running a text encoder for the cache") from error
    return EncoderEmbedder(config.encoder.expanduser())


def semantic_problem(config: CacheConfig, embedder: Embedder) -> tuple[str | None, float | None]:
    """Why no similar answer may be given, or the calibrated threshold.

    Raises:
        ConfigError: the calibration cannot be read.
    """
    from mecroute.caching.calibration import load_calibration

    found = load_calibration()
    how = "run `mecroute cache calibrate DATA`"
    if found is None:
        return f"it was never calibrated; {how}", None
    if found.embedder != embedder.name:
        return f"it was calibrated for the embedder {found.embedder}, not {embedder.name}; {how}", None
    if found.threshold is None:
        return (
            f"no threshold kept wrong hits at {found.rate:g}; {how} with a higher rate, or an encoder",
            None,
        )
    if found.rate > config.wrong_hit_rate:
        return (
            f"it was calibrated for a rate of wrong hits of {found.rate:g}, "
            f"and wrong_hit_rate is {config.wrong_hit_rate:g}; {how}",
            None,
        )
    return None, found.threshold
