"""`mecroute nodes load|unload|pin|unpin|remove`: the models of one MEC node."""

from __future__ import annotations

from typing import Annotated

import typer

from mecroute_cli import formats
from mecroute_cli.arguments import Ref, Yes
from mecroute_cli.help import examples
from mecroute_cli.nouns import Noun
from mecroute_cli.session import session_of

On = Annotated[str, typer.Option("--on", metavar="NODE", help="A node from [[nodes]].")]


def add_verbs(noun: Noun) -> None:
    """Add the verbs to `mecroute nodes`."""
    noun.verb("load", load, examples("mecroute nodes load smollm2:q8_0 --on mec-1"))
    noun.verb("unload", unload, examples("mecroute nodes unload smollm2:q8_0 --on mec-1"))
    noun.verb("pin", pin, examples("mecroute nodes pin smollm2:q8_0 --on mec-1"))
    noun.verb("unpin", unpin, examples("mecroute nodes unpin smollm2:q8_0 --on mec-1"))
    noun.verb(
        "remove",
        remove,
        examples(
            "mecroute nodes remove smollm2:q8_0 --on mec-1",
            "mecroute nodes remove smollm2:q8_0 --on mec-1 --drain --yes",
        ),
    )


def load(ctx: typer.Context, ref: Ref, on: On) -> None:
    """Bring a model of the node into its memory; it goes on when this returns."""
    _change(ctx, ref, on, "load")


def unload(ctx: typer.Context, ref: Ref, on: On) -> None:
    """Take a model out of the node's memory, until it is loaded again."""
    _change(ctx, ref, on, "unload")


def pin(ctx: typer.Context, ref: Ref, on: On) -> None:
    """Keep a model in the node's memory, whatever else is asked for."""
    _change(ctx, ref, on, "pin")


def unpin(ctx: typer.Context, ref: Ref, on: On) -> None:
    """Let a model leave the node's memory again when its room is needed."""
    _change(ctx, ref, on, "unpin")


def remove(
    ctx: typer.Context,
    ref: Ref,
    on: On,
    drain: Annotated[bool, typer.Option("--drain", help="Wait for its requests to end.")] = False,
    yes: Yes = False,
) -> None:
    """Remove a model from the node: from its memory, its registry and its disk."""
    from mecroute_cli.node_api import NodeApi

    session = session_of(ctx)
    node = session.node(on)
    if not yes:
        typer.confirm(
            f"Remove {ref} from node '{node.name}', and its bytes from that disk?", abort=True, err=True
        )
    with NodeApi(node) as api:
        api.remove(ref, drain=drain)
    session.output.dict("removed", {"node": node.name, "ref": ref}, {"removed": f"{ref} from {node.name}"})


def _change(ctx: typer.Context, ref: str, on: str, action: str) -> None:
    from mecroute_cli.node_api import NodeApi

    session = session_of(ctx)
    node = session.node(on)
    with NodeApi(node) as api:
        model = api.change(ref, action)
    session.output.dict(
        "model",
        {"node": node.name, **model.model_dump(mode="json")},
        {
            "model": f"{model.ref} on {node.name}",
            "state": model.state + (f" ({model.detail})" if model.detail else ""),
            "pinned": "yes" if model.pinned else "no",
            "memory": formats.size(model.resident_bytes),
        },
    )
