"""`mecroute pull`: a model from the store to the local registry."""

from __future__ import annotations

from typing import Annotated

import typer

from mecroute_cli import formats
from mecroute_cli.arguments import EndpointUrl, Ref, Region
from mecroute_cli.help import examples
from mecroute_cli.session import session_of
from mecroute_cli.stores import remote_store

EXAMPLES = examples(
    "mecroute pull smollm2:q8_0",
    "mecroute pull smollm2:q8_0 --from s3://models/edge --digest sha256:…",
)


def pull(
    ctx: typer.Context,
    ref: Ref,
    source: Annotated[
        str | None, typer.Option("--from", metavar="URI", help="s3://bucket/prefix; default: [store] uri.")
    ] = None,
    endpoint_url: EndpointUrl = None,
    region: Region = None,
    digest: Annotated[
        str | None, typer.Option("--digest", metavar="SHA256", help="Refuse anything but this digest.")
    ] = None,
) -> None:
    """Download a model; an interrupted download resumes."""
    session = session_of(ctx)
    store = remote_store(session, source, endpoint_url, region)
    with session.output.progress(f"pulling {ref}") as update:
        model = store.pull(ref, session.registry(), expect_digest=digest, progress=update)
    session.output.dict(
        "pulled",
        {"ref": model.ref, "uri": store.uri, "digest": model.digest, "size_bytes": model.size_bytes},
        {
            "pulled": f"{model.ref} from {store.uri}",
            "size": formats.size(model.size_bytes),
            "digest": f"{model.digest} (verified)",
        },
    )
    session.output.hint(f"mecroute models show {model.ref}")
