"""The device: models of the local registry, run in this process by llama.cpp, and those of texts."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Collection, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from mecroute.agents.resource import DeviceLoad
from mecroute.config.schema import DeviceConfig
from mecroute.decision import Candidate
from mecroute.device.text_models import TEXT_TASKS
from mecroute.errors import ConfigError, MecrouteError, MissingExtraError, NodeNotReadyError
from mecroute.target import Target
from mecroute.tiers.base import Call
from mecroute.tiers.prompt_encoder import PromptEncoder
from mecroute.tiers.shared_loads import SharedLoads
from mecroute.tiers.text_models import TextModels
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
        self._engines: SharedLoads[LlamaEngine] = SharedLoads()
        self._texts = TextModels(config, registry)

    def loads(self) -> Mapping[str, DeviceLoad]:
        """The models that are loaded now, by reference, and how busy each is."""
        found = self._texts.loads()
        for ref, engine in self._engines.loaded().items():
            stats = engine.stats()
            found[ref] = DeviceLoad(
                running=stats.running,
                queued=stats.queued,
                parallel=stats.n_parallel,
                prefill_tokens_per_s=stats.prefill_tokens_per_s,
                decode_tokens_per_s=stats.decode_tokens_per_s,
                decode_slowdown=stats.decode_slowdown,
            )
        return found

    def language_models(self) -> Collection[str]:
        """References of the language models that are loaded now: those that take memory to speak of."""
        return self._engines.loaded()

    def prompt_encoder(self, name: str) -> PromptEncoder:
        """An encoder for routing, by the name of a text model.

        Raises:
            ConfigError: there is no such text model.
        """
        try:
            target = self._texts.target_of(name)
        except MecrouteError as error:
            raise ConfigError(f"router.encoder: {error.message}", hint=error.hint) from error
        if not self._texts.holds(target):
            raise ConfigError(
                f"router.encoder: '{name}' is no text model of the device",
                hint="name one of [[device.text_models]], or an ONNX encoder of the registry",
            )
        return PromptEncoder(self._texts, target)

    def warm(self, candidates: Iterable[Candidate]) -> None:
        """Have the text models among the candidates loaded, for the next request. Returns at once."""
        self._texts.warm(candidates)

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
        if call.task in TEXT_TASKS and self._texts.holds(call.target):
            return await self._texts.complete(call)
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
        await self._texts.aclose()
        await self._engines.aclose()

    async def _engine(self, target: Target) -> LlamaEngine:
        return await self._engines.get(target.model, lambda: self._load(target))

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
