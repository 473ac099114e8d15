"""`/v2/*`: the Open Inference Protocol (KServe v2), on the ONNX models of this node."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from fastapi.routing import APIRoute

from mecroute.engines.onnx.engine import OnnxEngine
from mecroute.errors import InvalidRequestError, MecrouteError, ModelNotFoundError
from mecroute_registry._version import __version__
from mecroute_server.body import read_body
from mecroute_server.disconnect import CallerLeftError, unless_caller_leaves
from mecroute_server.errors import error_response
from mecroute_server.kserve import check_datatypes, encode_answer, model_metadata, parse_infer
from mecroute_server.kserve.compression import inflate
from mecroute_server.kserve.datatypes import NAMES
from mecroute_server.kserve.description import model_config, model_statistics
from mecroute_server.node import Node
from mecroute_server.routes.node import CurrentNode
from mecroute_server.slot import ModelSlot

#: Reading and writing more than this takes long enough to hold up other requests' tokens.
_LARGE_BYTES = 65_536
_EXTENSIONS = ["binary_tensor_data", "model_configuration", "model_repository", "statistics"]
#: The version of a model that is served from a file, which states none.
_FILE_VERSION = "1"


class ProtocolRoute(APIRoute):
    """Answers errors in the protocol's shape, `{"error": "text"}`, with the status and headers of ours."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        answer = super().get_route_handler()

        async def answer_or_error(request: Request) -> Response:
            try:
                return await answer(request)
            except MecrouteError as error:
                request.state.refused = error.code
                headers = dict(error_response(error).headers)
                for name in ("content-length", "content-type"):
                    headers.pop(name, None)
                return JSONResponse({"error": str(error)}, status_code=error.status, headers=headers)

        return answer_or_error


#: A name may hold slashes, so of two paths the one with the version is looked at first: decorators are
#: applied from below.
router = APIRouter(prefix="/v2", route_class=ProtocolRoute)


@router.get("")
async def server_metadata() -> JSONResponse:
    """What this server is, and which extensions it has."""
    return JSONResponse({"name": "mecroute", "version": __version__, "extensions": _EXTENSIONS})


@router.get("/health/live")
async def live() -> JSONResponse:
    """200 while the process answers at all."""
    return JSONResponse({"live": True})


@router.get("/health/ready")
async def ready(node: CurrentNode) -> JSONResponse:
    """200 when at least one model can serve; otherwise 503."""
    reason = node.pool.why_not_ready()
    return JSONResponse({"ready": reason is None}, status_code=503 if reason else 200)


@router.get("/models/{name:path}/ready")
@router.get("/models/{name:path}/versions/{version}/ready")
async def model_ready(node: CurrentNode, name: str, version: str | None = None) -> JSONResponse:
    """200 when that model can serve; otherwise 503."""
    slot = await node.pool.wanted(_ref(node, name, version))
    is_ready = slot in node.pool.offered() and not node.pool.closing
    body = {"name": slot.name, "ready": is_ready}
    return JSONResponse(body, status_code=200 if is_ready else 503)


@router.post("/models/{name:path}/infer")
@router.post("/models/{name:path}/versions/{version}/infer")
async def infer(request: Request, node: CurrentNode, name: str, version: str | None = None) -> Response:
    """The model's outputs for the inputs given."""
    most = node.settings.max_body_bytes
    body = await read_body(request, most)
    if encoding := request.headers.get("content-encoding"):
        body = await asyncio.to_thread(inflate, body, encoding, most)
    header_length = request.headers.get("inference-header-content-length")
    if len(body) > _LARGE_BYTES:
        asked = await asyncio.to_thread(parse_infer, body, header_length)
    else:
        asked = parse_infer(body, header_length)
    lease = await node.pool.acquire_onnx(_ref(node, name, version))
    request.state.model = lease.ref
    datatypes = {spec.name: NAMES[spec.dtype] for spec in lease.engine.outputs}
    try:
        check_datatypes(asked, lease.engine.inputs)
        future = lease.engine.submit(asked.inputs, asked.outputs)
        outputs = await unless_caller_leaves(request, asyncio.wrap_future(future))
    except CallerLeftError:
        node.metrics.record_cancelled(lease.ref)
        return Response(status_code=499)  # nobody reads it; it tells the metrics
    finally:
        lease.release()
    model, its_version = name_and_version(lease.ref)
    if sum(array.nbytes for array in outputs.values()) > _LARGE_BYTES:
        return await asyncio.to_thread(
            encode_answer, asked, outputs, datatypes, model=model, version=its_version
        )
    return encode_answer(asked, outputs, datatypes, model=model, version=its_version)


@router.get("/models/{name:path}/config")
@router.get("/models/{name:path}/versions/{version}/config")
async def config(node: CurrentNode, name: str, version: str | None = None) -> JSONResponse:
    """The model's configuration, in Triton's words."""
    lease = await node.pool.acquire_onnx(_ref(node, name, version))
    try:
        return JSONResponse(model_config(name_and_version(lease.ref)[0], lease.engine))
    finally:
        lease.release()


@router.get("/models/{name:path}/stats")
@router.get("/models/{name:path}/versions/{version}/stats")
async def statistics(node: CurrentNode, name: str, version: str | None = None) -> JSONResponse:
    """What the model has computed since it was loaded, and how long that took."""
    slot = await node.pool.wanted(_ref(node, name, version))
    if not slot.is_onnx:
        raise InvalidRequestError(
            f"'{slot.ref}' is a GGUF model, which computes no tensors", hint="GET /metrics counts its tokens"
        )
    return JSONResponse({"model_stats": [_statistics_of(slot)]})


@router.get("/models/stats")
async def all_statistics(node: CurrentNode) -> JSONResponse:
    """The same of every ONNX model."""
    return JSONResponse({"model_stats": [_statistics_of(slot) for slot in node.pool.slots() if slot.is_onnx]})


@router.get("/models/{name:path}")
@router.get("/models/{name:path}/versions/{version}")
async def metadata(node: CurrentNode, name: str, version: str | None = None) -> JSONResponse:
    """The model's versions, inputs and outputs."""
    lease = await node.pool.acquire_onnx(_ref(node, name, version))
    try:
        model, its_version = name_and_version(lease.ref)
        versions = [name_and_version(slot.ref)[1] for slot in _versions(node, model)]
        return JSONResponse(
            model_metadata(model, versions or [its_version], lease.engine.inputs, lease.engine.outputs)
        )
    finally:
        lease.release()


def _statistics_of(slot: ModelSlot) -> dict[str, Any]:
    engine = slot.loaded.engine if slot.loaded is not None else None
    stats = engine.stats() if isinstance(engine, OnnxEngine) else None
    return model_statistics(*name_and_version(slot.ref), stats)


def _versions(node: Node, name: str) -> list[ModelSlot]:
    return [slot for slot in node.pool.ready() if name_and_version(slot.ref)[0] == name]


def name_and_version(ref: str) -> tuple[str, str]:
    """A reference in the protocol's terms; a model that is served from a file has version 1."""
    name, _, version = ref.partition(":")
    return name, version or _FILE_VERSION


def _ref(node: Node, name: str, version: str | None) -> str:
    if version is None:
        return name
    slot = node.pool.slot(name)
    if slot is None or slot.file is None:
        return f"{name}:{version}"
    if version != _FILE_VERSION:
        raise ModelNotFoundError(
            f"'{name}' is served from a file, which has no version '{version}'",
            hint=f"its only version is {_FILE_VERSION}",
            model=name,
        )
    return name
