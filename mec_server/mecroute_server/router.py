"""The router as an HTTP service: OpenAI's API on this machine, `model: "auto"`, for apps in any language.

A body may hold `requirements` as the SDK takes them; answers carry `mecroute` with the decision and the
outcome. Streams carry it in their last chunk.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from hashlib import blake2b
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException

from mecroute import AsyncClient, AsyncStream, Config
from mecroute.errors import InvalidRequestError, MecrouteError
from mecroute_server.auth import Authenticator
from mecroute_server.body import read_json_object
from mecroute_server.disconnect import CallerLeftError, unless_caller_leaves
from mecroute_server.edge import Edge, answer_error, answer_http_error
from mecroute_server.sse import EventStream
from mecroute_server.tracing import FASTAPI_TELEMETRY_OFF


def create_router_app(config: Config) -> FastAPI:
    """Make the application.

    Args:
        config: the client's configuration: registry, device, nodes, cloud, router.

    Returns:
        An app for one process and one event loop. It has no keys of its own and therefore answers
        this machine only.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with AsyncClient(config) as client:
            app.state.client = client
            yield

    app = FastAPI(
        title="mecroute router",
        lifespan=lifespan,
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        telemetry=FASTAPI_TELEMETRY_OFF,
    )
    app.add_middleware(Edge, authenticator=Authenticator(()), metrics=None, node="router")
    app.add_exception_handler(MecrouteError, answer_error)
    app.add_exception_handler(HTTPException, answer_http_error)
    max_bytes = config.server.max_body_bytes

    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/v1/models")
    async def models(request: Request) -> Response:
        listed = (await _client(request).models.list()).to_dict()
        auto = {"id": "auto", "object": "model", "created": 0, "owned_by": "mecroute"}
        return JSONResponse({"object": "list", "data": [auto, *listed["data"]]})

    @app.post("/v1/chat/completions")
    async def chat(request: Request) -> Response:
        body = await read_json_object(request, max_bytes)
        stream = body.pop("stream", None) or False
        if not isinstance(stream, bool):
            raise InvalidRequestError("stream is not true or false")
        create = _client(request).chat.completions.create(
            stream=stream, **_arguments(request, body, "messages")
        )
        try:
            answer = await unless_caller_leaves(request, create)
        except CallerLeftError:
            return Response(status_code=499)
        if isinstance(answer, AsyncStream):
            return EventStream(_chunks(answer), on_end=lambda _complete: None)
        return JSONResponse({**answer.to_dict(), "mecroute": answer.mecroute.to_dict()})

    @app.post("/v1/embeddings")
    async def embeddings(request: Request) -> Response:
        body = await read_json_object(request, max_bytes)
        try:
            answer = await unless_caller_leaves(
                request, _client(request).embeddings.create(**_arguments(request, body, "input"))
            )
        except CallerLeftError:
            return Response(status_code=499)
        return JSONResponse({**answer.to_dict(), "mecroute": answer.mecroute.to_dict()})

    @app.post("/v1/classify")
    async def classify(request: Request) -> Response:
        body = await read_json_object(request, max_bytes)
        try:
            answer = await unless_caller_leaves(
                request, _client(request).classify(**_arguments(request, body, "input"))
            )
        except CallerLeftError:
            return Response(status_code=499)
        return JSONResponse({**answer.to_dict(), "mecroute": answer.mecroute.to_dict()})

    @app.post("/v1/route")
    async def route(request: Request) -> Response:
        body = await read_json_object(request, max_bytes)
        asks = "input" if "input" in body else "messages"
        decision = await _client(request).route(**_arguments(request, body, asks))
        return JSONResponse(decision.to_dict())

    return app


def _client(request: Request) -> AsyncClient:
    client = request.app.state.client
    assert isinstance(client, AsyncClient)
    return client


def _arguments(request: Request, body: dict[str, Any], required: str) -> dict[str, Any]:
    if required not in body:
        raise InvalidRequestError(f"'{required}' is missing")
    # Keys are not checked here; they tell apps apart, for budgets by key. The key itself is not kept.
    if sent := request.headers.get("authorization"):
        body["key"] = blake2b(sent.encode(), digest_size=8).hexdigest()
    return body


async def _chunks(stream: AsyncStream) -> AsyncGenerator[dict[str, Any]]:
    async with stream:
        async for chunk in stream:
            yield chunk.to_dict()
        told = stream.mecroute
        if told is not None:
            yield {
                "id": told.request_id,
                "object": "chat.completion.chunk",
                "created": int(time.time()),
                "model": told.model,
                "choices": [],
                "mecroute": told.to_dict(),
            }
