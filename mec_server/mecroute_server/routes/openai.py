"""`/v1/*`: the OpenAI API, on the models of this node."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from mecroute.engines.llama import openai as shapes
from mecroute.engines.llama.engine import Generation, GenerationRequest, LlamaEngine
from mecroute.errors import InvalidRequestError, ModelNotFoundError
from mecroute_server.body import read_json_object
from mecroute_server.disconnect import CallerLeftError, unless_caller_leaves
from mecroute_server.encoding import answer_embeddings
from mecroute_server.node import Node
from mecroute_server.routes.node import CurrentNode
from mecroute_server.slot import Lease, ModelSlot
from mecroute_server.sse import EventStream

router = APIRouter(prefix="/v1")

#: Tokenizing a body larger than this takes long enough to hold up the tokens of other streams.
_LARGE_BODY_CHARS = 16_384
#: How long a stream's status waits for its first token; after that it is 200, and comments keep it alive.
_FIRST_CHUNK_S = 5.0


@dataclass(frozen=True, slots=True)
class _Endpoint:
    """The three functions that make one OpenAI endpoint of an engine."""

    id_prefix: str
    parse: Callable[[Mapping[str, Any], LlamaEngine], GenerationRequest]
    whole: Callable[[Generation, str, str], Awaitable[dict[str, Any]]]
    chunks: Callable[[Generation, str, bool, str], AsyncIterator[dict[str, Any]]]


_CHAT = _Endpoint("chatcmpl", shapes.parse_chat, shapes.chat_completion, shapes.chat_chunks)
_COMPLETION = _Endpoint("cmpl", shapes.parse_completion, shapes.text_completion, shapes.text_chunks)


@router.post("/chat/completions")
async def chat_completions(request: Request, node: CurrentNode) -> Response:
    """A chat answer, whole or as server-sent events."""
    return await _generate(request, node, _CHAT)


@router.post("/completions")
async def completions(request: Request, node: CurrentNode) -> Response:
    """The continuation of a text, whole or as server-sent events."""
    return await _generate(request, node, _COMPLETION)


@router.post("/embeddings")
async def embeddings(request: Request, node: CurrentNode) -> Response:
    """One vector per text, as numbers or as base64 of little-endian float32."""
    body = await read_json_object(request, node.settings.max_body_bytes)
    if isinstance(body.get("model"), str) and node.pool.serves_onnx(body["model"]):
        return await answer_embeddings(request, node, body)
    texts, as_base64 = shapes.parse_embeddings(body)
    lease = await _lease(request, node, body)
    try:
        vectors, tokens = await unless_caller_leaves(request, node.embeddings.embed(lease, texts))
    except CallerLeftError:
        node.metrics.record_cancelled(lease.ref)
        return Response(status_code=499)
    answer = shapes.embeddings_response(vectors, tokens=tokens, model=lease.ref, as_base64=as_base64)
    node.metrics.record_embedding(lease.ref, tokens)
    return JSONResponse(answer)


@router.get("/models")
async def list_models(node: CurrentNode) -> JSONResponse:
    """The models that can be asked now."""
    return JSONResponse({"object": "list", "data": [_model_object(slot) for slot in node.pool.ready()]})


@router.get("/models/{name:path}")
async def retrieve_model(name: str, node: CurrentNode) -> JSONResponse:
    """One of them."""
    slot = node.pool.find(name)
    if slot.loaded is None:
        raise ModelNotFoundError(
            f"'{slot.ref}' is {slot.state} on this node", hint="GET /v1/models lists the models", model=name
        )
    return JSONResponse(_model_object(slot))


async def _generate(request: Request, node: Node, endpoint: _Endpoint) -> Response:
    body = await read_json_object(request, node.settings.max_body_bytes)
    lease = await _lease(request, node, body)
    with ExitStack() as held:
        held.callback(lease.release)
        streams, include_usage = _wants_stream(body), shapes.wants_usage(body)
        generation = lease.engine.submit(await _parse(endpoint, body, lease.engine))
        held.callback(generation.cancel)
        answer_id = f"{endpoint.id_prefix}-{request.state.request_id.removeprefix('req-')}"
        try:
            if not streams:
                answer = await unless_caller_leaves(request, endpoint.whole(generation, lease.ref, answer_id))
                node.metrics.record_generation(lease.ref, answer["timings"])
                return JSONResponse(answer)
            chunks = endpoint.chunks(generation, lease.ref, include_usage, answer_id)
            first = asyncio.ensure_future(anext(chunks))
            held.callback(_drop, first)
            # A failure before the first token is still an HTTP status, if it comes soon.
            await unless_caller_leaves(request, asyncio.wait((first,), timeout=_FIRST_CHUNK_S))
            if first.done():
                first.result()
        except CallerLeftError:
            node.metrics.record_cancelled(lease.ref)
            return Response(status_code=499)  # nobody reads it; it tells the metrics
        give_back = held.pop_all().close  # now it is the stream that gives engine and sequence back

    def on_end(complete: bool) -> None:
        give_back()
        if not complete:
            node.metrics.record_cancelled(lease.ref)

    async def counted() -> AsyncGenerator[dict[str, Any]]:
        chunk: dict[str, Any] | None = await first
        while chunk is not None:
            if "timings" in chunk and chunk["choices"]:
                node.metrics.record_generation(lease.ref, chunk["timings"])
            yield chunk
            chunk = await anext(chunks, None)

    return EventStream(counted(), on_end=on_end)


def _drop(task: asyncio.Future[Any]) -> None:
    """Cancel a task nobody waits for any more, and let asyncio not call what it ends with lost."""
    task.cancel()
    task.add_done_callback(lambda done: done.cancelled() or done.exception())


def _wants_stream(body: Mapping[str, Any]) -> bool:
    stream = body.get("stream")
    if stream is not None and not isinstance(stream, bool):
        raise InvalidRequestError("stream is not true or false")
    return bool(stream)


async def _lease(request: Request, node: Node, body: Mapping[str, Any]) -> Lease:
    name = body.get("model")
    if not isinstance(name, str) or not name:
        ready = ", ".join(slot.ref for slot in node.pool.ready()) or "none yet"
        raise InvalidRequestError(
            "'model' is missing: which model is asked?", hint=f"this node serves: {ready}"
        )
    lease = await node.pool.acquire(name)
    request.state.model = lease.ref
    return lease


async def _parse(endpoint: _Endpoint, body: Mapping[str, Any], engine: LlamaEngine) -> GenerationRequest:
    content = body.get("messages", body.get("prompt"))
    if len(str(content)) <= _LARGE_BODY_CHARS:
        return endpoint.parse(body, engine)
    return await asyncio.to_thread(endpoint.parse, body, engine)


def _model_object(slot: ModelSlot) -> dict[str, Any]:
    assert slot.loaded is not None
    engine = slot.loaded.engine
    return {
        "id": slot.ref,
        "object": "model",
        "created": int(slot.loaded.since.timestamp()),
        "owned_by": "mecroute",
        "mecroute": {
            "digest": slot.model.digest if slot.model else None,
            "context_length": engine.n_ctx,
            "parallel": engine.n_parallel,
            "parameters": engine.facts.parameters,
            "quantization": engine.facts.quantization,
            "size_bytes": slot.loaded.size_bytes,
        },
    }
