"""make_variant: everything or nothing ends up in the registry, and nothing is made twice."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from mecroute.device.hardware import hardware_class
from mecroute.errors import ArtifactError, ArtifactExistsError, InvalidModelFileError, UsageError
from mecroute_quantize import RECIPES, make_variant
from mecroute_registry.digest import sha256_file
from mecroute_registry.facts import ModelFacts
from mecroute_registry.gguf import read_gguf
from mecroute_registry.paths import cache_dir
from mecroute_registry.store import Registry
from support.tiny_gguf import write_tiny_gguf


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_tiny_gguf(tmp_path / "tiny.gguf", says="XYZW")


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry(tmp_path / "registry")


def _leftovers() -> list[Path]:
    return list(cache_dir().glob("variant-*"))


def test_a_variant_is_registered_with_all_that_was_measured(source: Path, registry: Registry) -> None:
    steps: list[tuple[str, float]] = []
    variant = make_variant(
        source,
        "tiny",
        "device",
        registry=registry,
        threads=1,
        progress=lambda step, done: steps.append((step, done)),
    )
    model = registry.get("tiny")
    assert model == variant.model
    assert not variant.reused
    assert variant.reason == RECIPES["device"].reason
    assert (model.version, model.quantization) == ("q4_0", "Q4_0")
    assert model.deployment_tiers == ("device",)
    assert model.use_cases == ("simple_qa", "basic_chat")
    assert model.parent_digest == sha256_file(source)
    assert (model.architecture, model.license) == ("llama", "apache-2.0")
    assert model.accuracy == variant.evaluation.accuracy
    assert model.latency_ms == variant.profile.latency_ms_p50
    assert registry.evaluations(model) == [variant.evaluation]
    assert registry.profiles(model) == [variant.profile]
    assert (variant.profile.prompt_tokens, variant.profile.output_tokens) == (64, 32)
    assert (variant.profile.hardware, variant.profile.tier) == (hardware_class(), "device")
    assert read_gguf(registry.path(model)).tensor_types["Q4_0"] >= 14
    assert list(dict.fromkeys(step for step, _ in steps)) == [
        "read",
        "quantize",
        "evaluate",
        "measure",
        "register",
    ]
    assert _leftovers() == []


def test_tiers_get_their_own_variants(source: Path, registry: Registry) -> None:
    make_variant(source, "tiny", "device", registry=registry, threads=1)
    mec = make_variant(source, "tiny", "mec", registry=registry, threads=1).model
    assert (mec.version, mec.use_cases) == ("q8_0", ("complex_qa", "reasoning", "code_gen"))
    assert {model.version for model in registry.list()} == {"q4_0", "q8_0"}


def test_the_same_variant_is_not_made_twice(source: Path, registry: Registry) -> None:
    first = make_variant(source, "tiny", "mec", quantization="f16", registry=registry, threads=1)
    steps: list[str] = []
    again = make_variant(
        source,
        "tiny",
        "mec",
        quantization="F16",
        registry=registry,
        progress=lambda step, _: steps.append(step),
    )
    assert again.reused
    assert (again.model, again.evaluation, again.profile) == (first.model, first.evaluation, first.profile)
    assert set(steps) == {"read"}


def test_what_an_interrupted_run_left_unmeasured_is_measured(source: Path, registry: Registry) -> None:
    first = make_variant(source, "tiny", "mec", registry=registry, threads=1).model
    file = source.with_name("copy.gguf")
    file.write_bytes(registry.path(first).read_bytes())
    registry.remove(first.ref)
    facts = first.model_dump(exclude={"digest", "file_digest", "size_bytes", "created", "companions"})
    registry.register(file, ModelFacts(**facts))
    assert registry.evaluations(registry.get("tiny")) == []

    again = make_variant(source, "tiny", "mec", registry=registry, threads=1)
    assert again.reused
    assert registry.evaluations(again.model) == [again.evaluation]
    assert registry.profiles(again.model) == [again.profile]


def test_other_bytes_do_not_take_a_variant_s_place(source: Path, registry: Registry) -> None:
    first = make_variant(source, "tiny", "mec", registry=registry, threads=1).model
    write_tiny_gguf(source, seed=1)
    with pytest.raises(ArtifactExistsError, match="was not made from") as caught:
        make_variant(source, "tiny", "mec", registry=registry, threads=1)
    assert caught.value.hint is not None
    assert "mecroute models remove tiny:q8_0" in caught.value.hint
    assert registry.list() == [first]


def test_a_variant_of_another_tier_is_not_taken(source: Path, registry: Registry) -> None:
    make_variant(source, "tiny", "mec", registry=registry, threads=1)
    with pytest.raises(ArtifactExistsError, match="already registered for mec"):
        make_variant(source, "tiny", "device", quantization="Q8_0", registry=registry, threads=1)


@pytest.mark.parametrize("step", ["quantize", "evaluate", "measure"])
def test_giving_up_at_any_step_registers_nothing(source: Path, registry: Registry, step: str) -> None:
    def give_up(now: str, done: float) -> None:
        if now == step and done > 0:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_variant(source, "tiny", "mec", registry=registry, threads=1, progress=give_up)
    assert registry.list() == []
    assert _leftovers() == []


def test_a_quantizer_that_dies_registers_nothing(source: Path, registry: Registry) -> None:
    def kill(step: str, _: float) -> None:
        if step == "quantize":
            for child in psutil.Process().children():
                child.kill()

    with pytest.raises(ArtifactError, match="was killed"):
        make_variant(source, "tiny", "mec", registry=registry, threads=1, progress=kill)
    assert registry.list() == []
    assert _leftovers() == []


class _FullRegistry(Registry):
    """A registry whose disk is full when measurements are written."""

    def add_profile(self, *_: object) -> None:
        raise OSError(28, "No space left on device")


def test_a_model_is_not_registered_without_its_measurements(source: Path, tmp_path: Path) -> None:
    registry = _FullRegistry(tmp_path / "registry")
    with pytest.raises(OSError, match="No space left"):
        make_variant(source, "tiny", "mec", registry=registry, threads=1)
    assert registry.list() == []


def test_a_truncated_source_is_refused(source: Path, registry: Registry) -> None:
    source.write_bytes(source.read_bytes()[:-1])
    with pytest.raises(InvalidModelFileError, match="tiny.gguf"):
        make_variant(source, "tiny", "mec", registry=registry)
    assert registry.list() == []


def test_mistakes_are_found_before_any_work(source: Path, registry: Registry, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="'Not A Name'"):
        make_variant(source, "Not A Name", "mec", registry=registry)
    with pytest.raises(UsageError, match="tier 'cloud'"):
        make_variant(source, "tiny", "cloud", registry=registry)
    with pytest.raises(UsageError, match="'Q9_9'"):
        make_variant(source, "tiny", "mec", quantization="Q9_9", registry=registry)
    with pytest.raises(UsageError, match="nowhere.gguf"):
        make_variant(tmp_path / "nowhere.gguf", "tiny", "mec", registry=registry)
    assert not (tmp_path / "registry").exists()
