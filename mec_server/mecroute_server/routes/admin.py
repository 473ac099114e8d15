"""`/admin/*`: what an operator or a control plane asks of the node."""

from __future__ import annotations

import asyncio
import contextlib
import re
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from mecroute.errors import InvalidRequestError, ModelNotFoundError
from mecroute_registry.facts import DIGEST_PATTERN
from mecroute_server.body import read_json_object
from mecroute_server.disconnect import CallerLeftError, unless_caller_leaves
from mecroute_server.node import Node
from mecroute_server.routes.node import CurrentNode
from mecroute_server.slot import ModelSlot
from mecroute_server.state_feed import MAX_WAIT_S

router = APIRouter(prefix="/admin")


_WAIT = {"name": "wait_s", "in": "query", "schema": {"type": "number", "minimum": 0, "maximum": MAX_WAIT_S}}


@router.get("/node", openapi_extra={"parameters": [_WAIT]})
async def node_state(request: Request, node: CurrentNode) -> Response:
    """The node, its machine and its models.

    With `?wait_s=20` and the `If-None-Match` of the last answer it waits so long for a change that matters
    (a model, its state, how full it is); 304 when there was none.
    """
    known = request.headers.get("if-none-match")
    # Within the time that an answer may take, or a node with a short one would refuse whoever waits.
    wait_s = min(_wait_s(request.query_params.get("wait_s")), node.settings.request_timeout_s / 2)
    try:
        tag = await unless_caller_leaves(request, node.feed.wait(known, wait_s))
    except CallerLeftError:
        return Response(status_code=499)
    headers = {"etag": tag, "cache-control": "no-store"}
    if tag == known:
        return Response(status_code=304, headers=headers)
    return JSONResponse(node.describe(), headers=headers)


@router.get("/models")
async def models(node: CurrentNode) -> JSONResponse:
    """Every model of the node, in any state."""
    return JSONResponse({"models": [node.describe_model(slot) for slot in node.pool.slots()]})


@router.post("/models")
async def deploy(request: Request, node: CurrentNode) -> JSONResponse:
    """Start to deploy `{"ref": "name:version", "digest": "sha256:…" or null}`; 202 with the model's state."""
    body = await read_json_object(request, node.settings.max_body_bytes)
    ref, digest = _text(body, "ref"), _text(body, "digest")
    unknown = sorted(body.keys() - {"ref", "digest"})
    if unknown:
        raise InvalidRequestError(f"unknown field '{unknown[0]}'", hint="a deployment has 'ref' and 'digest'")
    if ref is None:
        raise InvalidRequestError(
            "'ref' is missing: which model is to be deployed?", hint='{"ref": "name:version"}'
        )
    if digest is not None and not re.fullmatch(DIGEST_PATTERN, digest):
        raise InvalidRequestError(f"'{digest}' is not a digest: expected sha256:<64 hex digits>")
    request.state.audit_target = ref
    slot = await node.deployer.deploy(ref, digest)
    return JSONResponse(node.describe_model(slot), status_code=202)


@router.get("/models/{ref:path}")
async def model_state(ref: str, node: CurrentNode) -> JSONResponse:
    """One model's state."""
    return JSONResponse(node.describe_model(_slot(node, ref)))


@router.post("/models/{ref:path}/load")
async def load(ref: str, node: CurrentNode) -> JSONResponse:
    """Bring a model into memory: 202 at once, and its state tells the rest."""
    return JSONResponse(node.describe_model(await node.begin_load(ref)), status_code=202)


@router.post("/models/{ref:path}/unload")
async def unload(ref: str, node: CurrentNode) -> JSONResponse:
    """Take a model out of memory; answers when its last request has ended."""
    slot = _slot(node, ref)
    # Shielded: it goes on when the operator's connection is lost.
    await asyncio.shield(node.pool.spawn(node.pool.unload(slot)))
    return JSONResponse(node.describe_model(slot))


@router.post("/models/{ref:path}/pin")
async def pin(ref: str, node: CurrentNode) -> JSONResponse:
    """Keep a model in memory whatever else is asked for; 202 at once, and it is loaded if it is not there."""
    slot = await _registered(node, ref)
    await node.pin(slot, True)
    return JSONResponse(node.describe_model(slot), status_code=202)


@router.post("/models/{ref:path}/unpin")
async def unpin(ref: str, node: CurrentNode) -> JSONResponse:
    """Let a model leave memory again when its room is needed."""
    slot = _slot(node, ref)
    await node.pin(slot, False)
    return JSONResponse(node.describe_model(slot))


@router.delete("/models/{ref:path}")
async def remove(ref: str, node: CurrentNode, request: Request) -> JSONResponse:
    """Remove a model from the node and its registry; `?drain=true` first waits for its requests."""
    drain = request.query_params.get("drain", "false")
    if drain not in ("true", "false"):
        raise InvalidRequestError(f"drain is '{drain}'", hint="it must be true or false")
    request.state.audit_target = ref
    # Shielded: it goes on when the operator's connection is lost.
    await asyncio.shield(node.pool.spawn(node.deployer.remove(ref, drain=drain == "true")))
    return JSONResponse({"ref": ref, "removed": True})


async def _registered(node: Node, ref: str) -> ModelSlot:
    """The model of exactly that reference, which may lie in the registry only."""
    slot = node.pool.slot(ref)
    if slot is None and ":" in ref:
        with contextlib.suppress(ModelNotFoundError, InvalidRequestError):
            slot = await node.pool.wanted(ref)
    return slot if slot is not None else _slot(node, ref)


def _wait_s(text: str | None) -> float:
    if text is None:
        return 0.0
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= MAX_WAIT_S:
        raise InvalidRequestError(
            f"wait_s is not a number of seconds from 0 to {MAX_WAIT_S:g}", hint="as ?wait_s=20"
        )
    return value


def _slot(node: Node, ref: str) -> ModelSlot:
    slot = node.pool.slot(ref)
    if slot is None:
        known = ", ".join(slot.ref for slot in node.pool.slots()) or "none"
        raise ModelNotFoundError(
            f"node '{node.settings.node}' has no model '{ref}'",
            hint=f"its models: {known}; deploy one with POST /admin/models",
            model=ref,
        )
    return slot


def _text(body: dict[str, Any], field: str) -> str | None:
    value = body.get(field)
    if value is not None and not isinstance(value, str):
        raise InvalidRequestError(f"'{field}' must be a string")
    return value
