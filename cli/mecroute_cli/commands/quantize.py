"""`mecroute quantize`: make a model fit a tier, and see what that cost."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from mecroute_cli.arguments import Threads, TierName
from mecroute_cli.help import examples
from mecroute_cli.session import session_of

EXAMPLES = examples(
    "mecroute quantize smollm2.gguf --name smollm2",
    "mecroute quantize smollm2.gguf --name smollm2 --tier device --quantization Q4_K_M",
)


def quantize(
    ctx: typer.Context,
    source: Annotated[Path, typer.Argument(metavar="SOURCE", help="A GGUF file, of any quantization.")],
    name: Annotated[str, typer.Option("--name", help="The model's name in the registry.")],
    tier: Annotated[
        list[TierName] | None, typer.Option("--tier", help="device or mec; default: both, one variant each.")
    ] = None,
    quantization: Annotated[
        str | None,
        typer.Option("--quantization", "-q", help="As llama.cpp names it; with one tier only."),
    ] = None,
    threads: Threads = None,
    compare: Annotated[
        bool, typer.Option("--compare/--no-compare", help="Measure the source too, to compare with.")
    ] = True,
) -> None:
    """Make a variant of a model for each tier, and register it."""
    from mecroute.errors import UsageError
    from mecroute_cli.making import COLUMNS, make, source_row, variant_row

    session = session_of(ctx)
    out = session.output
    wanted = list(dict.fromkeys(tier or (TierName.DEVICE, TierName.MEC)))
    if TierName.CLOUD in wanted:
        raise UsageError("no variant is made for the cloud", hint="--tier device or --tier mec")
    if quantization is not None and len(wanted) != 1:
        raise UsageError(
            "--quantization needs exactly one --tier",
            hint=f"add --tier device or --tier mec to -q {quantization}",
        )
    tiers: list[Literal["device", "mec"]] = ["device" if t is TierName.DEVICE else "mec" for t in wanted]
    made = make(
        out, source, name, tiers, quantization=quantization, registry=session.registry(), threads=threads
    )
    rows = [variant_row(variant) for variant in made]
    if compare:
        rows.insert(0, source_row(out, source, threads))
    out.table("variants", rows, COLUMNS)
    for variant in made:
        out.note(f"{variant.model.ref}: {variant.reason}")
    out.hint(f"mecroute models show {made[-1].model.ref}")
