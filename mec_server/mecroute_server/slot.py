"""One model on this node: where it is in its life, and the engine that serves it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from mecroute.engines.llama.engine import LlamaEngine
from mecroute.errors import InvalidRequestError, MecrouteError
from mecroute.nodes.report import MOST_LABELS_REPORTED
from mecroute_registry.facts import ModelVersion, Task
from mecroute_server.budget import Heat

if TYPE_CHECKING:
    from mecroute.engines.onnx.engine import OnnxEngine

#: `pulling`: bytes come from the store. `verifying`: their digest is checked. `loading`: the engine reads
#: them and makes a first token. `ready`: serving. `failed`: the last attempt failed and nothing serves.
#: `unloaded`: on disk, not in memory.
ModelState = Literal["pulling", "verifying", "loading", "ready", "failed", "unloaded"]


#: What a GGUF model is taken for until it is in memory.
_GENERATES: tuple[Task, ...] = ("chat", "completion", "embed")
#: A model whose last caller has just been answered is likely to be asked again by the same one.
_CALLER_PAUSE_S = 0.1


class LoadedModel:
    """An engine, and how many requests it is answering; used on the event loop only.

    Args:
        engine: the engine.
        size_bytes: of the model file.
        load_s: how long loading took.
        on_idle: called with this whenever its last request has ended.

    Attributes:
        uses: requests so far.
        worth: what keeping it is worth, as of its last request; see `MemoryBudget.worth`.
    """

    def __init__(
        self,
        engine: LlamaEngine | OnnxEngine,
        *,
        size_bytes: int,
        load_s: float = 0.0,
        on_idle: Callable[[LoadedModel], None] | None = None,
    ) -> None:
        self.engine = engine
        self.size_bytes = size_bytes
        self.load_s = load_s
        self.since = datetime.now(UTC)
        self.in_flight = 0
        self.uses = 0
        self.worth = 0.0
        self._on_idle = on_idle
        self._loaded_at = time.monotonic()
        #: Set when the engine is closed and its memory free.
        self.closed = asyncio.Event()
        #: When its last request ended, as the loop's clock has it, and what looks after that.
        self.idle_at = 0.0
        self.idle_timer: asyncio.TimerHandle | None = None
        self._idle = asyncio.Event()
        self._idle.set()

    def lease(self, ref: str) -> Lease:
        """Hold the engine of a generative model open for one request.

        Raises:
            InvalidRequestError: it is an ONNX model.
        """
        from mecroute.engines.onnx.engine import OnnxEngine

        if isinstance(self.engine, OnnxEngine):
            raise InvalidRequestError(
                f"'{ref}' is an ONNX model, which does not generate text",
                hint=f"ask it with POST /v2/models/{ref}/infer",
                model=ref,
            )
        self.held()
        return Lease(self, ref, self.engine)

    def lease_onnx(self, ref: str) -> OnnxLease:
        """Hold the engine of an ONNX model open for one request.

        Raises:
            InvalidRequestError: it is a GGUF model.
        """
        from mecroute.engines.onnx.engine import OnnxEngine

        if not isinstance(self.engine, OnnxEngine):
            raise InvalidRequestError(
                f"'{ref}' is a GGUF model, which takes no tensors",
                hint=f"ask it with POST {_route_of(self.engine)}",
                model=ref,
            )
        self.held()
        return OnnxLease(self, ref, self.engine)

    def held(self) -> None:
        """One request has begun."""
        self.in_flight += 1
        self.uses += 1
        self._idle.clear()

    def returned(self) -> None:
        """One request has ended."""
        self.in_flight -= 1
        if self.in_flight == 0:
            self._idle.set()
            if self._on_idle is not None:
                self._on_idle(self)

    def turn_left_s(self, turn_s: float) -> float:
        """Seconds until it has served for `turn_s`; 0 when that has been."""
        return max(0.0, self._loaded_at + turn_s - time.monotonic())

    async def turn_over(self, turn_s: float) -> None:
        """Wait until it has served for `turn_s`, or nobody asks it any more."""
        while left_s := self.turn_left_s(turn_s):
            try:
                async with asyncio.timeout(left_s):
                    await self._idle.wait()
                    uses = self.uses
                    await asyncio.sleep(_CALLER_PAUSE_S)
            except TimeoutError:
                return
            if not self.in_flight and self.uses == uses:
                return

    async def drained(self) -> None:
        """Wait until no request uses the engine."""
        await self._idle.wait()


class _Hold:
    """One request's hold on an engine; while it lasts the engine is not closed.

    `ref` is the reference of the model that answers, `engine` its engine. `release` may be called more
    than once.
    """

    def __init__(self, loaded: LoadedModel, ref: str) -> None:
        self._loaded: LoadedModel | None = loaded
        self.ref = ref

    def release(self) -> None:
        """Give the engine back."""
        if self._loaded is not None:
            self._loaded.returned()
            self._loaded = None


class Lease(_Hold):
    """A hold on the engine of a generative model."""

    def __init__(self, loaded: LoadedModel, ref: str, engine: LlamaEngine) -> None:
        super().__init__(loaded, ref)
        self.engine = engine


class OnnxLease(_Hold):
    """A hold on the engine of an ONNX model."""

    def __init__(self, loaded: LoadedModel, ref: str, engine: OnnxEngine) -> None:
        super().__init__(loaded, ref)
        self.engine = engine


@dataclass(slots=True, eq=False)
class ModelSlot:
    """One model's place on the node; changed on the event loop only, but for `progress` and `detail`.

    Args:
        ref: `name:version`, or the stem of a file served by its path.
        file: that file; None for a model of the registry.
        model: the registered version; None for a file served by its path.
        detail: a sentence on what goes on or went wrong.
        progress: bytes done and bytes in all, while there is something to count.
        error: what the last attempt failed with, while it has not been followed by a success.
        loaded: the engine in use; it stays while a new attempt goes on, and when that fails.
        pinned: whether it stays in memory whatever else is asked for.
        stopped: whether an operator has unloaded it: no request brings it back, only a load or deployment.
        keep_alive_s: how long it stays in memory after its last request, where a request has said so; None
            leaves it to the node's setting.
    """

    ref: str
    file: Path | None = None
    model: ModelVersion | None = None
    state: ModelState = "unloaded"
    detail: str | None = None
    progress: tuple[int, int] | None = None
    error: MecrouteError | None = None
    loaded: LoadedModel | None = None
    pinned: bool = False
    stopped: bool = False
    keep_alive_s: float | None = None
    heat: Heat = field(default_factory=Heat)
    #: Requests that wait for it to be in memory. Each gets the engine, held once for it already.
    waiters: list[asyncio.Future[LoadedModel | None]] = field(default_factory=list)
    #: The load that requests have asked for, and whether all who did have given up.
    demand: asyncio.Task[None] | None = None
    unwanted: asyncio.Event = field(default_factory=asyncio.Event)
    #: About to make room for another: what it does it ends, and new requests wait for it to come back.
    leaving: bool = False
    #: What the model could be asked for when it was last in memory, where nothing else says it.
    seen_tasks: tuple[Task, ...] = ()
    seen_labels: tuple[str, ...] | None = None
    #: How long its last load took, also once it has left memory.
    last_load_s: float | None = None
    #: time.monotonic() of the last failure.
    failed_at: float | None = None
    #: One load, unload or deployment at a time.
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    #: Set whenever no attempt is under way.
    settled: asyncio.Event = field(default_factory=asyncio.Event)
    #: A deployment in this slot that has not ended yet, and the digest it is to bring (None: any).
    deployment: asyncio.Task[None] | None = None
    wanted_digest: str | None = None
    #: Asks the thread that works for this slot to stop at its next progress report.
    cancelled: bool = False

    def __post_init__(self) -> None:
        self.settled.set()

    @property
    def is_onnx(self) -> bool:
        """Whether it is an ONNX model; False also while nobody knows."""
        if self.model is not None:
            return self.model.format == "onnx"
        return self.file is not None and is_onnx_file(self.file)

    @property
    def tasks(self) -> tuple[Task, ...]:
        """What it can be asked for: what was stated of it, as far as its engine can do that."""
        stated = self.model.tasks if self.model is not None else ()
        able = _tasks_of(self.loaded.engine) if self.loaded is not None else self.seen_tasks
        if not able:
            return stated or (("infer",) if self.is_onnx else _GENERATES)
        return tuple(task for task in able if task in stated) or able

    @property
    def labels(self) -> tuple[str, ...] | None:
        """The classes of a text classifier; None where it is none, was never loaded, or has very many."""
        if self.loaded is None:
            return self.seen_labels
        classifier = getattr(self.loaded.engine, "classifier", None)
        labels = classifier.classes.labels if classifier is not None else ()
        return labels if 0 < len(labels) <= MOST_LABELS_REPORTED else None

    @property
    def name(self) -> str:
        """The model's name without its version."""
        return self.model.name if self.model is not None else self.ref.partition(":")[0]

    @property
    def on_demand(self) -> bool:
        """Whether a request brings it into memory."""
        return not self.stopped and (self.file is not None or self.model is not None)

    @property
    def serving(self) -> LoadedModel | None:
        """The engine that a new request gets now; None where it has to wait, or cannot have one."""
        return None if self.leaving else self.loaded

    def begin(self, state: ModelState, detail: str) -> None:
        """An attempt starts or reaches its next phase; a model that serves goes on doing so as `ready`."""
        self.settled.clear()
        self.state = "ready" if self.loaded is not None else state
        self.detail = detail
        self.progress = None

    def succeed(self) -> None:
        """The attempt succeeded: the model serves."""
        self.failed_at = None
        self._end("ready", None, None)

    def fail(self, error: MecrouteError) -> None:
        """The attempt failed; a model that served before it still does."""
        self.failed_at = time.monotonic()
        if self.loaded is not None:
            self._end(
                "ready", f"still serving the previous version; the last deployment failed: {error}", error
            )
        else:
            self._end("failed", str(error), error)

    def rest(self, detail: str | None = None) -> None:
        """The attempt was cancelled or the model was unloaded: on disk at most, and not an error."""
        self._end("ready" if self.loaded is not None else "unloaded", detail, None)

    def take_out(self, detail: str) -> LoadedModel | None:
        """The engine, which the slot then no longer has; an attempt that is under way goes on."""
        loaded, self.loaded = self.loaded, None
        self.leaving = False
        if self.settled.is_set():
            self.rest(detail)
        else:
            self.state, self.detail = "loading", detail
        return loaded

    def _end(self, state: ModelState, detail: str | None, error: MecrouteError | None) -> None:
        self.state, self.detail, self.error = state, detail, error
        self.progress = None
        self.settled.set()
        waiters, self.waiters = self.waiters, []
        for waiter in waiters:
            if waiter.done():
                continue
            if self.loaded is not None:
                # Held before it runs, or a model that has to make room could go before it has been used.
                self.loaded.held()
                waiter.set_result(self.loaded)
            elif error is not None:
                waiter.set_exception(error)
            else:
                waiter.set_result(None)


def _route_of(engine: LlamaEngine) -> str:
    """Where a GGUF model is asked."""
    if engine.generates:
        return "/v1/chat/completions"
    return "/v1/rerank" if engine.pooling == "rank" else "/v1/embeddings"


def _tasks_of(engine: LlamaEngine | OnnxEngine) -> tuple[Task, ...]:
    """What an engine can do."""
    if isinstance(engine, LlamaEngine):
        generates: tuple[Task, ...] = _GENERATES[:2] if engine.generates else ()
        return (*generates, "rerank" if engine.pooling == "rank" else "embed")
    if engine.classifier is not None:
        return ("rerank" if len(engine.classifier.classes.labels) == 1 else "classify", "infer")
    return ("embed", "infer") if engine.encoder is not None else ("infer",)


def is_onnx_file(path: Path) -> bool:
    """Whether a model file (or folder) named on its own is an ONNX model; its content is checked later."""
    return path.suffix.lower() == ".onnx" or path.is_dir()
