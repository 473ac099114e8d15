"""`mecroute models`: what the local registry holds."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mecroute_cli import formats
from mecroute_cli.arguments import Ref, TierName, Yes
from mecroute_cli.help import examples
from mecroute_cli.nouns import Noun
from mecroute_cli.session import session_of
from mecroute_cli.tables import Column

if TYPE_CHECKING:
    from mecroute_registry import ModelVersion

COLUMNS = (
    Column("ref", "model", whole=True),
    Column("deployment_tiers", "tiers"),
    Column("size_bytes", "size", formats.size, right=True),
    Column("quantization", "quant"),
    Column("context_length", "context", right=True),
    Column("accuracy", "accuracy", lambda v: formats.decimals(v, 3), right=True),
    Column("latency_ms", "latency", formats.milliseconds, right=True),
    Column("digest", "digest", formats.digest, whole=True),
)
EVALUATIONS = (
    Column("dataset", "evaluated on"),
    Column("perplexity", "perplexity", formats.decimals, right=True),
    Column("accuracy_shown", "accuracy", right=True),
    Column("measured_at", "measured", formats.day),
)
PROFILES = (
    Column("hardware", "measured on", whole=True),
    Column("tier", "tier"),
    Column("threads", "threads", right=True),
    Column("ttft_ms_p50", "TTFT p50", formats.milliseconds, right=True),
    Column("latency_ms_p50", "latency p50", formats.milliseconds, right=True),
    Column("latency_ms_p95", "p95", formats.milliseconds, right=True),
    Column("prefill_tokens_per_s", "prefill tok/s", formats.rate, right=True),
    Column("decode_tokens_per_s", "decode tok/s", formats.rate, right=True),
    Column("peak_memory_bytes", "peak memory", formats.size, right=True),
)


def build() -> typer.Typer:
    """`mecroute models …`."""
    noun = Noun("List, inspect, register and remove models in the local registry.")
    noun.verb(
        "list",
        list_models,
        examples("mecroute models list", "mecroute models list --json | jq '.models[].ref'"),
    )
    noun.verb(
        "show", show, examples("mecroute models show smollm2", "mecroute models show smollm2:q4_0 --json")
    )
    noun.verb(
        "register",
        register,
        examples(
            "mecroute models register tiny.gguf --name tiny --version q8_0 --tier device",
            "mecroute models register m.gguf --name m --version v1 --tier mec --accuracy 0.61",
            "mecroute models register all-MiniLM-L6-v2/ --name minilm --version int8 --tier mec",
        ),
    )
    noun.verb(
        "remove",
        remove,
        examples("mecroute models remove tiny:q8_0", "mecroute models remove tiny:q8_0 --yes"),
    )
    noun.verb("verify", verify, examples("mecroute models verify smollm2:q4_0"))
    return noun.app


def as_row(model: ModelVersion) -> dict[str, Any]:
    """A model version as JSON values, with its reference."""
    return {"ref": model.ref, **model.model_dump(mode="json"), "size_mb": model.size_mb}


def list_models(ctx: typer.Context) -> None:
    """List every model version and where it may run."""
    session = session_of(ctx)
    rows = [as_row(model) for model in session.registry().list()]
    session.output.table("models", rows, COLUMNS, empty="the registry holds no models")
    if not rows:
        session.output.hint("mecroute quantize SOURCE.gguf --name NAME, or mecroute pull REF")


def show(ctx: typer.Context, ref: Ref) -> None:
    """Show one model: facts, evaluations and profiles."""
    session = session_of(ctx)
    registry = session.registry()
    model = registry.get(ref)
    evaluations = [item.model_dump(mode="json") for item in registry.evaluations(model)]
    profiles = [item.model_dump(mode="json") for item in registry.profiles(model)]
    row = as_row(model)
    shown = {
        "model": model.ref,
        "tiers": formats.text(model.deployment_tiers),
        "tasks": formats.text(model.tasks),
        "use cases": formats.text(model.use_cases),
        "format": formats.text(model.format),
        "quantization": formats.text(model.quantization),
        "size": formats.size(model.size_bytes),
        "architecture": formats.text(model.architecture),
        "parameters": formats.MISSING if model.parameters is None else f"{model.parameters / 1e6:.1f} M",
        "context": formats.MISSING if model.context_length is None else f"{model.context_length} tokens",
        "accuracy": formats.decimals(model.accuracy, 3),
        "latency": formats.milliseconds(model.latency_ms),
        "license": formats.text(model.license),
        "made from": formats.text(model.parent_digest),
        "digest": model.digest,
        "file digest": model.file_digest,
        "other files": ", ".join(file.path for file in model.companions) or formats.MISSING,
        "registered": formats.day(model.created),
    }
    out = session.output
    out.dict("model", row, shown)
    if evaluations or out.as_json:
        rows = [
            {**e, "accuracy_shown": formats.accuracy(e["accuracy"], e["accuracy_items"])} for e in evaluations
        ]
        out.text("", "") if not out.as_json else None
        out.table("evaluations", evaluations if out.as_json else rows, EVALUATIONS)
    if profiles or out.as_json:
        out.text("", "") if not out.as_json else None
        out.table("profiles", profiles, PROFILES)
    if not profiles:
        out.hint(f"mecroute bench {model.ref} measures its speed on this machine")


def register(
    ctx: typer.Context,
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE", help="A GGUF or ONNX file, or a folder with an ONNX model; it is copied."
        ),
    ],
    name: Annotated[str, typer.Option("--name", help="Lower case, as in 'smollm2' or 'team/smollm2'.")],
    version: Annotated[str, typer.Option("--version", help="As in 'q4_0' or 'v2'.")],
    tier: Annotated[
        list[TierName], typer.Option("--tier", help="Where it may run; may be given several times.")
    ],
    use_case: Annotated[
        list[str] | None, typer.Option("--use-case", help="May be given several times.")
    ] = None,
    accuracy: Annotated[float | None, typer.Option("--accuracy", metavar="0..1", help="Share right.")] = None,
    latency_ms: Annotated[
        float | None, typer.Option("--latency-ms", metavar="MS", help="Median latency.")
    ] = None,
) -> None:
    """Register a model under a name and a version.

    With an ONNX model come its external tensors, its tokenizer.json and its config.json.
    """
    from pydantic import ValidationError

    from mecroute.errors import UsageError
    from mecroute_registry.facts import ModelFacts

    session = session_of(ctx)
    try:
        facts = ModelFacts(
            name=name,
            version=version,
            format="onnx" if file.is_dir() or file.suffix.lower() == ".onnx" else "gguf",
            deployment_tiers=tuple(t.value for t in tier),
            use_cases=tuple(use_case or ()),
            accuracy=accuracy,
            latency_ms=latency_ms,
        )
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        option = f"--{str(first['loc'][0]).replace('_', '-')}"
        raise UsageError(
            f"{option}: {first['msg']} (given: {first['input']!r})", hint="mecroute models register --help"
        ) from error
    with session.output.progress(f"registering {name}:{version}") as update:
        model = session.registry().register(file, facts, progress=update)
    session.output.dict(
        "model",
        as_row(model),
        {"registered": model.ref, "size": formats.size(model.size_bytes), "digest": model.digest},
    )
    session.output.hint(f"mecroute models show {model.ref}")


def remove(ctx: typer.Context, ref: Ref, yes: Yes = False) -> None:
    """Remove a model version, its profiles and its evaluations."""
    session = session_of(ctx)
    registry = session.registry()
    model = registry.get(ref)
    if not yes:
        typer.confirm(
            f"remove {model.ref} ({formats.size(model.size_bytes)}) from {registry.root}?",
            abort=True,
            err=True,
        )
    registry.remove(f"{model.name}@{model.digest}" if "@" in ref else model.ref)
    session.output.dict("removed", {"ref": model.ref, "digest": model.digest}, {"removed": model.ref})


def verify(ctx: typer.Context, ref: Ref) -> None:
    """Read every byte of a model again and compare its digest."""
    session = session_of(ctx)
    registry = session.registry()
    model = registry.get(ref)
    with session.output.progress(f"verifying {model.ref}") as update:
        registry.verify(model, progress=update)
    session.output.dict(
        "verified",
        {"ref": model.ref, "file_digest": model.file_digest, "size_bytes": model.size_bytes},
        {"verified": model.ref, "file digest": model.file_digest},
    )
