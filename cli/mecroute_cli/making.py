"""Makes variants with progress on the screen, and the figures to compare them with their source."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mecroute_cli import formats
from mecroute_cli.tables import Column

if TYPE_CHECKING:
    from mecroute_cli.output import Output
    from mecroute_quantize import Variant
    from mecroute_registry import Registry
    from mecroute_registry.facts import Evaluation, Profile, Tier

COLUMNS = (
    Column("ref", "model", whole=True),
    Column("tier", "for"),
    Column("size_bytes", "size", formats.size, right=True),
    Column("perplexity", "perplexity", formats.decimals, right=True),
    Column("accuracy_shown", "accuracy", right=True),
    Column("prefill_tokens_per_s", "prefill tok/s", formats.rate, right=True),
    Column("decode_tokens_per_s", "decode tok/s", formats.rate, right=True),
    Column("state", "", lambda value: value or ""),
)

_STEPS = {"read": 0, "quantize": 1, "evaluate": 2, "measure": 3, "register": 4}
_WORDS = {"read": "reading", "quantize": "quantizing", "evaluate": "evaluating", "measure": "measuring"}


def make(
    output: Output,
    source: Path,
    name: str,
    tiers: Iterable[Tier],
    *,
    quantization: str | None,
    registry: Registry,
    threads: int | None,
) -> list[Variant]:
    """Make one variant per tier; those made earlier from the same bytes are reused."""
    from mecroute_quantize import make_variant

    made: list[Variant] = []
    for tier in tiers:
        with output.progress(f"{name} for {tier}", unit="share") as update:

            def step(phase: str, share: float, update: Any = update) -> None:
                update(_STEPS.get(phase, 0) + share, len(_STEPS), _WORDS.get(phase, "registering"))

            variant = make_variant(
                source,
                name,
                tier,
                quantization=quantization,
                registry=registry,
                threads=threads,
                progress=step,
            )
            update(len(_STEPS), len(_STEPS), "made earlier, reused" if variant.reused else "")
        made.append(variant)
    return made


def variant_row(variant: Variant) -> dict[str, Any]:
    """A variant's figures as JSON values."""
    return {
        "ref": variant.model.ref,
        "tier": variant.model.deployment_tiers[0],
        "quantization": variant.model.quantization,
        "digest": variant.model.digest,
        "size_bytes": variant.model.size_bytes,
        **_figures(variant.evaluation, variant.profile),
        "reason": variant.reason,
        "state": "made earlier" if variant.reused else "new",
    }


def source_row(output: Output, source: Path, threads: int | None) -> dict[str, Any]:
    """The source's figures, measured in the same way; kept by digest, so that a second run does not wait."""
    from mecroute.device.hardware import hardware_class
    from mecroute_registry.digest import sha256_file
    from mecroute_registry.gguf import read_gguf

    digest = sha256_file(source)
    evaluation, profile = _figures_of_file(output, source, digest, threads)
    facts = read_gguf(source)
    return {
        "ref": f"{source.name} (source)",
        "tier": None,
        "quantization": facts.quantization,
        "digest": digest,
        "size_bytes": source.stat().st_size,
        **_figures(evaluation, profile),
        "reason": f"measured on {hardware_class()}",
        "state": "",
    }


def _figures(evaluation: Evaluation, profile: Profile) -> dict[str, Any]:
    return {
        "perplexity": evaluation.perplexity,
        "accuracy": evaluation.accuracy,
        "accuracy_items": evaluation.accuracy_items,
        "accuracy_shown": formats.accuracy(evaluation.accuracy, evaluation.accuracy_items),
        "prefill_tokens_per_s": profile.prefill_tokens_per_s,
        "decode_tokens_per_s": profile.decode_tokens_per_s,
        "latency_ms": profile.latency_ms_p50,
    }


def _figures_of_file(
    output: Output, source: Path, digest: str, threads: int | None
) -> tuple[Evaluation, Profile]:
    from pydantic import ValidationError

    from mecroute.device.hardware import hardware_class
    from mecroute.engines.llama import LlamaEngine
    from mecroute_quantize import evaluate, measure_engine
    from mecroute_quantize.evaluation.dataset import dataset_name
    from mecroute_registry.facts import Evaluation, Profile
    from mecroute_registry.paths import cache_dir

    kept = (
        cache_dir()
        / "source-figures"
        / f"{digest.removeprefix('sha256:')}-{hardware_class()}-{threads or 'all'}"
    )
    files = (kept.with_suffix(".evaluation.json"), kept.with_suffix(".profile.json"))
    try:
        evaluation = Evaluation.model_validate_json(files[0].read_bytes())
        profile = Profile.model_validate_json(files[1].read_bytes())
        if evaluation.dataset == dataset_name():
            return evaluation, profile
    except (OSError, ValidationError):
        pass  # never measured, or a file that cannot be read: measure
    with output.progress(f"{source.name}, to compare with", unit="share") as update:
        evaluation = evaluate(source, n_threads=threads, progress=lambda s: update(s, 2, "evaluating"))
        with LlamaEngine(source, n_ctx=256, n_threads=threads) as engine:
            profile = measure_engine(
                engine,
                tier="device",
                hardware=hardware_class(),
                progress=lambda s: update(1 + s, 2, "measuring"),
            )
        update(2, 2)
    kept.parent.mkdir(parents=True, exist_ok=True)
    for file, content in zip(files, (evaluation, profile), strict=True):
        part = file.with_suffix(".part")
        part.write_text(content.model_dump_json(), encoding="utf-8")
        part.replace(file)
    return evaluation, profile
