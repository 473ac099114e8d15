"""One model on this node: where it is in its life, and the engine that serves it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from mecroute.errors import InvalidRequestError, MecrouteError
from mecroute_registry.facts import ModelVersion, Task

if TYPE_CHECKING:
    from mecroute.engines.llama.engine import LlamaEngine
    from mecroute.engines.onnx.engine import OnnxEngine

#: `pulling`: bytes come from the store. `verifying`: their digest is checked. `loading`: the engine reads
#: them and makes a first token. `ready`: serving. `failed`: the last attempt failed and nothing serves.
#: `unloaded`: on disk, not in memory.
ModelState = Literal["pulling", "verifying", "loading", "ready", "failed", "unloaded"]


class LoadedModel:
    """An engine, and how many requests it is answering; used on the event loop only."""

    def __init__(self, engine: LlamaEngine | OnnxEngine, *, size_bytes: int) -> None:
        self.engine = engine
        self.size_bytes = size_bytes
        self.since = datetime.now(UTC)
        self.in_flight = 0
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
            InvalidRequestError: it is a generative model.
        """
        from mecroute.engines.onnx.engine import OnnxEngine

        if not isinstance(self.engine, OnnxEngine):
            raise InvalidRequestError(
                f"'{ref}' is a generative model, which takes no tensors",
                hint="ask it with POST /v1/chat/completions",
                model=ref,
            )
        self.held()
        return OnnxLease(self, ref, self.engine)

    def held(self) -> None:
        """One request has begun."""
        self.in_flight += 1
        self._idle.clear()

    def returned(self) -> None:
        """One request has ended."""
        self.in_flight -= 1
        if self.in_flight == 0:
            self._idle.set()

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
    """

    ref: str
    file: Path | None = None
    model: ModelVersion | None = None
    state: ModelState = "unloaded"
    detail: str | None = None
    progress: tuple[int, int] | None = None
    error: MecrouteError | None = None
    loaded: LoadedModel | None = None
    #: One load, unload or deployment at a time.
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    #: Set whenever no attempt is under way.
    settled: asyncio.Event = field(default_factory=asyncio.Event)
    #: A deployment in this slot that has not ended yet, and the digest it is to bring (None: any).
    deployment: asyncio.Task[None] | None = None
    wanted_digest: str | None = None
    #: Asks the thread that works for this slot to stop at its next progress report.
    cancelled: bool = False

    @property
    def is_onnx(self) -> bool:
        """Whether it is an ONNX model; False also while nobody knows."""
        if self.model is not None:
            return self.model.format == "onnx"
        return self.file is not None and is_onnx_file(self.file)

    @property
    def tasks(self) -> tuple[Task, ...]:
        """What it can be asked for."""
        if self.model is not None:
            return self.model.tasks
        if not self.is_onnx:
            return ("chat", "completion", "embed")
        embeds = self.loaded is not None and getattr(self.loaded.engine, "encoder", None) is not None
        return ("embed", "infer") if embeds else ("infer",)

    @property
    def name(self) -> str:
        """The model's name without its version."""
        return self.model.name if self.model is not None else self.ref.partition(":")[0]

    def begin(self, state: ModelState, detail: str) -> None:
        """An attempt starts or reaches its next phase; a model that serves goes on doing so as `ready`."""
        self.settled.clear()
        self.state = "ready" if self.loaded is not None else state
        self.detail = detail
        self.progress = None

    def succeed(self) -> None:
        """The attempt succeeded: the model serves."""
        self._end("ready", None, None)

    def fail(self, error: MecrouteError) -> None:
        """The attempt failed; a model that served before it still does."""
        if self.loaded is not None:
            self._end(
                "ready", f"still serving the previous version; the last deployment failed: {error}", error
            )
        else:
            self._end("failed", str(error), error)

    def rest(self, detail: str | None = None) -> None:
        """The attempt was cancelled or the model was unloaded: on disk at most, and not an error."""
        self._end("ready" if self.loaded is not None else "unloaded", detail, None)

    def _end(self, state: ModelState, detail: str | None, error: MecrouteError | None) -> None:
        self.state, self.detail, self.error = state, detail, error
        self.progress = None
        self.settled.set()


def is_onnx_file(path: Path) -> bool:
    """Whether a model file (or folder) named on its own is an ONNX model; its content is checked later."""
    return path.suffix.lower() == ".onnx" or path.is_dir()
