"""Arguments and options that several commands share, spelled and explained once."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer


class TierName(StrEnum):
    """A tier, as typed on the command line."""

    DEVICE = "device"
    MEC = "mec"
    CLOUD = "cloud"


class Floor(StrEnum):
    """A privacy floor, as typed on the command line."""

    DEVICE = "device"
    EDGE = "edge"
    ANY = "any"


Ref = Annotated[str, typer.Argument(metavar="REF", help="NAME, NAME:VERSION or NAME@sha256:…")]
Threads = Annotated[
    int | None, typer.Option("--threads", min=1, help="CPU threads; default: every usable CPU.")
]
EndpointUrl = Annotated[
    str | None, typer.Option("--endpoint-url", metavar="URL", help="An S3 endpoint other than AWS.")
]
Region = Annotated[str | None, typer.Option("--region", help="The bucket's region.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]

Prompt = Annotated[str, typer.Argument(metavar="PROMPT", help="What to ask; - reads it from stdin.")]
Model = Annotated[str, typer.Option("--model", "-m", help="'auto', a model's name, or TIER/NAME.")]
Privacy = Annotated[
    Floor, typer.Option("--privacy", help="device: never leaves it; edge: device or MEC; any: cloud too.")
]
MaxLatency = Annotated[
    float | None, typer.Option("--max-latency-ms", metavar="MS", help="Wished time to the whole answer.")
]
MinQuality = Annotated[
    float | None,
    typer.Option("--min-quality", metavar="0..1", help="Least predicted share of right answers."),
]
MaxCost = Annotated[
    float | None, typer.Option("--max-cost-usd", metavar="USD", help="Most one answer may cost.")
]
Residency = Annotated[
    str | None, typer.Option("--residency", metavar="REGION", help="Region the data must stay in.")
]
Deadline = Annotated[
    float | None, typer.Option("--deadline-ms", metavar="MS", help="Give up after this long.")
]
Policy = Annotated[
    str | None,
    typer.Option("--policy", metavar="NAME", help="How the factors are weighed; default: as configured."),
]
Zone = Annotated[str | None, typer.Option("--zone", metavar="ZONE", help="Where the user is.")]
Cascade = Annotated[
    bool | None,
    typer.Option("--cascade/--no-cascade", help="Judge a nearby answer first; default: as configured."),
]
