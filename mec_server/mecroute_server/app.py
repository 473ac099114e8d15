"""The ASGI application of one MEC node."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware

from mecroute.errors import MecrouteError
from mecroute_server.audit import AuditLog
from mecroute_server.auth import Authenticator
from mecroute_server.edge import Edge, answer_error, answer_http_error
from mecroute_server.keys import KeyFile
from mecroute_server.limits import RateLimiter
from mecroute_server.node import Node
from mecroute_server.openapi import describe
from mecroute_server.routes import (
    admin,
    anthropic,
    health,
    kserve,
    kserve_repository,
    ollama,
    openai,
    scoring,
    sessions,
)
from mecroute_server.settings import ServerSettings
from mecroute_server.tracing import FASTAPI_TELEMETRY_OFF, open_tracing


def create_app(settings: ServerSettings) -> FastAPI:
    """Make the application; its lifespan loads the models and closes them.

    Args:
        settings: the node's settings. `host` and `port` are the business of whoever runs the app.

    Returns:
        An app for one process and one event loop; `app.state.node` is its `Node`.

    Raises:
        ConfigError, MissingExtraError: traces are to be exported and cannot be.
    """
    authenticator = _authenticator(settings)
    node = Node(settings)
    audit = AuditLog(settings.audit_log) if settings.audit_log is not None else None
    tracing = open_tracing(
        settings.otlp_endpoint, node=settings.node, zone=settings.zone, region=settings.region
    )

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        node.start()
        try:
            yield
        finally:
            await node.close()
            if audit is not None:
                audit.close()
            if tracing is not None:
                await asyncio.to_thread(tracing.close)

    # No documentation pages: FastAPI's load their scripts from a third party's servers.
    app = FastAPI(
        title="mecroute",
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        telemetry=FASTAPI_TELEMETRY_OFF,
    )
    app.openapi = lambda: describe(app)  # type: ignore[method-assign] # as FastAPI's own guide does
    app.state.node = node
    for router in (
        openai.router,
        anthropic.router,
        ollama.router,
        scoring.router,
        kserve_repository.router,
        kserve.router,
        admin.router,
        sessions.router,
        health.router,
    ):
        app.include_router(router)
    app.add_middleware(
        Edge,
        authenticator=authenticator,
        metrics=node.metrics,
        node=settings.node,
        limiter=RateLimiter(settings.requests_per_minute, settings.output_tokens_per_minute),
        audit=audit,
        tracing=tracing,
        body_timeout_s=settings.body_timeout_s,
        request_timeout_s=settings.request_timeout_s,
        load_of=node.load_of,
    )
    if settings.cors_origins:
        # Outside of the edge: a browser asks without a key whether it may, and must be told what was refused.
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=("GET", "POST"),
            allow_headers=("*",),
            expose_headers=(
                "inference-header-content-length",
                "retry-after",
                "retry-after-ms",
                "x-mecroute-node",
                "x-request-id",
            ),
        )
    app.add_exception_handler(MecrouteError, answer_error)
    app.add_exception_handler(HTTPException, answer_http_error)
    return app


def _authenticator(settings: ServerSettings) -> Authenticator:
    key_file = KeyFile(settings.keys_file) if settings.keys_file is not None else None
    return Authenticator(settings.api_keys, key_file, origins=settings.cors_origins)
