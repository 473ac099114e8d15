"""`mecroute push`: a model from the local registry to the store."""

from __future__ import annotations

from typing import Annotated

import typer

from mecroute_cli import formats
from mecroute_cli.arguments import EndpointUrl, Ref, Region
from mecroute_cli.help import examples
from mecroute_cli.session import session_of
from mecroute_cli.stores import remote_store

EXAMPLES = examples(
    "mecroute push smollm2:q8_0",
    "mecroute push smollm2:q8_0 --to s3://models/edge --endpoint-url http://127.0.0.1:9000",
)


def push(
    ctx: typer.Context,
    ref: Ref,
    to: Annotated[
        str | None, typer.Option("--to", metavar="URI", help="s3://bucket/prefix; default: [store] uri.")
    ] = None,
    endpoint_url: EndpointUrl = None,
    region: Region = None,
) -> None:
    """Upload a model; what is already there is not sent again."""
    session = session_of(ctx)
    registry = session.registry()
    model = registry.get(ref)
    store = remote_store(session, to, endpoint_url, region)
    with session.output.progress(f"pushing {model.ref}") as update:
        store.push(registry, model, progress=update)
    session.output.dict(
        "pushed",
        {"ref": model.ref, "uri": store.uri, "digest": model.digest, "size_bytes": model.size_bytes},
        {
            "pushed": f"{model.ref} to {store.uri}",
            "size": formats.size(model.size_bytes),
            "digest": model.digest,
        },
    )
    session.output.hint(f"mecroute deploy {model.ref} --to NODE")
