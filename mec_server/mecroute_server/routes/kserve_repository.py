"""`/v2/repository/*`: which models there are, and loading and unloading, as Triton's clients ask for it."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from mecroute.errors import InvalidRequestError, ModelNotFoundError, NodeNotReadyError
from mecroute_server.body import parse_json_object, read_body
from mecroute_server.disconnect import CallerLeftError, unless_caller_leaves
from mecroute_server.kserve.description import STATES
from mecroute_server.node import Node
from mecroute_server.routes.kserve import ProtocolRoute, name_and_version
from mecroute_server.routes.node import CurrentNode
from mecroute_server.slot import ModelSlot

router = APIRouter(prefix="/v2/repository", route_class=ProtocolRoute)


@router.post("/index")
async def index(request: Request, node: CurrentNode) -> JSONResponse:
    """Every model of the node and its state; with `{"ready": true}` those that can be asked."""
    ready = (await _read(request, node)).get("ready", False)
    if not isinstance(ready, bool):
        raise InvalidRequestError("'ready' must be true or false")
    slots = node.pool.offered() if ready else node.pool.slots()
    return JSONResponse([_listed(slot) for slot in slots])


@router.post("/models/{name:path}/load")
async def load(request: Request, node: CurrentNode, name: str) -> Response:
    """Bring a model into memory, from the node's store where it must; answers once it serves."""
    request.state.audit_target = name
    parameters = (await _read(request, node)).get("parameters") or {}
    if parameters:
        raise InvalidRequestError(
            "a load with a configuration or files of its own is not supported",
            hint="leave 'parameters' out; a model comes with the files it was registered with",
        )
    slot = await node.begin_load(_ref(node, name))
    try:
        await unless_caller_leaves(request, slot.settled.wait())
    except CallerLeftError:
        return Response(status_code=499)  # nobody reads it, and the load goes on
    if slot.error is not None:
        raise slot.error
    if slot.loaded is None:
        raise NodeNotReadyError(
            f"'{slot.ref}' is {slot.state}: {slot.detail or 'its load was given up'}",
            model=slot.ref,
            tier="mec",
        )
    return JSONResponse({})


@router.post("/models/{name:path}/unload")
async def unload(request: Request, node: CurrentNode, name: str) -> JSONResponse:
    """Take a model out of memory; answers when its last request has ended."""
    request.state.audit_target = name
    await _read(request, node)  # `unload_dependents`: no model here has any
    slot = node.pool.slot(_ref(node, name))
    if slot is None:
        raise ModelNotFoundError(
            f"node '{node.settings.node}' has no model '{name}'",
            hint="POST /v2/repository/index lists those it has",
            model=name,
        )
    # Shielded: it goes on when the operator's connection is lost.
    await asyncio.shield(node.pool.spawn(node.pool.unload(slot)))
    return JSONResponse({})


async def _read(request: Request, node: Node) -> dict[str, Any]:
    body = await read_body(request, node.settings.max_body_bytes)
    return parse_json_object(body) if body else {}


def _ref(node: Node, name: str) -> str:
    """The reference that a name means: its own, or the one version that there is."""
    try:
        return node.pool.find(name).ref
    except ModelNotFoundError:
        return name  # to be looked for in the registry and the store


def _listed(slot: ModelSlot) -> dict[str, str]:
    name, version = name_and_version(slot.ref)
    reason = slot.detail or (slot.state if slot.state != "ready" else "")
    return {"name": name, "version": version, "state": STATES[slot.state], "reason": reason}
