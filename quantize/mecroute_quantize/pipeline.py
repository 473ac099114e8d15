"""From a source model to a registered variant for a tier: quantize, evaluate, measure, register."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from mecroute.device.hardware import hardware_class
from mecroute.engines.llama import LlamaEngine
from mecroute.errors import ArtifactExistsError, ModelNotFoundError, UsageError
from mecroute_quantize.evaluation import evaluate
from mecroute_quantize.formats import parse_quantization
from mecroute_quantize.gguf import QuantizedFile, quantize_gguf
from mecroute_quantize.measure import REFERENCE_OUTPUT_TOKENS, REFERENCE_PROMPT_TOKENS, measure_engine
from mecroute_quantize.recipes import recipe_for
from mecroute_registry.digest import sha256_file
from mecroute_registry.facts import Evaluation, ModelFacts, ModelVersion, Profile, Tier
from mecroute_registry.paths import cache_dir
from mecroute_registry.store import Registry

#: Called with the step (`read`, `quantize`, `evaluate`, `measure`, `register`) and its share done, 0 to 1.
StepProgress = Callable[[str, float], None]

_MEASURE_RUNS = 5
_MEASURE_CTX = 256


@dataclass(frozen=True, slots=True)
class Variant:
    """A registered variant and what making it showed.

    Args:
        model: what the registry now holds.
        evaluation: its quality.
        profile: its speed on this machine.
        reason: why this quantization: the recipe's reason, or that it was asked for.
        file: what the quantizer did; None when the variant was already registered.
    """

    model: ModelVersion
    evaluation: Evaluation
    profile: Profile
    reason: str
    file: QuantizedFile | None

    @property
    def reused(self) -> bool:
        """Whether the variant was already registered, made from the same bytes."""
        return self.file is None


def make_variant(
    source: Path,
    name: str,
    tier: Tier,
    *,
    quantization: str | None = None,
    registry: Registry,
    threads: int | None = None,
    progress: StepProgress | None = None,
) -> Variant:
    """Make a variant of a model for a tier and register it, evaluated and measured.

    Nothing is registered when a step fails. The variant's version is the quantization in lower case. One that
    is already registered for the tier and was made from the same bytes is used as it is.

    Args:
        source: a GGUF file.
        name: the model's name in the registry.
        tier: `device` or `mec`.
        quantization: llama.cpp's name, in any case; the tier's recipe decides by default.
        registry: where to register.
        threads: > 0, for every step; the CPU's cores by default.
        progress: called in this thread as steps advance.

    Raises:
        UsageError: a name, tier or quantization that cannot be.
        InvalidModelFileError: the source cannot be read, or the result cannot be evaluated.
        ArtifactExistsError: that name and version are taken, by another source or for another tier.
        ArtifactError: the quantizer failed.
        MissingExtraError: the `device` extra is not installed.
    """
    recipe = recipe_for(tier)
    reason = recipe.reason if quantization is None else "it was asked for"
    label = recipe.quantization if quantization is None else parse_quantization(quantization)
    report = _Steps(progress)
    facts = _facts(name, label, tier, recipe.use_cases)
    source_digest = _digest(source, report)

    if (existing := _registered(registry, facts, source, source_digest)) is not None:
        path = registry.path(existing)
        evaluation = _newest(registry.evaluations(existing))
        if evaluation is None:
            evaluation = evaluate(path, n_threads=threads, progress=report.step("evaluate"))
            registry.add_evaluation(existing, evaluation)
        profile = _profile_here(registry.profiles(existing), tier)
        if profile is None:
            profile = _measure(path, tier, threads, report)
            registry.add_profile(existing, profile)
        return Variant(existing, evaluation, profile, reason, file=None)

    work = cache_dir()
    work.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=work, prefix="variant-") as folder:
        target = Path(folder) / f"{facts.version}.gguf"
        file = quantize_gguf(source, target, label, threads=threads, progress=report.step("quantize"))
        evaluation = evaluate(target, n_threads=threads, progress=report.step("evaluate"))
        profile = _measure(target, tier, threads, report)
        facts = facts.model_copy(
            update={
                "parent_digest": source_digest,
                "accuracy": evaluation.accuracy,
                "latency_ms": profile.latency_ms_p50,
            }
        )
        model = _register(registry, target, facts, evaluation, profile, report)
    return Variant(model, evaluation, profile, reason, file)


class _Steps:
    """Passes a step's progress on under its name."""

    def __init__(self, progress: StepProgress | None) -> None:
        self._progress = progress

    def step(self, name: str) -> Callable[[float], None] | None:
        told = self._progress
        return None if told is None else lambda done: told(name, done)

    def bytes(self, name: str) -> Callable[[int, int], None] | None:
        told = self._progress
        return None if told is None else lambda done, total: told(name, done / total if total else 1.0)


def _facts(name: str, quantization: str, tier: Tier, use_cases: tuple[str, ...]) -> ModelFacts:
    try:
        return ModelFacts(
            name=name,
            version=quantization.lower(),
            deployment_tiers=(tier,),
            use_cases=use_cases,
            quantization=quantization,
        )
    except ValidationError as error:
        raise UsageError(
            f"'{name}' cannot be a model's name",
            hint="use lower-case letters, digits, '.', '_' and '-', as in qwen2.5-0.5b",
        ) from error


def _digest(source: Path, report: _Steps) -> str:
    try:
        return sha256_file(source, report.bytes("read"))
    except OSError as error:
        raise UsageError(
            f"cannot read {source}: {error.strerror}", hint="name a GGUF file that exists and can be read"
        ) from error


def _registered(
    registry: Registry, facts: ModelFacts, source: Path, source_digest: str
) -> ModelVersion | None:
    """The variant as it was made earlier, or None.

    Raises:
        ArtifactExistsError: its name and version belong to something else.
    """
    ref = f"{facts.name}:{facts.version}"
    try:
        existing = registry.get(ref)
    except ModelNotFoundError:
        return None
    hint = f"choose another name or quantization, or remove it: mecroute models remove {ref}"
    if existing.parent_digest != source_digest:
        raise ArtifactExistsError(
            f"{ref} is already registered, and was not made from {source}", hint=hint, model=ref
        )
    if existing.deployment_tiers != facts.deployment_tiers:
        tiers = ", ".join(existing.deployment_tiers)
        raise ArtifactExistsError(f"{ref} is already registered for {tiers}", hint=hint, model=ref)
    return existing


def _newest(evaluations: list[Evaluation]) -> Evaluation | None:
    return max(evaluations, key=lambda evaluation: evaluation.measured_at, default=None)


def _profile_here(profiles: list[Profile], tier: Tier) -> Profile | None:
    here = hardware_class()
    mine = [profile for profile in profiles if profile.hardware == here and profile.tier == tier]
    return max(mine, key=lambda profile: profile.measured_at, default=None)


def _measure(path: Path, tier: Tier, threads: int | None, report: _Steps) -> Profile:
    with LlamaEngine(path, n_ctx=_MEASURE_CTX, n_threads=threads) as engine:
        return measure_engine(
            engine,
            runs=_MEASURE_RUNS,
            prompt_tokens=REFERENCE_PROMPT_TOKENS,
            output_tokens=REFERENCE_OUTPUT_TOKENS,
            tier=tier,
            hardware=hardware_class(),
            progress=report.step("measure"),
        )


def _register(
    registry: Registry,
    file: Path,
    facts: ModelFacts,
    evaluation: Evaluation,
    profile: Profile,
    report: _Steps,
) -> ModelVersion:
    model = registry.register(file, facts, progress=report.bytes("register"))
    try:
        registry.add_evaluation(model, evaluation)
        registry.add_profile(model, profile)
    except BaseException:
        # It is in the registry with all that is known of it, or not at all.
        registry.remove(model.ref)
        raise
    return model
