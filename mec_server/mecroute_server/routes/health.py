"""`/healthz`, `/readyz` and `/metrics`: for probes and scrapers, open to all."""

from __future__ import annotations

from fastapi import APIRouter
from fastapi.responses import JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST

from mecroute_registry._version import __version__
from mecroute_server.routes.node import CurrentNode

router = APIRouter()


@router.get("/healthz")
async def healthz(node: CurrentNode) -> JSONResponse:
    """200 while the process answers at all."""
    return JSONResponse({"status": "ok", "node": node.settings.node, "version": __version__})


@router.get("/readyz")
async def readyz(node: CurrentNode) -> JSONResponse:
    """200 when at least one model can serve; otherwise 503 and the reason."""
    reason = node.pool.why_not_ready()
    models = [slot.ref for slot in node.pool.ready()]
    body = {"status": "not_ready" if reason else "ready", "reason": reason, "models": models}
    return JSONResponse(body, status_code=503 if reason else 200)


@router.get("/metrics")
async def metrics(node: CurrentNode) -> Response:
    """Prometheus' text format."""
    return Response(node.metrics.render(), media_type=CONTENT_TYPE_LATEST)
