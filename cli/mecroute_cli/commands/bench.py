"""`mecroute bench MODEL`: measure a model here or on a node, and keep the figures as its profile."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from mecroute_cli.arguments import Ref, Threads, TierName
from mecroute_cli.commands import bench_routing
from mecroute_cli.commands.models import PROFILES
from mecroute_cli.help import Command, Group, examples
from mecroute_cli.node_bench import bench_node
from mecroute_cli.session import Session, session_of

if TYPE_CHECKING:
    from mecroute.config import NodeConfig
    from mecroute_registry import ModelVersion, Profile

EXAMPLES = examples(
    "mecroute bench smollm2:q4_0",
    "mecroute bench smollm2:q8_0 --tier mec --node mec-1 --runs 20",
    "mecroute bench model smollm2:q4_0 --prompt-tokens 256 --output-tokens 64 --json",
)
_MODEL = "model"


class _Bench(Group):
    """Verbs, and `mecroute bench MODEL` as the short form of `mecroute bench model MODEL`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Read a line that begins with no verb as one that measures a model."""
        known = {*self.list_commands(ctx), *ctx.help_option_names}
        if args and args[0] not in known:
            args = [_MODEL, *args]
        return super().parse_args(ctx, args)


def build() -> typer.Typer:
    """`mecroute bench …`."""
    app = typer.Typer(
        cls=_Bench,
        no_args_is_help=True,
        rich_markup_mode=None,
        help="Measure a model's speed, or how well routing would choose.",
        epilog=examples(
            "mecroute bench smollm2:q4_0            its speed here",
            "mecroute bench routing --train a.csv --eval b.csv",
        ),
    )
    app.command(_MODEL, cls=Command, epilog=EXAMPLES)(bench)
    app.command("routing", cls=Command, epilog=bench_routing.EXAMPLES)(bench_routing.bench_routing)
    return app


def bench(
    ctx: typer.Context,
    ref: Ref,
    tier: Annotated[TierName | None, typer.Option("--tier", help="device (in this process) or mec.")] = None,
    node: Annotated[
        str | None, typer.Option("--node", help="The MEC node to measure; implies --tier mec.")
    ] = None,
    runs: Annotated[int, typer.Option("--runs", min=1, max=10_000, help="Measured requests.")] = 10,
    prompt_tokens: Annotated[int, typer.Option("--prompt-tokens", min=4, help="Length of each prompt.")] = 64,
    output_tokens: Annotated[int, typer.Option("--output-tokens", min=2, help="Length of each answer.")] = 32,
    threads: Threads = None,
) -> None:
    """Measure a model's speed, for routing to reckon with."""
    from mecroute.errors import UsageError

    session = session_of(ctx)
    if tier is TierName.CLOUD:
        raise UsageError("only the device and MEC tiers can be measured", hint="--tier device or --tier mec")
    if tier is TierName.DEVICE and node is not None:
        raise UsageError("--node belongs to --tier mec", hint="leave out --tier device")
    if threads is not None and (node is not None or tier is TierName.MEC):
        raise UsageError(
            "a node has its own threads", hint="set them where it starts: mecroute serve --threads N"
        )
    registry = session.registry()
    model = registry.get(ref)
    size = {"runs": runs, "prompt_tokens": prompt_tokens, "output_tokens": output_tokens}
    if node is not None or tier is TierName.MEC:
        profile = bench_node(session.output, chosen_node(session, node), model, **size)
    else:
        profile = bench_device(session, model, threads, size)
    registry.add_profile(model, profile)
    row = profile.model_dump(mode="json")
    if session.output.as_json:
        session.output.value("ref", model.ref)
        session.output.value("profile", row)
    else:
        session.output.table("profiles", [row], PROFILES)
    session.output.hint(f"kept with {model.ref}: `mecroute models show {model.ref}`, and routing reads it")


def bench_device(session: Session, model: ModelVersion, threads: int | None, size: dict[str, Any]) -> Profile:
    """Measure in this process, with the device tier's settings."""
    from mecroute.device.hardware import hardware_class
    from mecroute.engines.llama import LlamaEngine
    from mecroute_quantize.measure import measure_engine

    device = session.config.device
    path = session.registry().path(model)
    engine = LlamaEngine(
        path,
        n_ctx=max(device.context, size["prompt_tokens"] + size["output_tokens"] + 16),
        n_threads=threads or device.threads,
        n_gpu_layers=device.gpu_layers,
        name=model.ref,
    )
    try:
        with session.output.progress(f"measuring {model.ref} on this machine", unit="share") as update:
            return measure_engine(
                engine,
                **size,
                tier="device",
                hardware=hardware_class(),
                progress=lambda share: update(share, 1),
            )
    finally:
        engine.close()


def chosen_node(session: Session, name: str | None) -> NodeConfig:
    """The node of that name, or the only one there is.

    Raises:
        UsageError: no node was named and there is not exactly one.
    """
    from mecroute.errors import UsageError

    nodes = session.config.nodes
    if name is None and len(nodes) != 1:
        raise UsageError(
            f"--node is needed: {len(nodes)} nodes are configured", hint="`mecroute nodes list` shows them"
        )
    return session.node(name) if name is not None else nodes[0]
