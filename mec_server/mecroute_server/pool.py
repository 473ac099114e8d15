"""The models of this node, by name, and the engines that serve them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from mecroute.errors import (
    InvalidRequestError,
    MecrouteError,
    ModelNotFoundError,
    NodeNotReadyError,
    OverloadedError,
)
from mecroute_registry.facts import ModelVersion
from mecroute_registry.store import Registry
from mecroute_server.settings import ServerSettings, served_name
from mecroute_server.slot import Lease, LoadedModel, ModelSlot, OnnxLease

if TYPE_CHECKING:
    from mecroute.engines.llama.engine import LlamaEngine
    from mecroute.engines.onnx.engine import OnnxEngine

_log = logging.getLogger(__name__)
_T = TypeVar("_T")

#: Rows that an ONNX model computes together at most; more does not make a CPU faster.
MAX_ONNX_BATCH = 32


class EnginePool:
    """Loads and unloads models and lends their engines to requests.

    Every method belongs to one event loop. Loading runs in one thread of the pool's own, one model after
    another: two at once would only take each other's disk and CPU.

    Args:
        settings: the node's settings.
        registry: the node's own registry.
    """

    def __init__(self, settings: ServerSettings, registry: Registry) -> None:
        self._settings = settings
        self._registry = registry
        self._slots: dict[str, ModelSlot] = {}
        self._loader = ThreadPoolExecutor(max_workers=1, thread_name_prefix="mecroute-load")
        self._waiting = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self.closing = False
        #: About to close: still taking requests, and saying that it is not ready.
        self.draining = False

    # What is there

    def slots(self) -> list[ModelSlot]:
        """Every model of the node, in any state, sorted by reference."""
        return [self._slots[ref] for ref in sorted(self._slots)]

    def slot(self, ref: str) -> ModelSlot | None:
        """The model of exactly that reference."""
        return self._slots.get(ref)

    def add_file(self, path: Path) -> ModelSlot:
        """Make a place for a GGUF or ONNX file served by its path."""
        return self._slots.setdefault(served_name(path), ModelSlot(served_name(path), file=path))

    def add_ref(self, ref: str) -> ModelSlot:
        """Make a place for a model of the registry, or find the one it has."""
        return self._slots.setdefault(ref, ModelSlot(ref))

    def discard(self, slot: ModelSlot) -> None:
        """Forget a place that never came to hold anything."""
        if slot.loaded is None and self._slots.get(slot.ref) is slot:
            del self._slots[slot.ref]

    def ready(self) -> list[ModelSlot]:
        """The models that can serve now."""
        return [slot for slot in self.slots() if slot.loaded is not None]

    def why_not_ready(self) -> str | None:
        """Why no model can serve now; None when one can."""
        if self.closing or self.draining:
            return "the server is stopping"
        if self.ready():
            return None
        if not self._slots:
            return "no model has been deployed to this node"
        return "; ".join(
            f"{slot.ref} is {slot.state}" + (f": {slot.detail}" if slot.detail else "")
            for slot in self.slots()
        )

    def find(self, name: str) -> ModelSlot:
        """The model a request means.

        Args:
            name: `name:version`, or `name` where that is the reference itself or one loaded version's name.

        Raises:
            ModelNotFoundError: this node has no such model.
            InvalidRequestError: several versions of it are loaded.
        """
        if name in self._slots:
            return self._slots[name]
        versions = [slot for slot in self.slots() if slot.name == name]
        loaded = [slot for slot in versions if slot.loaded is not None]
        if len(loaded) > 1:
            refs = ", ".join(slot.ref for slot in loaded)
            raise InvalidRequestError(
                f"{len(loaded)} versions of '{name}' are loaded: {refs}", hint="name one of them", model=name
            )
        # One that is on its way is a better answer than none: the caller waits for it, or learns its state.
        pending = (
            loaded or [slot for slot in versions if slot.state not in ("failed", "unloaded")] or versions
        )
        if pending:
            return pending[0]
        ready = [slot.ref for slot in self.ready()]
        close = get_close_matches(name, ready, n=1, cutoff=0.5)
        served = f"it serves {', '.join(ready)}" if ready else "it serves no model yet"
        raise ModelNotFoundError(
            f"node '{self._settings.node}' has no model '{name}'; {served}",
            hint=f"did you mean {close[0]}?" if close else "GET /v1/models lists the models",
            model=name,
        )

    def serves_onnx(self, name: str) -> bool:
        """Whether a request of that name means an ONNX model; False where there is no such model."""
        try:
            return self.find(name).is_onnx
        except MecrouteError:
            return False

    # Lending

    async def acquire(self, name: str) -> Lease:
        """Lend the engine of a model; a model that is being loaded is waited for.

        Raises:
            ModelNotFoundError: this node has no such model.
            InvalidRequestError: several versions of it are loaded, or it is an ONNX model.
            NodeNotReadyError: it is not in memory and not about to be.
            OverloadedError: too many requests wait for it to load.
        """
        slot, loaded = await self._loaded(name)
        return loaded.lease(slot.ref)

    async def acquire_onnx(self, name: str) -> OnnxLease:
        """The same for an ONNX model."""
        slot, loaded = await self._loaded(name)
        return loaded.lease_onnx(slot.ref)

    async def _loaded(self, name: str) -> tuple[ModelSlot, LoadedModel]:
        slot = self.find(name)
        if slot.loaded is None and slot.state == "loading" and not self.closing:
            await self._wait_for_load(slot)
        if slot.loaded is None or self.closing:
            raise self._not_ready(slot)
        return slot, slot.loaded

    async def _wait_for_load(self, slot: ModelSlot) -> None:
        if self._waiting >= self._settings.max_queue:
            raise OverloadedError(
                f"{self._waiting} requests already wait for '{slot.ref}' to load",
                retry_after_s=2.0,
                tier="mec",
            )
        self._waiting += 1
        try:
            async with asyncio.timeout(self._settings.load_wait_s):
                await slot.settled.wait()
        except TimeoutError:
            return  # the state now says what is to be said
        finally:
            self._waiting -= 1

    def _not_ready(self, slot: ModelSlot) -> NodeNotReadyError:
        node = self._settings.node
        if self.closing:
            return NodeNotReadyError(f"node '{node}' is stopping", retryable=True, tier="mec", model=slot.ref)
        underway = slot.state in ("pulling", "verifying", "loading")
        detail = f" ({slot.detail})" if slot.detail else ""
        if underway and slot.progress is not None:
            detail = f" ({slot.progress[0]:,} of {slot.progress[1]:,} bytes)"
        return NodeNotReadyError(
            f"'{slot.ref}' is {slot.state} on node '{node}'{detail}",
            hint="GET /admin/models shows its progress"
            if underway
            else f"POST /admin/models/{slot.ref}/load",
            retryable=underway,
            tier="mec",
            model=slot.ref,
        )

    # Loading and unloading

    async def load(self, slot: ModelSlot) -> None:
        """Bring a model into memory; returns when it serves. One that is loaded already is left alone.

        Raises:
            MecrouteError: it could not be loaded; the slot says why.
        """
        async with slot.lock:
            if slot.loaded is None:
                with self.attempt(slot):
                    await self.load_locked(slot)

    async def load_locked(self, slot: ModelSlot, model: ModelVersion | None = None) -> None:
        """The same for a caller that holds the slot's lock and records the result.

        An engine that serves is replaced once the new one has made its first token; it is closed when its
        last request has ended.

        Args:
            slot: where the model is to serve.
            model: the registered version to load; default: the one the slot's reference names.
        """
        slot.begin("verifying", "checking the digest")
        if slot.file is not None:
            path = slot.file
        else:
            model, path = await self._in_loader(self._verified, slot.ref, model)
        slot.begin("loading", "reading the model file")
        # The slot still holds the version before, if there is one, so the new one says what it is.
        is_onnx = model.format == "onnx" if model is not None else slot.is_onnx
        engine: LlamaEngine | OnnxEngine
        if is_onnx:
            path = await self._in_loader(_onnx_model_file, path)
            engine = await self._in_loader(_open_onnx_engine, slot.ref, path, self._settings)
        else:
            engine = await self._in_loader(_open_engine, slot.ref, path, self._settings)
        if self.closing:
            await asyncio.to_thread(engine.close)
            raise self._not_ready(slot)
        previous, slot.loaded = slot.loaded, LoadedModel(engine, size_bytes=path.stat().st_size)
        slot.model = model
        slot.succeed()
        _log.info("%s is ready", slot.ref)
        if previous is not None:
            await self._retire(previous)

    async def unload(self, slot: ModelSlot) -> None:
        """Take a model out of memory once its requests have ended; a deployment under way is cancelled."""
        if slot.deployment is not None:
            slot.cancelled = True
        async with slot.lock:
            loaded, slot.loaded = slot.loaded, None
            if loaded is None:
                slot.rest(slot.detail if slot.state == "unloaded" else None)
                return
            if loaded.in_flight:
                slot.rest(f"finishing {loaded.in_flight} requests")
            else:
                slot.rest()
            await self._retire(loaded)
            slot.rest()
        _log.info("%s is unloaded", slot.ref)

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run an attempt in the background; the slot records how it ends."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        # Read, so that asyncio does not report as forgotten what the slot has recorded.
        task.add_done_callback(lambda done: done.cancelled() or done.exception())
        return task

    def refuse(self) -> None:
        """Take no new work, and end pulls that are under way; what has an engine may finish."""
        self.closing = True
        for slot in self.slots():
            slot.cancelled = True

    async def close(self) -> None:
        """Close every engine; what still runs ends with an error. May be called again."""
        self.refuse()
        # Not cancelled: a thread in the middle of loading would leave an engine that nobody closes.
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.to_thread(self._loader.shutdown)
        for slot in self.slots():
            loaded, slot.loaded = slot.loaded, None
            if loaded is not None:
                slot.rest("the server is stopping")
                await asyncio.to_thread(loaded.engine.close)

    @contextlib.contextmanager
    def attempt(self, slot: ModelSlot) -> Iterator[None]:
        """Record in the slot what an attempt ends with, whatever that is."""
        try:
            yield
        except asyncio.CancelledError:
            slot.rest("cancelled")
            raise
        except MecrouteError as error:
            _log.warning("%s: %s", slot.ref, error)
            slot.fail(error)
            raise
        except Exception as error:
            # The edge of a background task: nobody above it would see the exception.
            _log.exception("%s could not be made ready", slot.ref)
            failure = MecrouteError(
                f"'{slot.ref}' could not be made ready: {type(error).__name__}: {error}",
                hint="the server's log has the details",
                model=slot.ref,
            )
            slot.fail(failure)
            raise failure from error

    def _verified(self, ref: str, model: ModelVersion | None) -> tuple[ModelVersion, Path]:
        model = model or self._registry.get(ref)
        return model, self._registry.path(model)

    async def _retire(self, loaded: LoadedModel) -> None:
        await loaded.drained()
        await asyncio.to_thread(loaded.engine.close)

    async def _in_loader(self, work: Callable[..., _T], *args: object) -> _T:
        if self.closing:
            raise NodeNotReadyError(f"node '{self._settings.node}' is stopping", retryable=True, tier="mec")
        return await asyncio.get_running_loop().run_in_executor(self._loader, work, *args)


def _open_engine(ref: str, path: Path, settings: ServerSettings) -> LlamaEngine:
    """Load a model and make a first token with it, so that the first request finds its pages in memory."""
    from mecroute.engines.llama.engine import LlamaEngine

    engine = LlamaEngine(
        path,
        n_ctx=settings.context,
        n_parallel=settings.parallel,
        n_threads=settings.threads,
        n_gpu_layers=settings.gpu_layers,
        max_queue=settings.max_queue,
        name=ref,
        prefix_ram_bytes=settings.prefix_cache_memory_bytes,
        prefix_disk=settings.prefix_disk,
        speculation=settings.speculation,
        draft_model=settings.draft_model,
    )
    try:
        engine.warm_up()
    except BaseException:
        engine.close()
        raise
    return engine


def _onnx_model_file(path: Path) -> Path:
    from mecroute.engines.onnx.encoder import model_file

    return model_file(path)


def _open_onnx_engine(ref: str, path: Path, settings: ServerSettings) -> OnnxEngine:
    """The same for an ONNX model."""
    from mecroute.engines.onnx.encoder import open_onnx

    engine = open_onnx(
        path, n_threads=settings.threads, max_queue=settings.max_queue, max_batch=MAX_ONNX_BATCH, name=ref
    )
    try:
        engine.warm_up()
    except BaseException:
        engine.close()
        raise
    return engine
