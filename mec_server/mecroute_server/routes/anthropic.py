"""`/v1/messages`: Anthropic's API, on the models of this node."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from mecroute_server.body import read_json_object
from mecroute_server.formats import anthropic as shapes
from mecroute_server.generation import Endpoint, generate, lend, parse_off_loop
from mecroute_server.routes.node import CurrentNode

router = APIRouter(prefix="/v1/messages")

_MESSAGES = Endpoint("msg_", shapes.parse_messages, shapes.message, shapes.events, shapes.EVENTS)


@router.post("")
async def messages(request: Request, node: CurrentNode) -> Response:
    """An answer, whole or as server-sent events."""
    body = await read_json_object(request, node.settings.max_body_bytes)
    return await generate(request, node, _MESSAGES, body)


@router.post("/count_tokens")
async def count_tokens(request: Request, node: CurrentNode) -> JSONResponse:
    """How many tokens a request's prompt has, the chat template's own included."""
    body = await read_json_object(request, node.settings.max_body_bytes)
    lease = await lend(request, node, body)
    try:
        counted = await parse_off_loop(shapes.parse_count, body, lease.engine)
    finally:
        lease.release()
    return JSONResponse({"input_tokens": counted.prompt_tokens})
