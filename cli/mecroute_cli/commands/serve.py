"""`mecroute serve`: a MEC node on this machine."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mecroute_cli.arguments import Threads
from mecroute_cli.help import examples
from mecroute_cli.session import Session, session_of

if TYPE_CHECKING:
    from mecroute_server import NodeServer, ServerSettings

EXAMPLES = examples(
    "mecroute serve --model smollm2.gguf --port 8100 --threads 2",
    "mecroute serve --node mec-1 --parallel 16          models come later, with `mecroute deploy`",
    "MEC_KEY=… mecroute serve --host 0.0.0.0 --api-key-env MEC_KEY",
    "mecroute serve --tls-cert node.pem --tls-key node.key --tls-client-ca clients.pem",
    "mecroute serve --host 0.0.0.0 --keys-file keys.json          keys of `mecroute keys create`",
)


def serve(
    ctx: typer.Context,
    model: Annotated[
        list[Path] | None,
        typer.Option(
            "--model", metavar="FILE", help="A GGUF or ONNX file, served by its stem; several times."
        ),
    ] = None,
    ref: Annotated[
        list[str] | None,
        typer.Option("--ref", metavar="REF", help="A model of the registry or the store; several times."),
    ] = None,
    host: Annotated[str | None, typer.Option("--host", help="Anything but loopback needs a key.")] = None,
    port: Annotated[int | None, typer.Option("--port", min=0, max=65535, help="0 takes a free one.")] = None,
    threads: Threads = None,
    context: Annotated[int | None, typer.Option("--ctx", min=64, help="Tokens per sequence.")] = None,
    parallel: Annotated[
        int | None, typer.Option("--parallel", min=1, max=256, help="Sequences at once.")
    ] = None,
    gpu_layers: Annotated[int | None, typer.Option("--gpu-layers", min=-1, help="-1: all of them.")] = None,
    max_queue: Annotated[
        int | None, typer.Option("--max-queue", min=0, help="Waiting requests, then 429.")
    ] = None,
    speculation: Annotated[
        str | None,
        typer.Option("--speculation", metavar="KIND", help="Guess ahead: off, prompt-lookup or draft."),
    ] = None,
    draft_model: Annotated[
        Path | None,
        typer.Option("--draft-model", metavar="FILE", help="A small GGUF model, for --speculation draft."),
    ] = None,
    node: Annotated[str | None, typer.Option("--node", help="The node's name.")] = None,
    zone: Annotated[str | None, typer.Option("--zone", help="The edge zone it stands in.")] = None,
    region: Annotated[
        str | None, typer.Option("--region", help="Compared with a request's residency.")
    ] = None,
    api_key_env: Annotated[
        str | None, typer.Option("--api-key-env", metavar="NAME", help="Variable that holds the API key.")
    ] = None,
    keys_file: Annotated[
        Path | None, typer.Option("--keys-file", metavar="FILE", help="Keys that `mecroute keys` made.")
    ] = None,
    audit_log: Annotated[
        Path | None, typer.Option("--audit-log", metavar="FILE", help="Record admin actions there.")
    ] = None,
    tls_cert: Annotated[
        Path | None, typer.Option("--tls-cert", metavar="FILE", help="PEM certificate: serve HTTPS.")
    ] = None,
    tls_key: Annotated[Path | None, typer.Option("--tls-key", metavar="FILE", help="Its PEM key.")] = None,
    tls_client_ca: Annotated[
        Path | None,
        typer.Option("--tls-client-ca", metavar="FILE", help="Clients must show its certificates (mTLS)."),
    ] = None,
    cors_origin: Annotated[
        list[str] | None,
        typer.Option("--cors-origin", metavar="URL", help="Web pages of it may ask; several times."),
    ] = None,
    drain_delay_s: Annotated[
        float | None, typer.Option("--drain-delay-s", min=0, help="Not ready for so long before it stops.")
    ] = None,
) -> None:
    """Serve models over APIs compatible with OpenAI's and, for ONNX, KServe's (v2)."""
    session = session_of(ctx)
    given = {
        "host": host,
        "threads": threads,
        "context": context,
        "parallel": parallel,
        "gpu_layers": gpu_layers,
        "max_queue": max_queue,
        "speculation": speculation,
        "draft_model": draft_model,
        "node": node,
        "zone": zone,
        "region": region,
        "keys_file": keys_file,
        "audit_log": audit_log,
        "tls_cert": tls_cert,
        "tls_key": tls_key,
        "tls_client_ca": tls_client_ca,
        "cors_origins": cors_origin or None,
        "drain_delay_s": drain_delay_s,
    }
    settings = settings_from(
        session, given, port=port, files=model or [], refs=ref or [], key_env=api_key_env
    )
    run(session, settings)


def settings_from(
    session: Session,
    given: dict[str, Any],
    *,
    port: int | None,
    files: list[Path],
    refs: list[str],
    key_env: str | None,
) -> ServerSettings:
    """The server's settings: `[server]` with the flags on top, and its store and registry."""
    from mecroute.errors import ConfigError
    from mecroute_server import ServerSettings
    from mecroute_server.tls import Tls

    overrides = {f"server__{name}": value for name, value in given.items()}
    if port:  # 0 means "a free one", which a configuration file cannot ask for
        overrides["server__port"] = port
    config = session.load(**overrides).config
    server = config.server
    keys = [server.api_key.get_secret_value()] if server.api_key else []
    if key_env is not None:
        key = os.environ.get(key_env)
        if not key:
            raise ConfigError(f"--api-key-env: the variable {key_env} is not set", hint=f"export {key_env}=…")
        keys = [key]
    tls = None
    if server.tls_cert is not None and server.tls_key is not None:
        tls = Tls(server.tls_cert, server.tls_key, server.tls_client_ca)
    return ServerSettings(
        host=server.host,
        port=server.port if port is None else port,
        api_keys=tuple(keys),
        keys_file=server.keys_file,
        requests_per_minute=server.requests_per_minute,
        output_tokens_per_minute=server.output_tokens_per_minute,
        prefix_cache_memory_bytes=server.prefix_cache_memory_bytes,
        prefix_cache_dir=server.prefix_cache_dir,
        prefix_cache_bytes=server.prefix_cache_bytes,
        prefix_cache_min_tokens=server.prefix_cache_min_tokens,
        audit_log=server.audit_log,
        tls=tls,
        cors_origins=server.cors_origins,
        drain_delay_s=server.drain_delay_s,
        shutdown_grace_s=server.shutdown_grace_s,
        max_connections=server.max_connections,
        header_timeout_s=server.header_timeout_s,
        body_timeout_s=server.body_timeout_s,
        write_timeout_s=server.write_timeout_s,
        request_timeout_s=server.request_timeout_s,
        node=server.node,
        zone=server.zone,
        region=server.region,
        registry_root=config.registry.path,
        store_uri=config.store.uri,
        store_endpoint_url=config.store.endpoint_url,
        store_region=config.store.region,
        model_files=tuple(files),
        models=tuple(refs),
        threads=server.threads,
        context=server.context,
        parallel=server.parallel,
        gpu_layers=server.gpu_layers,
        max_queue=server.max_queue,
        speculation=server.speculation,
        draft_model=server.draft_model,
        max_body_bytes=server.max_body_bytes,
        max_session_bytes=server.max_session_bytes,
    )


def run(session: Session, settings: ServerSettings) -> None:
    """Serve until SIGTERM or Ctrl-C; says on stderr (and under `--json` on stdout) when it is ready."""
    from mecroute_server import serve as serve_until_stopped

    out = session.output

    def ready(server: NodeServer) -> None:
        models = [slot.ref for slot in server.node.pool.ready()]
        out.dict(
            "ready",
            {"url": server.url, "node": settings.node, "models": models, "pid": os.getpid()},
            {},
        )
        out.note(
            f"node '{settings.node}' is ready on {server.url}, models: {', '.join(models) or 'none yet'}"
        )
        if not models:
            out.hint(f"mecroute deploy REF --to {settings.node}")
        out.close()

    serve_until_stopped(settings, on_ready=ready)
