"""`mecroute dev`: the whole stack on this machine, with one endpoint in front, until Ctrl-C."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mecroute_cli.help import examples
from mecroute_cli.session import Session, session_of

if TYPE_CHECKING:
    from mecroute_cli.stack.stack import Stack

EXAMPLES = examples(
    "mecroute dev",
    "mecroute dev --port 9090 --source my-model.gguf",
    "curl http://127.0.0.1:8080/v1/chat/completions -H 'content-type: application/json' \\",
    '     -d \'{"model": "auto", "messages": [{"role": "user", "content": "Hello"}]}\'',
)


def dev(
    ctx: typer.Context,
    port: Annotated[
        int, typer.Option("--port", min=0, max=65535, help="Of the endpoint; 0: a free one.")
    ] = 8080,
    source: Annotated[
        Path | None,
        typer.Option(
            "--source", metavar="FILE", help="Start from this GGUF file; default: SmolLM2-135M, fetched."
        ),
    ] = None,
    workdir: Annotated[
        Path | None,
        typer.Option("--workdir", metavar="DIR", help="Keep everything there; default: the cache."),
    ] = None,
) -> None:
    """Run the whole stack here, with one OpenAI-compatible endpoint."""
    from mecroute_cli.stack.bring_up import bring_up
    from mecroute_cli.stack.signals import sigterm_as_exit
    from mecroute_cli.stack.source_model import model_name, source_or_default
    from mecroute_cli.stack.stack import Stack
    from mecroute_registry.paths import cache_dir

    session = session_of(ctx)
    folder = (workdir or cache_dir() / "dev").absolute()
    with sigterm_as_exit(), _listen(port) as listener:
        chosen = source_or_default(session.output, source)
        with Stack(folder, chosen, clouds=session.config.cloud) as stack:
            variants = bring_up(session.output, stack, model_name(chosen))
            _announce(session, stack, listener, [variant.model.ref for variant in variants])
            _run(stack, listener)


def _listen(port: int) -> socket.socket:
    """Take the port first, so that nothing is made for an endpoint that cannot be reached.

    Raises:
        UsageError: it is in use.
    """
    from mecroute.errors import UsageError

    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(("127.0.0.1", port))
        listener.listen(128)
    except OSError as error:
        listener.close()
        raise UsageError(
            f"port {port} on 127.0.0.1 cannot be used: {error.strerror}", hint="--port 0"
        ) from error
    return listener


def _announce(session: Session, stack: Stack, listener: socket.socket, models: list[str]) -> None:
    config = stack.config
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    cloud = config.cloud[0]
    parts: dict[str, Any] = {
        "url": f"{url}/v1",
        "models": models,
        "node": config.nodes[0].url,
        "store": config.store.endpoint_url,
        "cloud": cloud.base_url,
        "cloud_is_stand_in": cloud.stand_in,
        "config": str(stack.config_file),
        "environment": str(stack.environment_file),
    }
    session.output.dict(
        "ready",
        parts,
        {
            "endpoint": f'{url}/v1 (OpenAI-compatible, model "auto")',
            "models": ", ".join(models),
            "MEC node": f"{config.nodes[0].name} at {config.nodes[0].url}",
            "S3": f"{config.store.uri} at {config.store.endpoint_url}",
            "cloud": f"{cloud.base_url}" + (" (a stand-in on this machine)" if cloud.stand_in else ""),
            "logs": str(stack.workdir),
        },
    )
    session.output.close()
    session.output.note("Ctrl-C stops everything.")
    session.output.hint(f"in another terminal: . '{stack.environment_file}' && mecroute nodes list")


def _run(stack: Stack, listener: socket.socket) -> None:
    import uvicorn

    from mecroute_server.router import create_router_app

    app = create_router_app(stack.config)
    settings = uvicorn.Config(
        app, log_config=None, log_level="warning", access_log=False, server_header=False
    )
    uvicorn.Server(settings).run(sockets=[listener])
