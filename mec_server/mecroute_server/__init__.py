"""The MEC server: serves models at the edge over an OpenAI-compatible API."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mecroute_server.app import create_app
    from mecroute_server.run import NodeServer, listen, serve
    from mecroute_server.settings import ServerSettings

__all__ = ["NodeServer", "ServerSettings", "create_app", "listen", "serve"]

#: FastAPI and uvicorn load only when the app or the server is asked for.
_HOMES = {
    "NodeServer": "run",
    "ServerSettings": "settings",
    "create_app": "app",
    "listen": "run",
    "serve": "run",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    from importlib import import_module

    from mecroute.errors import MissingExtraError

    try:
        module = import_module(f"{__name__}.{_HOMES[name]}")
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in (
            "fastapi",
            "starlette",
            "uvicorn",
            "prometheus_client",
        ):
            raise
        raise MissingExtraError("server", "serving models") from error
    return getattr(module, name)
