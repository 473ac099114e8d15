"""`mecroute demo`: the whole story on this machine, really running."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mecroute_cli.help import examples
from mecroute_cli.session import session_of

EXAMPLES = examples(
    "mecroute demo", "mecroute demo --source my-model.gguf", "mecroute demo --json > demo.json"
)


def demo(
    ctx: typer.Context,
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
    """See it all run here: make, deploy, route, lose a server."""
    from mecroute.config import DeviceConfig
    from mecroute_cli.demo.prompts import DEVICE_CONTEXT
    from mecroute_cli.demo.scene import Scene
    from mecroute_cli.demo.screen import Screen
    from mecroute_cli.demo.story import tell
    from mecroute_cli.stack.signals import sigterm_as_exit
    from mecroute_cli.stack.source_model import model_name, source_or_default
    from mecroute_cli.stack.stack import Stack
    from mecroute_registry import Registry
    from mecroute_registry.paths import cache_dir

    session = session_of(ctx)
    output = session.output
    screen = Screen(output)
    folder = (workdir or cache_dir() / "demo").absolute()
    chosen = source_or_default(output, source)
    device = DeviceConfig(threads=1, context=DEVICE_CONTEXT)
    with (
        sigterm_as_exit(),
        Stack(folder, chosen, clouds=session.config.cloud, device=device) as stack,
    ):
        stack.forget_state()  # what an earlier run observed must not steer this one
        scene = Scene(
            output=output,
            screen=screen,
            stack=stack,
            registry=Registry(stack.config.registry.path),
            source=chosen,
            name=model_name(chosen),
        )
        summary = tell(scene)
    for key, value in summary.items():
        output.value(key, value)
    if not summary["ok"]:
        raise typer.Exit(1)
