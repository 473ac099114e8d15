"""One model on this node: where it is in its life, and the engine that serves it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from mecroute.errors import MecrouteError
from mecroute_registry.facts import ModelVersion

if TYPE_CHECKING:
    from mecroute.engines.llama.engine import LlamaEngine

#: `pulling`: bytes come from the store. `verifying`: their digest is checked. `loading`: the engine reads
#: them and makes a first token. `ready`: serving. `failed`: the last attempt failed and nothing serves.
#: `unloaded`: on disk, not in memory.
ModelState = Literal["pulling", "verifying", "loading", "ready", "failed", "unloaded"]


class LoadedModel:
    """An engine, and how many requests it is answering; used on the event loop only."""

    def __init__(self, engine: LlamaEngine, *, size_bytes: int) -> None:
        self.engine = engine
        self.size_bytes = size_bytes
        self.since = datetime.now(UTC)
        self.in_flight = 0
        self._idle = asyncio.Event()
        self._idle.set()

    def lease(self, ref: str) -> Lease:
        """Hold the engine open for one request."""
        self.in_flight += 1
        self._idle.clear()
        return Lease(self, ref)

    def returned(self) -> None:
        """One request has ended."""
        self.in_flight -= 1
        if self.in_flight == 0:
            self._idle.set()

    async def drained(self) -> None:
        """Wait until no request uses the engine."""
        await self._idle.wait()


class Lease:
    """One request's hold on an engine; while it lasts the engine is not closed.

    `ref` is the reference of the model that answers, `engine` its engine. `release` may be called more
    than once.
    """

    def __init__(self, loaded: LoadedModel, ref: str) -> None:
        self._loaded: LoadedModel | None = loaded
        self.engine = loaded.engine
        self.ref = ref

    def release(self) -> None:
        """Give the engine back."""
        if self._loaded is not None:
            self._loaded.returned()
            self._loaded = None


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
