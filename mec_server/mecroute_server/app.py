"""The ASGI application of one MEC node."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from starlette.exceptions import HTTPException

from mecroute.errors import MecrouteError
from mecroute_server.auth import Authenticator
from mecroute_server.edge import Edge, answer_error, answer_http_error
from mecroute_server.node import Node
from mecroute_server.routes import admin, health, kserve, openai
from mecroute_server.settings import ServerSettings


def create_app(settings: ServerSettings) -> FastAPI:
    """Make the application; its lifespan loads the models and closes them.

    Args:
        settings: the node's settings. `host` and `port` are the business of whoever runs the app.

    Returns:
        An app for one process and one event loop; `app.state.node` is its `Node`.
    """
    node = Node(settings)

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        node.start()
        try:
            yield
        finally:
            await node.close()

    # No documentation pages: FastAPI's load their scripts from a third party's servers.
    app = FastAPI(title="mecroute", lifespan=lifespan, openapi_url=None, docs_url=None, redoc_url=None)
    app.state.node = node
    for router in (openai.router, kserve.router, admin.router, health.router):
        app.include_router(router)
    app.add_middleware(
        Edge, authenticator=Authenticator(settings.api_keys), metrics=node.metrics, node=settings.node
    )
    app.add_exception_handler(MecrouteError, answer_error)
    app.add_exception_handler(HTTPException, answer_http_error)
    return app
