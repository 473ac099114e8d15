"""Embeddings by ONNX encoders."""

from __future__ import annotations

import asyncio
from array import array
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from fastapi import Request
from fastapi.responses import Response

from mecroute.engines.llama.openai.embeddings import embeddings_json, parse_embeddings
from mecroute.errors import InvalidRequestError
from mecroute_server.disconnect import CallerLeftError, unless_caller_leaves
from mecroute_server.generation import record_embedding
from mecroute_server.node import Node
from mecroute_server.slot import OnnxLease

if TYPE_CHECKING:
    from mecroute.engines.onnx.classifier import TextClassifier
    from mecroute.engines.onnx.encoder import TextEncoder
    from mecroute.engines.onnx.texts import TextGroup

#: Tokenizing and shaping so little takes less time than to hand it to a thread and to come back.
_FEW_TEXTS = 4
_FEW_CHARS = 4096


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
    return Response(answer, media_type="application/json")


async def embed_texts(lease: OnnxLease, body: Mapping[str, Any]) -> tuple[bytes, int]:
    """Answer an embeddings request; its texts share batches with those of other requests.

    Args:
        lease: the model; the caller gives it back.
        body: OpenAI's request.

    Returns:
        OpenAI's response body as JSON, and the number of prompt tokens.

    Raises:
        InvalidRequestError: a field is wrong, or the model does not embed texts.
        OverloadedError: the engine's queue is full.
    """
    encoder = encoder_of(lease)
    asked = parse_embeddings(body)
    vectors, tokens = await embed(encoder, asked.inputs, asked.dimensions)
    shape = partial(embeddings_json, vectors, tokens=tokens, model=lease.ref, as_base64=asked.as_base64)
    return (shape() if len(vectors) <= _FEW_TEXTS else await asyncio.to_thread(shape)), tokens


def encoder_of(lease: OnnxLease) -> TextEncoder:
    """What embeds texts with a model.

    Raises:
        InvalidRequestError: nothing does.
    """
    if lease.engine.encoder is None:
        raise InvalidRequestError(
            f"'{lease.ref}' does not embed texts: it has no tokenizer",
            hint=f"put its tokenizer.json beside it, or ask it with POST /v2/models/{lease.ref}/infer",
            model=lease.ref,
        )
    return lease.engine.encoder


async def embed(
    encoder: TextEncoder, texts: Sequence[str | Sequence[int]], dimensions: int | None = None
) -> tuple[list[array[float]], int]:
    """Embed texts; see `TextEncoder.embed`.

    Returns:
        A vector of float32 for each text, and the number of tokens in all texts.
    """
    if len(texts) <= _FEW_TEXTS and sum(map(len, texts)) <= _FEW_CHARS:
        groups, tokens = encoder.groups(texts)
    else:
        groups, tokens = await asyncio.to_thread(encoder.groups, texts)
    vectors = [array("f")] * len(texts)

    def take(group: TextGroup, outputs: Mapping[str, Any]) -> None:
        for place, vector in zip(group.places, encoder.vectors(group, outputs, dimensions), strict=True):
            vectors[place] = array("f", vector.tobytes())

    await compute_groups(encoder, groups, take)
    return vectors, tokens


async def compute_groups(
    model: TextEncoder | TextClassifier,
    groups: Sequence[TextGroup],
    take: Callable[[TextGroup, Mapping[str, Any]], None],
) -> None:
    """Have the groups of one request computed, and each taken as soon as it is.

    No more of them at a time than are computed side by side: a request with many texts lets others in
    between. Only its first group can be refused: nothing is computed for an answer that does not come.

    Raises:
        OverloadedError: the engine's queue is full.
    """
    coming: deque[tuple[TextGroup, asyncio.Future[dict[str, Any]]]] = deque()
    try:
        for number, group in enumerate(groups):
            coming.append((group, asyncio.wrap_future(model.submit(group, admitted=number > 0))))
            if len(coming) == model.lanes:
                take(coming[0][0], await coming[0][1])
                coming.popleft()
        for group, outputs in coming:
            take(group, await outputs)
    finally:
        for _, outputs in coming:
            outputs.cancel()
