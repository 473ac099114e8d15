"""Encoders and classifiers of the device, run in this process by ONNX Runtime."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from functools import partial
from typing import TYPE_CHECKING, Any

from mecroute.agents.resource import DeviceLoad
from mecroute.classification import classify_answer, places_of, texts_of
from mecroute.config.schema import DeviceConfig
from mecroute.decision import Candidate
from mecroute.device.text_models import is_text_model
from mecroute.errors import (
    InvalidModelFileError,
    InvalidRequestError,
    MissingExtraError,
    ModelNotFoundError,
)
from mecroute.target import Target
from mecroute.tiers.base import Call
from mecroute.tiers.shared_loads import SharedLoads
from mecroute_registry.facts import ModelVersion
from mecroute_registry.store import Registry

if TYPE_CHECKING:
    from mecroute.engines.onnx.engine import OnnxEngine

_LOG = logging.getLogger("mecroute.device")
_MAX_QUEUE, _MAX_BATCH = 64, 32
_CLASSIFY_FIELDS = frozenset({"input", "labels", "top_k", "user"})


class TextModels:
    """Loads each on first use and keeps it loaded. For one event loop; they compute in threads.

    Args:
        config: `[device]`.
        registry: where the others lie; their digests are verified before they are loaded.
    """

    def __init__(self, config: DeviceConfig, registry: Registry) -> None:
        self._threads = config.text_threads
        self._files = {model.name: model.path.expanduser() for model in config.text_models}
        self._registry = registry
        #: By digest, of registered models: whether they are of texts.
        self._of_texts: dict[str, bool] = {}
        self._engines: SharedLoads[OnnxEngine] = SharedLoads()

    def holds(self, target: Target) -> bool:
        """Whether a target of the device is a text model."""
        if target.digest is None:
            return target.model in self._files
        known = self._of_texts.get(target.digest)
        if known is None:
            try:
                known = is_text_model(self._registered(target))
            except ModelNotFoundError:
                return False  # it was removed since; who loads it says so
            self._of_texts[target.digest] = known
        return known

    def loads(self) -> dict[str, DeviceLoad]:
        """Those that are loaded now, and how busy each is."""
        found = {}
        for ref, engine in self._engines.loaded().items():
            stats = engine.stats()
            found[ref] = DeviceLoad(stats.running, stats.queued, engine.n_parallel, None, None, None)
        return found

    async def complete(self, call: Call) -> dict[str, Any]:
        """The answer to `embed` or `classify`; see `Tier`.

        Raises:
            UnknownLabelError: a classifier lacks one of the labels.
            InvalidModelFileError: the model is of another kind than its configuration says.
        """
        engine = await self.engine(call.target)
        if call.task == "embed":
            return await asyncio.to_thread(_embed, engine, call)
        return await asyncio.to_thread(_classify, engine, call)

    async def engine(self, target: Target) -> OnnxEngine:
        """The engine of a text model.

        Raises:
            ArtifactError: it is missing, damaged, or no model of texts.
            MissingExtraError: the `device` extra is not installed.
        """
        return await self._engines.get(target.model, partial(self._load, target))

    def loaded(self, target: Target) -> OnnxEngine | None:
        """The engine of a text model; None while it is not in memory, which it soon will be."""
        engine = self._engines.loaded().get(target.model)
        if engine is None and target.model not in self._engines:
            self._begin(target)
        return engine

    def target_of(self, name: str) -> Target:
        """The text model of that name: one of the configuration, or of the registry.

        Raises:
            ModelNotFoundError: there is none.
        """
        if name in self._files:
            return Target("device", name)
        model = self._registry.get(name)
        return Target("device", model.ref, digest=model.digest)

    def warm(self, candidates: Iterable[Candidate]) -> None:
        """Have the text models among the candidates of a request loaded, for the next one. Returns at once.

        A model that must be loaded first loses to one that need not be, and would lose again.
        """
        for candidate in candidates:
            target = candidate.target
            if target.tier != "device" or target.model in self._engines or not self.holds(target):
                continue
            self._begin(target)

    def _begin(self, target: Target) -> None:
        task = self._engines.begin(target.model, partial(self._load, target))
        task.add_done_callback(partial(self._warmed, target.model))

    def _warmed(self, ref: str, task: asyncio.Task[OnnxEngine]) -> None:
        error = None if task.cancelled() else task.exception()
        if error is not None:
            # Whoever asks for it is told; nobody did.
            _LOG.warning("%s was not loaded ahead: %s", ref, error)

    async def aclose(self) -> None:
        """Unload all."""
        await self._engines.aclose()

    def _registered(self, target: Target) -> ModelVersion:
        return self._registry.get(f"{target.model.partition(':')[0]}@{target.digest}")

    def _load(self, target: Target) -> OnnxEngine:
        try:
            from mecroute.engines.onnx.encoder import open_onnx
        except ImportError as error:
            raise MissingExtraError("device", "running a text model on this device") from error
        file = self._files.get(target.model)
        if file is None or target.digest is not None:
            file = self._registry.path(self._registered(target))
        return open_onnx(
            file,
            n_threads=self._threads,
            max_queue=_MAX_QUEUE,
            max_batch=_MAX_BATCH,
            # Nobody else is there to wait for, as on a node.
            max_delay_ms=0.0,
            name=target.model,
        )


def _embed(engine: OnnxEngine, call: Call) -> dict[str, Any]:
    from mecroute.engines.llama.openai.embeddings import embeddings_response, parse_embeddings

    asked = parse_embeddings(call.body)
    if engine.encoder is None:
        raise InvalidModelFileError(f"{engine.name} does not embed texts", hint=_hint(engine))
    vectors, tokens = engine.encoder.embed(asked.inputs, asked.dimensions)
    return embeddings_response(
        vectors.tolist(), tokens=tokens, model=call.target.model, as_base64=asked.as_base64
    )


def _classify(engine: OnnxEngine, call: Call) -> dict[str, Any]:
    unknown = sorted(call.body.keys() - _CLASSIFY_FIELDS)
    if unknown:
        raise InvalidRequestError(f"'{unknown[0]}' is no field of a request for classes", hint="leave it out")
    classifier = engine.classifier
    if classifier is None:
        raise InvalidModelFileError(f"{engine.name} does not classify texts", hint=_hint(engine))
    wanted = call.body.get("labels")
    known = classifier.classes.labels
    places = places_of(known, wanted, engine.name)
    rows, tokens = classifier.classify(texts_of(call.body), places)
    return classify_answer(
        rows.tolist(),
        known if wanted is None else wanted,
        id=call.request_id,
        model=call.target.model,
        tokens=tokens,
        top_k=call.body.get("top_k"),
    )


def _hint(engine: OnnxEngine) -> str:
    outputs = ", ".join(spec.name for spec in engine.outputs)
    return f"it has the outputs {outputs}; a classifier has 'logits', and its config.json names the classes"
