"""`/v1/classify` and `/v1/rerank`, on the ONNX models of this node; `/v1/rerank` on those that embed too."""

from __future__ import annotations

from collections.abc import Awaitable, Mapping
from typing import Any, TypeVar

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from mecroute.classification import classify_answer
from mecroute.errors import InvalidRequestError
from mecroute_server.body import read_json_object
from mecroute_server.disconnect import CallerLeftError, unless_caller_leaves
from mecroute_server.formats.scoring import parse_classify, parse_rerank, rerank_answer
from mecroute_server.generation import lend
from mecroute_server.node import Node
from mecroute_server.routes.node import CurrentNode
from mecroute_server.scoring import class_probabilities, relevance
from mecroute_server.slot import OnnxLease

router = APIRouter(prefix="/v1")
_T = TypeVar("_T")


@router.post("/classify")
async def classify(request: Request, node: CurrentNode) -> Response:
    """The class of each text, and the probabilities of all classes."""
    body = await read_json_object(request, node.settings.max_body_bytes)
    texts, wanted, top_k = parse_classify(body)
    name = _model(body)
    if not await node.pool.serves_onnx(name):
        slot = await node.pool.wanted(name)  # one that is not there is told so
        raise InvalidRequestError(
            f"'{name}' does not classify texts: as a GGUF model it has no classes, "
            f"and can be asked for {', '.join(slot.tasks)}",
            hint="ask an ONNX sequence classifier",
            model=name,
        )
    lease = await _lend_onnx(request, node, name)
    try:
        rows, labels, tokens = await unless_caller_leaves(request, class_probabilities(lease, texts, wanted))
    except CallerLeftError:
        return _left(node, lease.ref)
    finally:
        lease.release()
    node.metrics.record_embedding(lease.ref, tokens)
    return JSONResponse(
        classify_answer(
            rows, labels, id=_id("classify", request), model=lease.ref, tokens=tokens, top_k=top_k
        )
    )


@router.post("/rerank")
async def rerank(request: Request, node: CurrentNode) -> Response:
    """The documents in the order of their relevance to the query."""
    body = await read_json_object(request, node.settings.max_body_bytes)
    asked = parse_rerank(body)
    name = ref = _model(body)
    judging: Awaitable[tuple[list[float], int]]
    try:
        if await node.pool.serves_onnx(name):
            onnx = await _lend_onnx(request, node, name)
            ref = onnx.ref
            try:
                judging = relevance(onnx, asked.query, asked.documents)
                scores, tokens = await unless_caller_leaves(request, judging)
            finally:
                onnx.release()
        else:
            lease = await lend(request, node, body)
            ref = lease.ref
            judging = node.embeddings.relevance(lease, asked.query, asked.documents)
            scores, tokens = await unless_caller_leaves(request, judging)
    except CallerLeftError:
        return _left(node, ref)
    node.metrics.record_embedding(ref, tokens)
    return JSONResponse(rerank_answer(asked, scores, id=_id("rerank", request), model=ref, tokens=tokens))


async def _lend_onnx(request: Request, node: Node, name: str) -> OnnxLease:
    lease = await node.pool.acquire_onnx(name)
    request.state.model = lease.ref
    return lease


def _model(body: Mapping[str, Any]) -> str:
    name = body.get("model")
    if not isinstance(name, str) or not name:
        raise InvalidRequestError("'model' is missing: which model is asked?")
    return name


def _id(kind: str, request: Request) -> str:
    return f"{kind}-{request.state.request_id.removeprefix('req-')}"


def _left(node: Node, ref: str) -> Response:
    node.metrics.record_cancelled(ref)
    return Response(status_code=499)  # nobody reads it; it tells the metrics
