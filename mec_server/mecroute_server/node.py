"""One MEC node: its registry, its models, its metrics, and what it tells of itself."""

from __future__ import annotations

import asyncio
from typing import Any
from urllib.parse import quote

from mecroute.device.hardware import hardware_class, usable_cpus
from mecroute.engines.llama.engine import LlamaEngine
from mecroute.errors import MecrouteError, ModelNotFoundError
from mecroute.nodes.load_header import ModelLoad
from mecroute_registry._version import __version__
from mecroute_registry.store import Registry
from mecroute_server import machine
from mecroute_server.deploy import Deployer
from mecroute_server.embedding import EmbeddingQueue
from mecroute_server.metrics import Metrics
from mecroute_server.pool import EnginePool
from mecroute_server.remembered import NodeMemory, Remembered
from mecroute_server.sessions import reported_prefixes
from mecroute_server.settings import ServerSettings
from mecroute_server.slot import ModelSlot
from mecroute_server.state_feed import StateFeed


class Node:
    """Everything one server process holds; belongs to one event loop.

    Args:
        settings: the node's settings.
    """

    def __init__(self, settings: ServerSettings) -> None:
        self.settings = settings
        self.registry = Registry(settings.registry_root)
        self.pool = EnginePool(settings, self.registry)
        self.memory = NodeMemory(
            settings.state_path or self.registry.root / "nodes" / f"{quote(settings.node, safe='')}.json"
        )
        self.deployer = Deployer(settings, self.registry, self.pool, self.memory)
        self.embeddings = EmbeddingQueue(settings.max_queue)
        self.metrics = Metrics(settings.node, self.pool)
        self.feed = StateFeed(
            lambda: [self.describe_model(slot) for slot in self.pool.slots()],
            stopping=lambda: self.pool.draining or self.pool.closing,
        )
        self._cpu = machine.CpuMeter()
        self._gpu_backend: str | None = None
        self._gpu_devices: list[dict[str, str | int]] = []
        self._starting: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Begin to load the models that the settings name and those of the last run; returns at once.

        What was deployed before is there at once. It is loaded, what is pinned first, as long as it fits
        beside what is loaded already; the rest is loaded when it is asked for.
        """
        for path in self.settings.model_files:
            self._starting.append(self.pool.spawn(self.pool.load(self.pool.add_file(path))))
        for ref in self.settings.models:
            self._starting.append(self.pool.spawn(self._start_ref(ref)))
        remembered = self.memory.models()
        for ref in sorted(remembered, key=lambda ref: not remembered[ref].pinned):
            slot = self.pool.slot(ref)
            if slot is not None:
                slot.pinned = slot.pinned or remembered[ref].pinned
            elif ref not in self.settings.models:
                self._starting.append(self.pool.spawn(self._restore(ref, remembered[ref])))
        self._starting.append(self.pool.spawn(self._look_for_gpu()))

    async def started(self) -> None:
        """Wait until every model named in the settings is loaded or has failed.

        Raises:
            MecrouteError: models were named and none of them can serve.
        """
        await asyncio.gather(*self._starting, return_exceptions=True)
        named = len(self.settings.model_files) + len(self.settings.models)
        if named and not self.pool.ready() and not self.pool.closing:
            for slot in self.pool.slots():
                if slot.error is not None:
                    raise slot.error

    def drain(self) -> None:
        """Say from now on that this node is not ready; it still takes what comes."""
        self.pool.draining = True

    def stop_admitting(self) -> None:
        """Refuse new requests and deployments from now on; what runs may finish."""
        self.pool.refuse()

    async def close(self) -> None:
        """Stop everything; running generations end with an error. Waits for threads at work."""
        await self.pool.close()
        await self.deployer.close()
        await self.embeddings.close()

    def describe(self) -> dict[str, Any]:
        """The node's state for `/admin/node`: measured values, bytes, tokens and seconds."""
        total, available = machine.memory_bytes()
        settings, budget = self.settings, self.pool.residency.budget
        return {
            "node": settings.node,
            "zone": settings.zone,
            "region": settings.region,
            "version": __version__,
            "hardware": hardware_class(),
            "cpu_count": usable_cpus(),
            "cpu_percent": self._cpu.percent(),
            "memory_total_bytes": total,
            "memory_available_bytes": available,
            "peak_memory_bytes": machine.peak_memory_bytes(),
            "memory_budget_bytes": budget.ram_bytes,
            "memory_resident_bytes": budget.resident.ram_bytes,
            "vram_budget_bytes": budget.vram_bytes,
            "vram_resident_bytes": budget.resident.vram_bytes,
            "gpu_backend": self._gpu_backend,
            "adapters": list(settings.adapters),
            "gpu_devices": self._gpu_devices,
            "store": settings.store_uri,
            "models": [self.describe_model(slot) for slot in self.pool.slots()],
            "retry_after_s": self._retry_after_s(),
        }

    def describe_model(self, slot: ModelSlot) -> dict[str, Any]:
        """One model's state for `/admin/models` and `/admin/node`."""
        loaded = slot.loaded
        held = self.pool.residency.budget.held(loaded) if loaded is not None else None
        return {
            **_describe(slot),
            "pinned": slot.pinned,
            "on_demand": loaded is None and self.pool.loads_when_asked(slot),
            "heat": round(slot.heat.value(), 3),
            "load_s": round(loaded.load_s, 3) if loaded is not None else slot.last_load_s,
            "resident_bytes": held.ram_bytes if held is not None else 0,
            "vram_resident_bytes": held.vram_bytes if held is not None else 0,
        }

    def load_of(self, ref: str) -> str | None:
        """How busy a model is, for the header of its answers; None where it is not loaded."""
        slot = self.pool.slot(ref)
        if slot is None or slot.loaded is None:
            return None
        engine = slot.loaded.engine
        stats = engine.stats()
        return ModelLoad(
            running=stats.running,
            queued=stats.queued,
            parallel=engine.n_parallel,
            prefill_tokens_per_s=stats.prefill_tokens_per_s,
            decode_tokens_per_s=stats.decode_tokens_per_s,
            decode_slowdown=stats.decode_slowdown,
            prefill_left_tokens=stats.prefill_left_tokens,
        ).encode()

    def _retry_after_s(self) -> float:
        """The longest any model that serves would now ask a caller to wait; 0 while every queue has room."""
        engines = [slot.loaded.engine for slot in self.pool.ready() if slot.loaded is not None]
        return max((engine.stats().retry_after_s for engine in engines), default=0.0)

    async def begin_load(self, ref: str) -> ModelSlot:
        """Begin to bring a model into memory; its slot shows how far it is.

        One of the registry is deployed without a digest, which pulls nothing where it is on the node.

        Raises: as `Deployer.deploy`.
        """
        slot = self.pool.slot(ref)
        if slot is None or slot.file is None:
            return await self.deployer.deploy(ref)
        if slot.loaded is None and slot.state != "loading":
            slot.begin("loading", "waiting for its turn")
            self.pool.spawn(self.pool.load(slot))
        return slot

    async def _start_ref(self, ref: str) -> None:
        try:
            slot = await self.deployer.deploy(ref, remember=False)
        except MecrouteError as error:
            self.pool.add_ref(ref).fail(error)
            raise
        if slot.deployment is not None:
            await slot.deployment

    async def _restore(self, ref: str, entry: Remembered) -> None:
        """Bring back a model of the last run, without having others leave for it."""
        slot = self.pool.add_ref(ref)
        slot.pinned = slot.pinned or entry.pinned
        try:
            model = await asyncio.to_thread(self.registry.get, ref)
        except ModelNotFoundError as error:
            if entry.digest is None:  # a file, pinned once, that is no longer served
                self.pool.discard(slot)
            elif self.settings.store_uri is not None:
                await self.deployer.deploy(ref, entry.digest)
            else:
                slot.fail(error)
            return
        slot.model = model
        await self.pool.load(slot, only_if_it_fits=not slot.pinned)

    async def pin(self, slot: ModelSlot, pinned: bool) -> None:
        """Keep a model in memory from now on, or no longer; a pinned one that is not there is loaded.

        Raises:
            ConfigError: it could not be written down; nothing has changed then.
        """
        self.memory.pinned(slot.ref, pinned)
        slot.pinned = pinned
        if pinned and slot.loaded is None and slot.settled.is_set():
            slot.begin("loading", "waiting for its turn")
            self.pool.spawn(self.pool.load(slot))
        elif not pinned and slot.loaded is not None and not slot.loaded.in_flight:
            self.pool.residency.idle(slot, slot.loaded)

    async def _look_for_gpu(self) -> None:
        self._gpu_backend = await asyncio.to_thread(machine.gpu_backend)
        self._gpu_devices = await asyncio.to_thread(machine.gpu_devices)


def _describe(slot: ModelSlot) -> dict[str, Any]:
    engine = slot.loaded.engine if slot.loaded is not None else None
    stats = engine.stats() if engine is not None else None
    error = slot.error
    quantization = slot.model.quantization if slot.model is not None else None
    size_bytes = slot.model.size_bytes if slot.model is not None else None
    if engine is not None and slot.loaded is not None:
        quantization = quantization or engine.facts.quantization
        size_bytes = slot.loaded.size_bytes
    return {
        "ref": slot.ref,
        "digest": slot.model.digest if slot.model is not None else None,
        "file_digest": slot.model.file_digest if slot.model is not None else None,
        "state": slot.state,
        "detail": slot.detail,
        "error": {"code": error.code, "message": error.message, "hint": error.hint} if error else None,
        "progress": {"done": slot.progress[0], "total": slot.progress[1]} if slot.progress else None,
        "context_length": engine.n_ctx if engine else None,
        "parallel": engine.n_parallel if engine else None,
        "threads": engine.n_threads if engine else None,
        "providers": list(getattr(engine, "providers", ())),
        "running": stats.running if stats else 0,
        "queued": stats.queued if stats else 0,
        "kv_used_tokens": stats.kv_used_tokens if stats else 0,
        "kv_total_tokens": stats.kv_total_tokens if stats else 0,
        "prefix_hit_rate": getattr(stats, "prefix_hit_rate", None),
        "prefixes": reported_prefixes(engine.residents()) if isinstance(engine, LlamaEngine) else [],
        "prefill_tokens_per_s": stats.prefill_tokens_per_s if stats else None,
        "decode_tokens_per_s": stats.decode_tokens_per_s if stats else None,
        "decode_slowdown": stats.decode_slowdown if stats else None,
        "prefill_left_tokens": stats.prefill_left_tokens if stats else 0,
        "size_bytes": size_bytes,
        "quantization": quantization,
        "accuracy": slot.model.accuracy if slot.model is not None else None,
        "tasks": slot.tasks,
        "labels": slot.labels,
    }
