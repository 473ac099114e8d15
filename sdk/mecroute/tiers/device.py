"""The device: models of the local registry, run in this process by llama.cpp."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping
from typing import TYPE_CHECKING, Any

from mecroute.agents.resource import DeviceLoad
from mecroute.config.schema import DeviceConfig
from mecroute.errors import MissingExtraError, NodeNotReadyError
from mecroute.target import Target
from mecroute.tiers.base import Call
from mecroute_registry.facts import ModelVersion
from mecroute_registry.store import Registry

if TYPE_CHECKING:
    from mecroute.engines.llama.engine import LlamaEngine


class DeviceTier:
    """Loads models on first use and keeps them loaded. For one event loop.

    The bytes of a model are verified against their digest before they are loaded.
    """

    def __init__(self, config: DeviceConfig, registry: Registry) -> None:
        self._config = config
        self._registry = registry
        self._engines: dict[str, asyncio.Task[LlamaEngine]] = {}

    def loads(self) -> Mapping[str, DeviceLoad]:
        """The models that are loaded now, by reference, and how busy each is."""
        found = {}
        for ref, task in self._engines.items():
            if not task.done() or task.cancelled() or task.exception() is not None:
                continue
            stats = task.result().stats()
            found[ref] = DeviceLoad(
                running=stats.running,
                queued=stats.queued,
                parallel=stats.n_parallel,
                prefill_tokens_per_s=stats.prefill_tokens_per_s,
                decode_tokens_per_s=stats.decode_tokens_per_s,
                decode_slowdown=stats.decode_slowdown,
            )
        return found

    async def preload(self, model: ModelVersion) -> None:
        """Load a model of the registry before anybody asks for it.

        Raises:
            ArtifactError: it is missing or damaged.
            MissingExtraError: the `device` extra is not installed.
        """
        await self._engine(Target("device", model.ref, digest=model.digest))

    def continues_prefix(self, target: Target) -> bool:  # noqa: ARG002 - the protocol's
        """Always: our engine continues a final assistant message exactly."""
        return True

    async def complete(self, call: Call) -> dict[str, Any]:
        """The whole answer; see `Tier`. Cancelling the call stops the model."""
        from mecroute.engines.llama import openai

        if call.task in ("classify", "infer"):
            raise NodeNotReadyError(
                f"the device does not run '{call.task}'", hint="a MEC node does", tier="device"
            )
        engine = await self._engine(call.target)
        if call.task == "embed":
            asked = openai.parse_embeddings(call.body)
            vectors, tokens = await asyncio.to_thread(engine.embed, asked.inputs)
            vectors = openai.shortened(vectors, asked.dimensions, call.target.model)
            return openai.embeddings_response(
                vectors, tokens=tokens, model=call.target.model, as_base64=asked.as_base64
            )
        if call.task == "completion":
            generation = engine.submit_all(openai.parse_completion(call.body, engine))
            with generation:
                return await openai.text_completion(generation, model=call.target.model, id=call.request_id)
        generation = engine.submit(openai.parse_chat(call.body, engine))
        with generation:
            return await openai.chat_completion(generation, model=call.target.model, id=call.request_id)

    async def stream(self, call: Call) -> AsyncGenerator[dict[str, Any]]:
        """The answer as chunks; see `Tier`. Closing the stream stops the model."""
        from mecroute.engines.llama import openai

        engine = await self._engine(call.target)
        if call.task == "chat":
            answers, shape = engine.submit_all((openai.parse_chat(call.body, engine),)), openai.chat_chunks
        else:
            answers = engine.submit_all(openai.parse_completion(call.body, engine))
            shape = openai.text_chunks
        with answers as generation:
            async for chunk in shape(
                generation, model=call.target.model, include_usage=True, id=call.request_id
            ):
                yield chunk

    async def aclose(self) -> None:
        """Unload every model."""
        engines, self._engines = self._engines, {}
        for task in engines.values():
            task.cancel()
        for loaded in await asyncio.gather(*engines.values(), return_exceptions=True):
            if not isinstance(loaded, BaseException):
                await asyncio.to_thread(loaded.close)

    async def _engine(self, target: Target) -> LlamaEngine:
        """The engine of a target's model; callers that come while it is loading share that load."""
        task = self._engines.get(target.model)
        if task is None:
            task = asyncio.create_task(asyncio.to_thread(self._load, target))
            self._engines[target.model] = task
        try:
            # Shielded: one caller that gives up must not stop the load for the others.
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            raise
        except BaseException:
            self._engines.pop(target.model, None)  # the next request tries again
            raise

    def _load(self, target: Target) -> LlamaEngine:
        try:
            from mecroute.engines.llama.engine import LlamaEngine
        except ImportError as error:
            raise MissingExtraError("device", "running a model on this device") from error
        model = self._registry.get(f"{target.model.partition(':')[0]}@{target.digest}")
        return LlamaEngine(
            self._registry.path(model),
            n_ctx=self._config.context,
            n_parallel=1,
            n_threads=self._config.threads,
            n_gpu_layers=self._config.gpu_layers,
            name=model.ref,
        )
