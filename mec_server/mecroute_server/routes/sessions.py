"""`/admin/sessions/*`: conversations that move to another node with what was computed of them."""

from __future__ import annotations

from collections.abc import Iterator

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, StreamingResponse

from mecroute_server.body import read_body
from mecroute_server.routes.node import CurrentNode
from mecroute_server.sessions import checked_name, export_session, import_session, list_sessions

router = APIRouter(prefix="/admin/sessions")
#: A part of an answer that is written at a time.
_CHUNK_BYTES = 1 << 20


@router.get("")
async def sessions(node: CurrentNode) -> JSONResponse:
    """The conversations in memory that have a name."""
    return JSONResponse({"sessions": list_sessions(node.pool)})


@router.post("/{name}/export")
async def export(
    name: str, request: Request, node: CurrentNode, model: str | None = None
) -> StreamingResponse:
    """A conversation as bytes: its tokens and KV cells. It stays here."""
    request.state.audit_target = checked_name(name)
    snapshot = await export_session(node.pool, name, model)
    parts = snapshot.parts()

    def chunks() -> Iterator[bytes]:
        for part in parts:
            for at in range(0, len(part), _CHUNK_BYTES):
                yield bytes(part[at : at + _CHUNK_BYTES])

    return StreamingResponse(
        chunks(),
        media_type="application/octet-stream",
        headers={"content-length": str(sum(map(len, parts)))},
    )


@router.post("/{name}/import")
async def take_in(name: str, request: Request, node: CurrentNode, model: str | None = None) -> JSONResponse:
    """Take in what an export of another node gave; the conversation goes on here without being computed."""
    request.state.audit_target = checked_name(name)
    limit = node.settings.max_session_bytes
    data = await read_body(request, limit, "max_session_bytes")
    ref, tokens = await import_session(node.pool, data, name, model)
    return JSONResponse({"model": ref, "session": name, "tokens": tokens})
