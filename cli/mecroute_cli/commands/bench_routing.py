"""`mecroute bench routing`: train a router on labelled prompts, and see how well it routes others."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mecroute_cli.help import examples
from mecroute_cli.session import session_of

EXAMPLES = examples(
    "mecroute bench routing --train mmlu.csv --eval mmlu.csv",
    "mecroute bench routing --train gsm8k.csv --eval gsm8k.csv --cascade --json",
    "mecroute bench routing --train own.csv --eval own.csv --save quality.mrqp",
)


def bench_routing(
    ctx: typer.Context,
    train: Annotated[
        Path, typer.Option("--train", metavar="CSV", help="Labelled prompts; its rows with split 'train'.")
    ],
    evaluate: Annotated[
        Path, typer.Option("--eval", metavar="CSV", help="Labelled prompts; its rows of every other split.")
    ],
    cascade: Annotated[
        bool, typer.Option("--cascade", help="The router may also read the weak model's answer.")
    ] = False,
    save: Annotated[
        Path | None, typer.Option("--save", metavar="FILE", help="Keep a predictor for [router] predictor.")
    ] = None,
) -> None:
    """Train a router on one file and score it on another (APGR, CPT)."""
    from mecroute.errors import UsageError
    from mecroute.learn.routing_bench import bench_routing as measure

    output = session_of(ctx).output
    output.note(f"training on {train.name}, evaluating on {evaluate.name}")
    found = measure(train, evaluate, cascade=cascade, keep_plain=save is not None)
    if save is not None and found.plain is not None:
        try:
            save.write_bytes(found.plain.pack())
        except OSError as error:
            raise UsageError(f"{save} cannot be written: {error.strerror}") from error
    row = found.to_dict()
    quality = found.quality
    if output.as_json:
        for name, value in row.items():
            output.value(name, value)
    else:
        output.dict(
            "routing",
            row,
            {
                "APGR": f"{quality.apgr:.3f} (95%: {quality.apgr_low:.3f} to {quality.apgr_high:.3f})",
                "CPT 50%": f"{quality.cpt50:.1f}% of calls to the strong model recover half of the gap",
                "CPT 80%": f"{quality.cpt80:.1f}%",
                "one decision": f"{found.route_us_p50:.0f} µs (p50)",
                "weak model alone": f"{quality.weak_accuracy:.1%} right",
                "strong model alone": f"{quality.strong_accuracy:.1%} right",
                "evaluated on": f"{quality.prompts} prompts",
                "learned from": f"{found.trained_rows} prompts, in {found.train_s:.1f} s",
                **({} if found.plain_apgr is None else {"APGR of what is saved": f"{found.plain_apgr:.3f}"}),
            },
        )
    if save is not None:
        output.hint(f'route with it: [router] predictor = "{save}" in mecroute.toml')
