"""`/v1/embeddings` for ONNX encoders."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from fastapi import Request
from fastapi.responses import JSONResponse, Response

from mecroute.engines.llama.openai.embeddings import embeddings_response, parse_embeddings
from mecroute.errors import InvalidRequestError
from mecroute_server.disconnect import CallerLeftError, unless_caller_leaves
from mecroute_server.generation import record_embedding
from mecroute_server.node import Node
from mecroute_server.slot import OnnxLease

if TYPE_CHECKING:
    from mecroute.engines.onnx.encoder import TextEncoder


async def answer_embeddings(request: Request, node: Node, body: Mapping[str, Any]) -> Response:
    """One vector per text, as numbers or as base64 of little-endian float32.

    Args:
        request: its body has been read.
        node: the node.
        body: OpenAI's request; its `model` is an ONNX model of this node.

    Raises:
        MecrouteError: see `embed_texts` and `EnginePool.acquire`.
    """
    lease = await node.pool.acquire_onnx(body["model"])
    request.state.model = lease.ref
    try:
        answer, tokens = await unless_caller_leaves(request, embed_texts(lease, body))
    except CallerLeftError:
        node.metrics.record_cancelled(lease.ref)
        return Response(status_code=499)  # nobody reads it; it tells the metrics
    finally:
        lease.release()
    record_embedding(request, node, lease.ref, tokens)
    return JSONResponse(answer)


async def embed_texts(lease: OnnxLease, body: Mapping[str, Any]) -> tuple[dict[str, Any], int]:
    """Answer an embeddings request; its texts share batches with those of other requests.

    Args:
        lease: the model; the caller gives it back.
        body: OpenAI's request.

    Returns:
        OpenAI's response body, and the number of prompt tokens.

    Raises:
        InvalidRequestError: a field is wrong, or the model does not embed texts.
        OverloadedError: the engine's queue is full.
    """
    encoder = lease.engine.encoder
    if encoder is None:
        raise InvalidRequestError(
            f"'{lease.ref}' does not embed texts: it has no tokenizer",
            hint=f"put its tokenizer.json beside it, or ask it with POST /v2/models/{lease.ref}/infer",
            model=lease.ref,
        )
    asked = parse_embeddings(body)
    vectors, tokens = await embed(encoder, asked.inputs, asked.dimensions)
    answer = await asyncio.to_thread(
        embeddings_response, vectors, tokens=tokens, model=lease.ref, as_base64=asked.as_base64
    )
    return answer, tokens


async def embed(
    encoder: TextEncoder, texts: Sequence[str | Sequence[int]], dimensions: int | None = None
) -> tuple[list[list[float]], int]:
    """Embed texts; see `TextEncoder.embed`."""
    groups, tokens = await asyncio.to_thread(encoder.groups, texts)
    vectors: list[list[float]] = [[]] * len(texts)
    # One after another: a request with many texts lets others in between. Only its first group can be
    # refused, so that nothing is computed for an answer that does not come.
    for number, group in enumerate(groups):
        outputs = await asyncio.wrap_future(encoder.submit(group, admitted=number > 0))
        for place, vector in zip(group.places, encoder.vectors(group, outputs, dimensions), strict=True):
            vectors[place] = vector.tolist()
    return vectors, tokens
