"""`/api/*`: the Ollama API, on the models of this node."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from mecroute.engines.llama import openai
from mecroute.engines.llama.engine import LlamaEngine
from mecroute.engines.llama.openai.fields import known_fields
from mecroute.errors import InvalidRequestError, ModelNotFoundError
from mecroute_registry._version import __version__
from mecroute_server import encoding
from mecroute_server.body import read_json_object
from mecroute_server.disconnect import CallerLeftError, unless_caller_leaves
from mecroute_server.formats import ollama as shapes
from mecroute_server.formats.keep_alive import parse_keep_alive
from mecroute_server.generation import Endpoint, generate, lend, record_embedding, wants_stream
from mecroute_server.node import Node
from mecroute_server.routes.node import CurrentNode
from mecroute_server.slot import Lease, LoadedModel, ModelSlot, OnnxLease

if TYPE_CHECKING:
    from mecroute.engines.onnx.engine import OnnxEngine

router = APIRouter(prefix="/api")

_EMBED = frozenset({"model", "input", "truncate", "options", "keep_alive", "dimensions"})


def _streams(body: Mapping[str, Any]) -> bool:
    return wants_stream(body, default=True)


_CHAT = Endpoint("", shapes.parse_chat, shapes.chat_whole, shapes.chat_pieces, shapes.CHAT_LINES, _streams)
_GENERATE = Endpoint(
    "",
    shapes.parse_generate,
    shapes.generate_whole,
    shapes.generate_pieces,
    shapes.GENERATE_LINES,
    _streams,
)


@router.post("/chat")
async def chat(request: Request, node: CurrentNode) -> Response:
    """A chat answer, as lines of JSON or whole."""
    body = await _read(request, node)
    if shapes.asks_nothing(body):
        return await _load(request, node, body, shapes.loaded_chat)
    return await generate(request, node, _CHAT, body)


@router.post("/generate")
async def generate_(request: Request, node: CurrentNode) -> Response:
    """The answer to a prompt, as lines of JSON or whole."""
    body = await _read(request, node)
    if shapes.asks_nothing(body):
        return await _load(request, node, body, shapes.loaded_generate)
    return await generate(request, node, _GENERATE, body)


@router.post("/embed")
async def embed(request: Request, node: CurrentNode) -> Response:
    """One vector per text. A text that is too long is refused, never cut off."""
    body = await _read(request, node)
    fields = known_fields(body, _EMBED, {})
    given = fields.get("input")
    if not isinstance(given, str) and not (isinstance(given, list) and all(type(x) is str for x in given)):
        raise InvalidRequestError("'input' must be a text or a list of texts")
    asked = openai.parse_embeddings({"input": given, "dimensions": fields.get("dimensions") or None})
    started_at = time.perf_counter()
    lease: Lease | OnnxLease
    if isinstance(body["model"], str) and await node.pool.serves_onnx(body["model"]):
        lease = await node.pool.acquire_onnx(body["model"])
        request.state.model = lease.ref
        embedding = _encode(lease, asked)
    else:
        lease = await lend(request, node, body)
        embedding = _embed(node, lease, asked)
    lent_at = time.perf_counter()
    try:
        vectors, tokens = await unless_caller_leaves(request, embedding)
    except CallerLeftError:
        node.metrics.record_cancelled(lease.ref)
        return Response(status_code=499)
    record_embedding(request, node, lease.ref, tokens)
    return JSONResponse(
        {
            "model": lease.ref,
            "embeddings": vectors,
            "total_duration": int((time.perf_counter() - started_at) * 1e9),
            "load_duration": int((lent_at - started_at) * 1e9),
            "prompt_eval_count": tokens,
        }
    )


async def _embed(node: Node, lease: Lease, asked: openai.EmbeddingRequest) -> tuple[list[list[float]], int]:
    vectors, tokens = await node.embeddings.embed(lease, asked.inputs)
    return openai.shortened(vectors, asked.dimensions, lease.ref), tokens


async def _encode(lease: OnnxLease, asked: openai.EmbeddingRequest) -> tuple[list[list[float]], int]:
    try:
        vectors, tokens = await encoding.embed(encoding.encoder_of(lease), asked.inputs, asked.dimensions)
    finally:
        lease.release()
    return [vector.tolist() for vector in vectors], tokens


@router.get("/tags")
async def tags(node: CurrentNode) -> JSONResponse:
    """The models that can be asked now."""
    offered = node.pool.offered()
    return JSONResponse(
        {"models": [_listed(slot) for slot in offered if not slot.is_onnx or "embed" in slot.tasks]}
    )


@router.post("/show")
async def show(request: Request, node: CurrentNode) -> JSONResponse:
    """One of them."""
    name = (await _read(request, node)).get("model")
    if not isinstance(name, str) or not name:
        raise InvalidRequestError("'model' is missing: which model is to be shown?")
    slot = node.pool.find(name)
    if slot.loaded is None:
        raise ModelNotFoundError(
            f"'{slot.ref}' is {slot.state} on this node", hint="GET /api/tags lists the models", model=name
        )
    engine = slot.loaded.engine
    if not isinstance(engine, LlamaEngine):
        return JSONResponse(_shown_encoder(slot, slot.loaded, engine))
    facts = engine.facts
    family = facts.architecture
    return JSONResponse(
        {
            "modelfile": f"FROM {slot.ref}\n",
            "parameters": "",
            # Ollama's templates are written in Go's language, a GGUF's own in Jinja.
            "template": "",
            "license": facts.license or "",
            "modified_at": shapes.timestamp(slot.loaded.since),
            "details": _details_of(engine),
            "model_info": {
                "general.architecture": family,
                "general.basename": facts.name or slot.name,
                "general.parameter_count": facts.parameters,
                f"{family}.context_length": engine.n_ctx,
                f"{family}.embedding_length": facts.embedding_length,
                "tokenizer.ggml.model": facts.tokenizer_model,
            },
            "capabilities": _capabilities(engine),
        }
    )


@router.get("/version")
async def version() -> JSONResponse:
    """The version of mecroute, not of Ollama."""
    return JSONResponse({"version": __version__})


async def _read(request: Request, node: Node) -> dict[str, Any]:
    """The body, its model under the name it has on this node: `latest` is what Ollama calls no tag."""
    body = await read_json_object(request, node.settings.max_body_bytes)
    request.state.keep_alive_s = parse_keep_alive(body.get("keep_alive"))
    name = body.get("model") or body.get("name")
    if isinstance(name, str) and name.endswith(":latest") and node.pool.slot(name) is None:
        name = name.removesuffix(":latest")
    return {**body, "model": name}


async def _load(
    request: Request, node: Node, body: Mapping[str, Any], answer: Callable[[str, str], dict[str, Any]]
) -> JSONResponse:
    """Have a model in memory, or with a `keep_alive` of 0 out of it once its requests have ended."""
    if request.state.keep_alive_s == 0 and isinstance(body.get("model"), str):
        slot = await node.pool.wanted(body["model"])
        node.pool.residency.keep(slot, 0)
        return JSONResponse(answer(slot.ref, "unload"))
    lease = await lend(request, node, body)
    lease.release()
    return JSONResponse(answer(lease.ref, "load"))


def _listed(slot: ModelSlot) -> dict[str, Any]:
    model, loaded = slot.model, slot.loaded
    if loaded is not None:
        since, size = loaded.since, loaded.size_bytes
    elif model is not None:
        since, size = model.created, model.size_bytes
    else:
        since, size = datetime.fromtimestamp(0, UTC), 0
    engine = loaded.engine if loaded is not None else None
    if engine is not None:
        details = _details_of(engine)
    else:
        details = _details(
            (model and model.architecture) or "", (model and model.parameters) or 0,
            (model and model.quantization) or "", "onnx" if slot.is_onnx else "gguf",
        )  # fmt: skip
    return {
        "name": slot.ref,
        "model": slot.ref,
        "modified_at": shapes.timestamp(since),
        "size": size,
        "digest": model.digest.removeprefix("sha256:") if model else "",
        "details": details,
    }


def _shown_encoder(slot: ModelSlot, loaded: LoadedModel, engine: OnnxEngine) -> dict[str, Any]:
    if engine.encoder is None:
        raise ModelNotFoundError(
            f"'{slot.ref}' is an ONNX model that embeds no texts, which Ollama's API has no place for",
            hint=f"GET /v2/models/{slot.ref} shows it",
            model=slot.ref,
        )
    family = engine.encoder.family
    return {
        "modelfile": f"FROM {slot.ref}\n",
        "parameters": "",
        "template": "",
        "license": (slot.model and slot.model.license) or "",
        "modified_at": shapes.timestamp(loaded.since),
        "details": _details_of(engine),
        "model_info": {
            "general.architecture": family,
            "general.basename": slot.name,
            "general.parameter_count": engine.facts.parameters,
            f"{family or 'onnx'}.context_length": engine.encoder.max_tokens,
        },
        "capabilities": ["embedding"],
    }


def _capabilities(engine: LlamaEngine) -> list[str]:
    """In Ollama's words."""
    if not engine.generates:
        return ["embedding"] if engine.pooling != "rank" else []
    return ["completion", "tools", *(["insert"] if engine.can_infill else [])]


def _details_of(engine: LlamaEngine | OnnxEngine) -> dict[str, Any]:
    if isinstance(engine, LlamaEngine):
        gguf = engine.facts
        return _details(gguf.architecture, gguf.parameters, gguf.quantization, "gguf")
    family = engine.encoder.family if engine.encoder is not None else ""
    return _details(family, engine.facts.parameters, engine.facts.quantization or "", "onnx")


def _details(family: str, parameters: int, quantization: str, format: str) -> dict[str, Any]:
    return {
        "parent_model": "",
        "format": format,
        "family": family,
        "families": [family] if family else [],
        "parameter_size": _in_short(parameters),
        "quantization_level": quantization,
    }


def _in_short(parameters: int) -> str:
    """`134.52M`, as Ollama writes it."""
    for unit, size in (("B", 10**9), ("M", 10**6), ("K", 10**3)):
        if parameters >= size:
            return f"{parameters / size:.4g}{unit}"
    return str(parameters)
