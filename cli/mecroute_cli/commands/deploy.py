"""`mecroute deploy`: have a MEC node pull, verify and load a model."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated

import typer

from mecroute_cli import formats
from mecroute_cli.arguments import Ref
from mecroute_cli.help import examples
from mecroute_cli.session import session_of

if TYPE_CHECKING:
    from mecroute.config import NodeConfig
    from mecroute.nodes.report import ModelReport
    from mecroute_cli.node_api import NodeApi
    from mecroute_cli.output import Output
    from mecroute_registry import Registry

EXAMPLES = examples(
    "mecroute deploy smollm2:q8_0 --to mec-1", "mecroute deploy smollm2:q8_0 --to mec-1 --timeout 60"
)

_POLL_S = 0.15


def deploy(
    ctx: typer.Context,
    ref: Ref,
    to: Annotated[str, typer.Option("--to", metavar="NODE", help="A node from [[nodes]].")],
    timeout: Annotated[
        float, typer.Option("--timeout", metavar="S", min=1, help="Give up after this long.")
    ] = 600,
) -> None:
    """Deploy a model from the store to a node; waits for it."""
    from mecroute_cli.node_api import NodeApi

    session = session_of(ctx)
    node = session.node(to)
    known = locate(session.registry(), ref)
    with NodeApi(node) as api:
        model = follow(api, session.output, known[0], known[1], timeout_s=timeout)
    shown = {
        "deployed": f"{model.ref} on {node.name}",
        "digest": f"{model.digest} (verified)" if model.digest else formats.MISSING,
        "for": ", ".join(model.tasks),
    }
    if model.context_length is not None:
        shown["context"] = f"{model.context_length} tokens, {model.parallel} at once"
    if model.decode_tokens_per_s is not None:
        shown["decode"] = f"{formats.rate(model.decode_tokens_per_s)} tok/s"
    session.output.dict(
        "deployed", {"node": node.name, "url": node.url, **model.model_dump(mode="json")}, shown
    )
    session.output.hint(_how_to_ask(node, model))


def _how_to_ask(node: NodeConfig, model: ModelReport) -> str:
    if "chat" in model.tasks:
        return f'mecroute chat "Hello" --model mec/{model.ref}'
    paths = {"embed": "v1/embeddings", "classify": "v1/classify", "rerank": "v1/rerank"}
    path = next((paths[task] for task in model.tasks if task in paths), f"v2/models/{model.ref}/infer")
    return f"POST {node.url.rstrip('/')}/{path} asks it"


def locate(registry: Registry, ref: str) -> tuple[str, str | None]:
    """The full reference and the digest that the local registry knows; what was typed where it knows none."""
    from mecroute.errors import ModelNotFoundError

    try:
        model = registry.get(ref)
    except ModelNotFoundError:
        return ref, None
    return model.ref, model.digest


def follow(api: NodeApi, output: Output, ref: str, digest: str | None, *, timeout_s: float) -> ModelReport:
    """Deploy and show each step until the model is ready.

    Raises:
        TierResponseError: the node gave up; the message carries its reason.
        NodeNotReadyError: it was not ready within `timeout_s`.
    """
    from mecroute.errors import NodeNotReadyError, TierResponseError

    name = api.node.name
    deadline = time.monotonic() + timeout_s
    with output.progress(f"deploying {ref} to {name}") as update:
        api.deploy(ref, digest)
        while True:
            model = api.model(ref)
            if model is not None:
                moved = model.progress
                update(moved.done if moved else 0, moved.total if moved else 0, model.state)
                if model.state == "ready" and (digest is None or model.digest == digest):
                    return model
                if model.state == "failed":
                    raise TierResponseError(
                        f"node '{name}' could not deploy {ref}: {model.detail or 'it gave no reason'}",
                        hint=f"mecroute push {ref} puts it into the store; check the node's [store] settings",
                        tier="mec",
                        model=ref,
                    )
            if time.monotonic() > deadline:
                raise NodeNotReadyError(
                    f"{ref} was not ready on node '{name}' after {timeout_s:.0f} s"
                    f" (state: {model.state if model else 'unknown'})",
                    hint="it goes on: `mecroute nodes list` shows how far it is",
                    retryable=True,
                    tier="mec",
                    model=ref,
                )
            time.sleep(_POLL_S)
