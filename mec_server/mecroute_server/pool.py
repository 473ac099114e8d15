"""The models of this node, by name, and the engines that serve them."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from mecroute.engines.llama.submitter import current_submitter
from mecroute.errors import (
    DeadlineExceededError,
    InvalidRequestError,
    MecrouteError,
    ModelNotFoundError,
    NodeNotReadyError,
    OverloadedError,
)
from mecroute_registry.facts import ModelVersion, parse_ref
from mecroute_registry.onnx_folder import model_file
from mecroute_registry.store import Registry
from mecroute_server.attempt import attempt
from mecroute_server.errors import InsufficientMemoryError
from mecroute_server.footprint import measuring
from mecroute_server.opening import estimate, open_engine
from mecroute_server.residency import AbandonedError, Residency
from mecroute_server.settings import ServerSettings, served_name
from mecroute_server.slot import Lease, LoadedModel, ModelSlot, OnnxLease

_log = logging.getLogger(__name__)
_T = TypeVar("_T")

#: A model that could not be loaded is not tried again for a request before this.
_RETRY_FAILED_S = 10.0
#: How long a load takes, while nobody knows.
_UNMEASURED_LOAD_S = 2.0


class EnginePool:
    """Loads and unloads models within a memory budget, and lends their engines to requests.

    Every method belongs to one event loop. Loading runs in one thread of the pool's own, one model after
    another: two at once would only take each other's disk and CPU.

    A request for a model that is not in memory asks for it to be loaded, and waits. Loads are done in
    the order in which they were asked for; where there is no room, others leave (see `Residency`).

    Args:
        settings: the node's settings.
        registry: the node's own registry.
    """

    def __init__(self, settings: ServerSettings, registry: Registry) -> None:
        self._settings = settings
        self._registry = registry
        self._slots: dict[str, ModelSlot] = {}
        self.residency = Residency(settings, self.ready, self.spawn)
        #: Since the start, by reference: loads, and the seconds they took.
        self.loads: Counter[str] = Counter()
        self.load_seconds: defaultdict[str, float] = defaultdict(float)
        #: One load at a time makes room and takes it; asyncio's lock lets them in as they came.
        self._arranging = asyncio.Lock()
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
        name = served_name(path)
        slot = ModelSlot(name, file=path, pinned=name in self._settings.pinned)
        return self._slots.setdefault(name, slot)

    def add_ref(self, ref: str, model: ModelVersion | None = None) -> ModelSlot:
        """Make a place for a model of the registry, or find the one it has."""
        return self._slots.setdefault(ref, ModelSlot(ref, model=model, pinned=ref in self._settings.pinned))

    def discard(self, slot: ModelSlot) -> None:
        """Forget a place that holds nothing."""
        if slot.loaded is None and self._slots.get(slot.ref) is slot:
            del self._slots[slot.ref]

    def ready(self) -> list[ModelSlot]:
        """The models that are in memory."""
        return [slot for slot in self.slots() if slot.loaded is not None]

    def offered(self) -> list[ModelSlot]:
        """The models that can be asked: those in memory, and those that a request brings there."""
        return [slot for slot in self.slots() if slot.loaded is not None or self.loads_when_asked(slot)]

    @staticmethod
    def loads_when_asked(slot: ModelSlot) -> bool:
        """Whether a request would bring a model that is not in memory there; one that failed rests first."""
        if not slot.on_demand or not slot.settled.is_set():
            return False
        if slot.state == "failed" and not isinstance(slot.error, InsufficientMemoryError):
            return slot.failed_at is None or time.monotonic() - slot.failed_at >= _RETRY_FAILED_S
        return True

    def why_not_ready(self) -> str | None:
        """Why no model can serve now; None when one can."""
        if self.closing or self.draining:
            return "the server is stopping"
        if self.offered():
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
            name: `name:version`, or `name` where that is the reference itself or the name of the one version
                that is loaded or that a request would load.

        Raises:
            ModelNotFoundError: this node has no such model.
            InvalidRequestError: it is the name of several such versions.
        """
        if name in self._slots:
            return self._slots[name]
        versions = [slot for slot in self.slots() if slot.name == name]
        # Which version answers must not depend on which of them happens to be in memory.
        offered = [slot for slot in self.offered() if slot in versions and slot.state != "failed"]
        if len(offered) > 1:
            refs = ", ".join(slot.ref for slot in offered)
            raise InvalidRequestError(
                f"{len(offered)} versions of '{name}' are loaded or can be: {refs}",
                hint="name one of them",
                model=name,
            )
        # One that is on its way is a better answer than none: the caller waits for it, or learns its state.
        pending = (
            offered or [slot for slot in versions if slot.state not in ("failed", "unloaded")] or versions
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

    async def serves_onnx(self, name: str) -> bool:
        """Whether a request of that name means an ONNX model; False where there is no such model."""
        try:
            return (await self.wanted(name)).is_onnx
        except MecrouteError:
            return False

    async def wanted(self, name: str) -> ModelSlot:
        """The same as `find`, for a model too that is in the node's registry and has no place yet.

        Raises: as `find`.
        """
        try:
            return self.find(name)
        except ModelNotFoundError:
            models = await asyncio.to_thread(self._registered, name)
            if not models:
                raise
        if len(models) > 1:
            refs = ", ".join(model.ref for model in models)
            raise InvalidRequestError(
                f"there are {len(models)} versions of '{name}': {refs}", hint="name one of them", model=name
            )
        return self.add_ref(models[0].ref, models[0])

    def _registered(self, name: str) -> list[ModelVersion]:
        """The versions of the node's registry that a request may mean; only those made for MEC nodes."""
        try:
            model, version = parse_ref(name)
        except ValueError:
            return []
        found = [one for one in self._registry.versions(model) if "mec" in one.deployment_tiers]
        return [one for one in found if version in (None, one.version, one.digest)]

    # Lending

    async def acquire(self, name: str, keep_alive_s: float | None = None) -> Lease:
        """Lend the engine of a model; one that is not in memory is loaded, and waited for.

        Args:
            name: see `find`.
            keep_alive_s: how long it stays in memory after this request if no other comes, >= 0; None leaves
                it to the node's setting.

        Raises:
            ModelNotFoundError: this node has no such model.
            InvalidRequestError: several versions of it are there, or it is an ONNX model.
            NodeNotReadyError: it is not in memory and not about to be, or not in time.
            InsufficientMemoryError: it does not fit.
            OverloadedError: too many requests wait for models to load.
            DeadlineExceededError: the request's deadline passed before it was in memory.
            MecrouteError: it could not be loaded.
        """
        slot, loaded = await self._held(name, keep_alive_s)
        try:
            return loaded.lease(slot.ref)
        finally:
            loaded.returned()

    async def acquire_onnx(self, name: str) -> OnnxLease:
        """The same for an ONNX model."""
        slot, loaded = await self._held(name)
        try:
            return loaded.lease_onnx(slot.ref)
        finally:
            loaded.returned()

    async def _held(self, name: str, keep_alive_s: float | None = None) -> tuple[ModelSlot, LoadedModel]:
        """A model with its engine, which is held once."""
        slot = await self.wanted(name)
        if self.closing:
            raise self._not_ready(slot)
        slot.heat.add()
        slot.keep_alive_s = keep_alive_s
        loaded = slot.serving
        if loaded is not None:
            loaded.held()
        else:
            loaded = await self._wait_for_load(slot)
            if self.closing:
                loaded.returned()
                raise self._not_ready(slot)
        self.residency.appraise(slot, loaded)
        return slot, loaded

    async def _wait_for_load(self, slot: ModelSlot) -> LoadedModel:
        """Wait for a slot's engine, and see to it that it comes; it is held once when this returns."""
        underway = not slot.settled.is_set() and slot.state in ("verifying", "loading", "ready")
        if not underway and slot.demand is None and not self.loads_when_asked(slot):
            raise self._not_ready(slot)
        if self._waiting >= self._settings.max_queue:
            raise OverloadedError(
                f"{self._waiting} requests already wait for models to load",
                retry_after_s=slot.last_load_s or _UNMEASURED_LOAD_S,
                tier="mec",
            )
        wait_s, deadline_at = self._settings.load_wait_s, current_submitter().deadline_at
        if deadline_at is not None:
            wait_s = min(wait_s, max(0.0, deadline_at - time.perf_counter()))
        waiter: asyncio.Future[LoadedModel | None] = asyncio.get_running_loop().create_future()
        slot.waiters.append(waiter)
        slot.unwanted.clear()
        if not underway and slot.demand is None:
            slot.demand = self.spawn(self._demand(slot))
        self._waiting += 1
        try:
            async with asyncio.timeout(wait_s):
                loaded = await waiter
        except TimeoutError:
            _give_back(waiter)
            if wait_s < self._settings.load_wait_s:
                raise self._too_late(slot) from None
            raise self._not_ready(slot) from None
        except asyncio.CancelledError:
            _give_back(waiter)
            raise
        finally:
            self._waiting -= 1
            if waiter in slot.waiters:
                slot.waiters.remove(waiter)
            if not slot.waiters:
                slot.unwanted.set()
        if loaded is None:
            raise self._not_ready(slot)
        return loaded

    def _too_late(self, slot: ModelSlot) -> DeadlineExceededError:
        return DeadlineExceededError(
            f"the deadline passed while '{slot.ref}' was {slot.state} on node '{self._settings.node}'",
            hint="allow more time, or have the model in memory before it is asked (pin it)",
            tier="mec",
            model=slot.ref,
        )

    def _not_ready(self, slot: ModelSlot) -> NodeNotReadyError:
        node = self._settings.node
        if self.closing:
            return NodeNotReadyError(f"node '{node}' is stopping", retryable=True, tier="mec", model=slot.ref)
        underway = slot.state in ("pulling", "verifying", "loading") or slot.leaving
        detail = f" ({slot.detail})" if slot.detail else ""
        if underway and slot.progress is not None:
            detail = f" ({slot.progress[0]:,} of {slot.progress[1]:,} bytes)"
        return NodeNotReadyError(
            f"'{slot.ref}' is {slot.state} on node '{node}'{detail}",
            hint="GET /admin/models shows its progress"
            if underway
            else f"POST /admin/models/{slot.ref}/load",
            retryable=underway or slot.on_demand,
            tier="mec",
            model=slot.ref,
        )

    # Loading and unloading

    async def load(self, slot: ModelSlot, *, only_if_it_fits: bool = False) -> None:
        """Bring a model into memory; returns when it serves. One that is loaded already is left alone.

        Args:
            slot: the model.
            only_if_it_fits: whether to leave it, on disk and not an error, where others would have to go.

        Raises:
            MecrouteError: it could not be loaded; the slot says why.
        """
        slot.stopped = False
        async with slot.lock:
            if slot.loaded is None:
                with attempt(slot):
                    await self.load_locked(slot, slot.model, only_if_it_fits=only_if_it_fits)

    async def _demand(self, slot: ModelSlot) -> None:
        """Bring a model into memory because requests wait for it."""
        try:
            async with slot.lock:
                if slot.serving is not None:
                    slot.succeed()
                    return
                if slot.stopped:
                    slot.rest(slot.detail)
                    return
                try:
                    with attempt(slot):
                        await self.load_locked(slot, slot.model, demanded=True)
                except AbandonedError:
                    slot.rest("nobody waited for it any longer")
        finally:
            slot.demand = None

    async def load_locked(
        self,
        slot: ModelSlot,
        model: ModelVersion | None = None,
        *,
        demanded: bool = False,
        only_if_it_fits: bool = False,
    ) -> None:
        """The same for a caller that holds the slot's lock and records the result.

        An engine that serves is replaced once the new one has made its first token; it is closed when its
        last request has ended. Both must fit into memory.

        Args:
            slot: where the model is to serve.
            model: the registered version to load; default: the one the slot's reference names.
            demanded: whether it is for requests that wait: it is given up when they all do, and done when
                the model that was to leave stays after all.
            only_if_it_fits: see `load`.

        Raises:
            InsufficientMemoryError: it does not fit.
            NodeNotReadyError: what would have to leave is being worked on.
        """
        slot.begin("verifying", "checking the digest")
        if slot.file is not None:
            path = slot.file
        else:
            model, path = await self._in_loader(self._verified, slot.ref, model)
        # The slot still holds the version before, if there is one, so the new one says what it is.
        is_onnx = model.format == "onnx" if model is not None else slot.is_onnx
        if is_onnx:
            path = await self._in_loader(model_file, path)
        need = await self._in_loader(partial(estimate, path, self._settings, is_onnx=is_onnx))
        slot.begin("loading", "waiting for room")
        async with self._arranging:
            if demanded and slot.serving is not None:
                slot.succeed()
                return
            if demanded and slot.unwanted.is_set():
                raise AbandonedError
            if only_if_it_fits and not self.residency.budget.fits(need):
                slot.rest("it is loaded when it is asked for")
                return
            await self.residency.make_room(slot, need, demanded=demanded)
            slot.begin("loading", "reading the model file")
            with self.residency.budget.reserved(need):
                started_at = time.perf_counter()
                engine, grown = await self._in_loader(_open, slot.ref, path, self._settings, is_onnx)
                load_s = time.perf_counter() - started_at
            if self.closing:
                await asyncio.to_thread(engine.close)
                raise self._not_ready(slot)
            loaded = LoadedModel(
                engine,
                size_bytes=model.size_bytes if model is not None else need.file_bytes,
                load_s=load_s,
                on_idle=lambda ended: self.residency.idle(slot, ended),
            )
            self.residency.budget.hold(loaded, need.measured(grown))
            self.residency.appraise(slot, loaded)
            previous, slot.loaded = slot.loaded, loaded
            slot.model = model
            slot.seen_tasks, slot.seen_labels = slot.tasks, slot.labels
            self.loads[slot.ref] += 1
            self.load_seconds[slot.ref] += load_s
            slot.last_load_s = round(load_s, 3)
            slot.succeed()
        _log.info("%s is ready after %.1f s", slot.ref, load_s)
        if not loaded.in_flight:
            self.residency.idle(slot, loaded)
        if previous is not None:
            await self.residency.retire(previous)

    async def unload(self, slot: ModelSlot) -> None:
        """Take a model out of memory once its requests have ended; a deployment under way is cancelled.

        No request brings it back: a load or a deployment does.
        """
        slot.stopped = True
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
            await self.residency.retire(loaded)
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
        self.residency.closing.set()
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

    def _verified(self, ref: str, model: ModelVersion | None) -> tuple[ModelVersion, Path]:
        model = model or self._registry.get(ref)
        return model, self._registry.path(model)

    async def _in_loader(self, work: Callable[..., _T], *args: object) -> _T:
        if self.closing:
            raise NodeNotReadyError(f"node '{self._settings.node}' is stopping", retryable=True, tier="mec")
        return await asyncio.get_running_loop().run_in_executor(self._loader, work, *args)


def _give_back(waiter: asyncio.Future[LoadedModel | None]) -> None:
    """Return the engine that came in the moment in which its caller left."""
    if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
        loaded = waiter.result()
        if loaded is not None:
            loaded.returned()


def _open(ref: str, path: Path, settings: ServerSettings, is_onnx: bool) -> Any:
    return measuring(lambda: open_engine(ref, path, settings, is_onnx=is_onnx))
