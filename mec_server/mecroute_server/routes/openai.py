"""`/v1/*`: the OpenAI API, on the models of this node."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Mapping
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from mecroute.engines.llama import openai as shapes
from mecroute.engines.llama.generation import Answers
from mecroute.errors import ModelNotFoundError
from mecroute_server.body import read_json_object
from mecroute_server.dialects import dialect_of
from mecroute_server.disconnect import CallerLeftError, unless_caller_leaves
from mecroute_server.encoding import answer_embeddings
from mecroute_server.formats import anthropic, responses
from mecroute_server.generation import Endpoint, Reply, generate, lend, record_embedding, wants_stream
from mecroute_server.routes.node import CurrentNode
from mecroute_server.slot import ModelSlot

router = APIRouter(prefix="/v1")


def _chat_whole(generation: Answers, reply: Reply) -> Awaitable[dict[str, Any]]:
    return shapes.chat_completion(generation, reply.model, reply.id)


def _chat_chunks(generation: Answers, reply: Reply) -> AsyncIterator[dict[str, Any]]:
    return shapes.chat_chunks(generation, reply.model, shapes.wants_usage(reply.body), reply.id)


def _text_whole(generation: Answers, reply: Reply) -> Awaitable[dict[str, Any]]:
    return shapes.text_completion(generation, reply.model, reply.id)


def _text_chunks(generation: Answers, reply: Reply) -> AsyncIterator[dict[str, Any]]:
    return shapes.text_chunks(generation, reply.model, shapes.wants_usage(reply.body), reply.id)


def _streams(body: Mapping[str, Any]) -> bool:
    shapes.wants_usage(body)  # stream_options are checked whether there is a stream or not
    return wants_stream(body)


_CHAT = Endpoint("chatcmpl-", shapes.parse_chat, _chat_whole, _chat_chunks, wants_stream=_streams)
_COMPLETION = Endpoint("cmpl-", shapes.parse_completion, _text_whole, _text_chunks, wants_stream=_streams)
_RESPONSE = Endpoint(
    "resp_", responses.parse_response, responses.response, responses.events, responses.EVENTS
)


@router.post("/chat/completions")
async def chat_completions(request: Request, node: CurrentNode) -> Response:
    """A chat answer, whole or as server-sent events."""
    body = await read_json_object(request, node.settings.max_body_bytes)
    return await generate(request, node, _CHAT, body)


@router.post("/completions")
async def completions(request: Request, node: CurrentNode) -> Response:
    """The continuation of a text, whole or as server-sent events."""
    body = await read_json_object(request, node.settings.max_body_bytes)
    return await generate(request, node, _COMPLETION, body)


@router.post("/responses")
async def create_response(request: Request, node: CurrentNode) -> Response:
    """An answer in the form of the Responses API, whole or as server-sent events; stored nowhere."""
    body = await read_json_object(request, node.settings.max_body_bytes)
    return await generate(request, node, _RESPONSE, body)


@router.post("/embeddings")
async def embeddings(request: Request, node: CurrentNode) -> Response:
    """One vector per text, as numbers or as base64 of little-endian float32."""
    body = await read_json_object(request, node.settings.max_body_bytes)
    if isinstance(body.get("model"), str) and await node.pool.serves_onnx(body["model"]):
        return await answer_embeddings(request, node, body)
    asked = shapes.parse_embeddings(body)
    lease = await lend(request, node, body)
    try:
        vectors, tokens = await unless_caller_leaves(request, node.embeddings.embed(lease, asked.inputs))
    except CallerLeftError:
        node.metrics.record_cancelled(lease.ref)
        return Response(status_code=499)
    vectors = shapes.shortened(vectors, asked.dimensions, lease.ref)
    answer = shapes.embeddings_json(vectors, tokens=tokens, model=lease.ref, as_base64=asked.as_base64)
    record_embedding(request, node, lease.ref, tokens)
    return Response(answer, media_type="application/json")


@router.get("/models")
async def list_models(request: Request, node: CurrentNode) -> JSONResponse:
    """The models that can be asked now; Anthropic's clients get them in Anthropic's shape."""
    if dialect_of(request.url.path, request.headers) == "anthropic":
        return JSONResponse(anthropic.model_page(node.pool.offered()))
    return JSONResponse({"object": "list", "data": [_model_object(slot) for slot in node.pool.offered()]})


@router.get("/models/{name:path}")
async def retrieve_model(name: str, request: Request, node: CurrentNode) -> JSONResponse:
    """One of them."""
    slot = await node.pool.wanted(name)
    if slot not in node.pool.offered():
        raise ModelNotFoundError(
            f"'{slot.ref}' is {slot.state} on this node", hint="GET /v1/models lists the models", model=name
        )
    if dialect_of(request.url.path, request.headers) == "anthropic":
        return JSONResponse(anthropic.model_info(slot))
    return JSONResponse(_model_object(slot))


def _model_object(slot: ModelSlot) -> dict[str, Any]:
    model, loaded = slot.model, slot.loaded
    since = loaded.since if loaded is not None else model.created if model is not None else None
    described: dict[str, Any] = {
        "digest": model.digest if model is not None else None,
        "loaded": loaded is not None,
        "context_length": None,
        "parallel": None,
        "parameters": model.parameters if model is not None else None,
        "quantization": model.quantization if model is not None else None,
        "size_bytes": model.size_bytes if model is not None else None,
    }
    if loaded is not None:
        engine = loaded.engine
        described |= {
            "context_length": engine.n_ctx,
            "parallel": engine.n_parallel,
            "parameters": engine.facts.parameters,
            "quantization": engine.facts.quantization,
            "size_bytes": loaded.size_bytes,
        }
    return {
        "id": slot.ref,
        "object": "model",
        "created": int(since.timestamp()) if since is not None else 0,
        "owned_by": "mecroute",
        "mecroute": described,
    }
