"""The local registry: what goes in comes out, versions never change, and damage is found and named."""

from __future__ import annotations

import errno
import json
import os
import threading
from datetime import timedelta
from pathlib import Path

import pytest

from mecroute_registry import (
    ArtifactError,
    ArtifactExistsError,
    DigestMismatchError,
    Evaluation,
    InvalidModelFileError,
    ModelFacts,
    ModelNotFoundError,
    Profile,
    Registry,
    UsageError,
    default_registry_dir,
    sha256_file,
)
from support.gguf_bytes import write_model


def _blobs(registry: Registry) -> set[str]:
    return {path.name for path in (registry.root / "blobs" / "sha256").iterdir()}


def test_register_reads_unset_facts_and_keeps_stated_ones(
    registry: Registry, model_file: Path, facts: ModelFacts
) -> None:
    stated = facts.model_copy(update={"license": "apache-2.0", "accuracy": 0.25, "latency_ms": 12.5})
    model = registry.register(model_file, stated)
    assert (model.architecture, model.parameters, model.context_length) == ("llama", 1024, 2048)
    assert (model.quantization, model.license) == ("F32", "apache-2.0")
    assert model.file_digest == sha256_file(model_file)
    assert model.size_bytes == model_file.stat().st_size
    # Everything survives the way through the manifest, in another process as well.
    assert Registry(registry.root).get("tiny:f32") == model
    assert model.model_dump(include=set(ModelFacts.model_fields)) | stated.model_dump(exclude_none=True) == (
        model.model_dump(include=set(ModelFacts.model_fields))
    )


def test_the_store_has_its_own_copy(registry: Registry, model_file: Path, facts: ModelFacts) -> None:
    model = registry.register(model_file, facts)
    before = model_file.read_bytes()
    path = registry.path(model)
    assert not path.is_symlink()
    assert path.stat().st_nlink == 1
    model_file.write_bytes(b"changed afterwards")
    assert registry.path(model).read_bytes() == before


def test_registering_again_changes_nothing(registry: Registry, model_file: Path, facts: ModelFacts) -> None:
    model = registry.register(model_file, facts)
    generation, blobs = registry.generation(), _blobs(registry)
    assert registry.register(model_file, facts) == model
    assert registry.generation() == generation
    assert _blobs(registry) == blobs


def test_a_version_never_changes(
    registry: Registry, model_file: Path, facts: ModelFacts, tmp_path: Path
) -> None:
    model = registry.register(model_file, facts)
    other = write_model(tmp_path / "other.gguf", seed=1)
    with pytest.raises(ArtifactExistsError, match="tiny:f32 is already in the registry"):
        registry.register(other, facts)
    with pytest.raises(ArtifactExistsError):
        registry.register(model_file, facts.model_copy(update={"accuracy": 0.9}))
    assert registry.list() == [model]
    # The bytes of the refused file did not stay behind.
    assert sha256_file(other).removeprefix("sha256:") not in _blobs(registry)


def test_the_digest_depends_on_bytes_and_facts_only(
    tmp_path: Path, model_file: Path, facts: ModelFacts
) -> None:
    copy = tmp_path / "another-name.gguf"
    copy.write_bytes(model_file.read_bytes())
    first = Registry(tmp_path / "one").register(model_file, facts)
    second = Registry(tmp_path / "two").register(copy, facts)
    assert first.digest == second.digest
    other = facts.model_copy(update={"deployment_tiers": ("cloud",)})
    assert Registry(tmp_path / "three").register(copy, other).digest != first.digest


def test_references(registry: Registry, tmp_path: Path, facts: ModelFacts) -> None:
    old = registry.register(write_model(tmp_path / "a.gguf", seed=1), facts)
    new = registry.register(
        write_model(tmp_path / "b.gguf", seed=2), facts.model_copy(update={"version": "q8_0"})
    )
    assert registry.list() == [old, new]
    assert registry.versions("tiny") == [new, old]
    assert registry.versions("nothing") == []
    assert registry.get("tiny") == new
    assert registry.get("tiny:f32") == old
    assert registry.get(f"tiny@{old.digest}") == old
    with pytest.raises(ModelNotFoundError, match=r"did you mean tiny\?.*mecroute models list"):
        registry.get("tinny")
    with pytest.raises(ModelNotFoundError, match=r"it has q8_0, f32"):
        registry.get("tiny:q4_0")
    with pytest.raises(UsageError, match="not a model reference"):
        registry.get("Tiny:../../etc")


def test_an_empty_registry_needs_no_folder(tmp_path: Path) -> None:
    registry = Registry(tmp_path / "none")
    assert registry.list() == []
    assert registry.export() == {"models": {}}
    with pytest.raises(ModelNotFoundError):
        registry.get("tiny")
    assert not (tmp_path / "none").exists()


def test_the_default_root_follows_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert Registry().root == default_registry_dir() == tmp_path / "mecroute" / "registry"


def test_an_invalid_file_is_refused_and_leaves_nothing(
    registry: Registry, tmp_path: Path, facts: ModelFacts
) -> None:
    truncated = write_model(tmp_path / "model.gguf")
    with truncated.open("rb+") as file:
        file.truncate(truncated.stat().st_size - 1)
    with pytest.raises(InvalidModelFileError, match="truncated"):
        registry.register(truncated, facts)
    assert registry.list() == []
    assert not registry.root.exists()


def test_a_file_that_changes_meanwhile_is_refused(
    registry: Registry, model_file: Path, facts: ModelFacts
) -> None:
    def change(done: int, total: int) -> None:
        os.utime(model_file, ns=(1, 1))

    with pytest.raises(ArtifactError, match="changed while it was read"):
        registry.register(model_file, facts, progress=change)
    assert registry.list() == []
    assert _blobs(registry) == set()


def test_progress_ends_at_the_size_of_the_file(
    registry: Registry, model_file: Path, facts: ModelFacts
) -> None:
    seen: list[tuple[int, int]] = []
    registry.register(model_file, facts, progress=lambda done, total: seen.append((done, total)))
    size = model_file.stat().st_size
    assert seen[-1] == (size, size)
    assert sorted(seen) == seen


# --- damage -----------------------------------------------------------------------------------------------


def test_damaged_bytes_are_never_handed_out(registry: Registry, model_file: Path, facts: ModelFacts) -> None:
    model = registry.register(model_file, facts)
    path = registry.path(model)
    path.chmod(0o644)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(DigestMismatchError, match=r"tiny:f32 is damaged.*models rm tiny:f32"):
        registry.path(model)
    with pytest.raises(DigestMismatchError):
        registry.verify(model)
    # Registering the good file again repairs the copy.
    assert registry.register(model_file, facts) == model
    assert registry.path(model).read_bytes() == model_file.read_bytes()


def test_verify_hashes_again_what_path_remembers(
    registry: Registry, model_file: Path, facts: ModelFacts
) -> None:
    model = registry.register(model_file, facts)
    path = registry.path(model)
    status = path.stat()
    path.chmod(0o644)
    with path.open("rb+") as file:
        file.write(b"XXXX")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert registry.path(model) == path  # same size, time and inode: remembered as verified
    with pytest.raises(DigestMismatchError):
        registry.verify(model)
    with pytest.raises(DigestMismatchError):
        registry.path(model)


def test_a_missing_file_is_named(registry: Registry, model_file: Path, facts: ModelFacts) -> None:
    model = registry.register(model_file, facts)
    registry.path(model).unlink()
    with pytest.raises(ModelNotFoundError, match="tiny:f32"):
        registry.path(model)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"manifests": 3}', '{"manifests": [{"digest": "sha256:../x"}]}']
)
def test_a_damaged_index_is_named(registry: Registry, model_file: Path, facts: ModelFacts, text: str) -> None:
    registry.register(model_file, facts)
    (registry.root / "index.json").write_text(text)
    with pytest.raises(ArtifactError, match=r"index\.json is damaged: .*restore"):
        registry.list()
    with pytest.raises(ArtifactError, match=r"index\.json is damaged"):
        registry.register(model_file, facts.model_copy(update={"version": "v2"}))
    assert (registry.root / "index.json").read_text() == text


def test_a_damaged_manifest_is_named(registry: Registry, model_file: Path, facts: ModelFacts) -> None:
    model = registry.register(model_file, facts)
    path = registry.root / "blobs" / "sha256" / model.digest.removeprefix("sha256:")
    path.write_bytes(path.read_bytes().replace(b"llama", b"LLAMA"))
    with pytest.raises(DigestMismatchError, match=path.name):
        Registry(registry.root).list()
    path.unlink()
    with pytest.raises(ArtifactError, match=f"{path.name} is missing"):
        Registry(registry.root).list()


def test_a_full_disk_leaves_the_registry_as_it_was(
    registry: Registry, model_file: Path, facts: ModelFacts, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = registry.register(model_file, facts)

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(ArtifactError, match=r"No space left.*free some disk space"):
            registry.register(model_file, facts.model_copy(update={"version": "v2"}))
    assert registry.list() == [model]
    assert not [path for path in registry.root.rglob("*") if path.name.startswith((".incoming", ".index"))]
    assert registry.register(model_file, facts.model_copy(update={"version": "v2"})).version == "v2"


def test_what_a_killed_process_left_is_swept_away(
    registry: Registry, model_file: Path, facts: ModelFacts
) -> None:
    registry.register(model_file, facts)
    blobs = registry.root / "blobs" / "sha256"
    stale, running = blobs / ".incoming-1-aa", blobs / ".incoming-1-bb"
    stale.write_bytes(b"x")
    running.write_bytes(b"x")
    os.utime(stale, (1, 1))
    registry.register(model_file, facts.model_copy(update={"version": "v2"}))
    assert not stale.exists()
    assert running.exists()


# --- measurements -----------------------------------------------------------------------------------------


def test_measurements_leave_the_digest_alone(
    registry: Registry, model_file: Path, facts: ModelFacts, profile: Profile, evaluation: Evaluation
) -> None:
    model = registry.register(model_file, facts)
    registry.add_profile(model, profile)
    registry.add_evaluation(model, evaluation)
    registry.add_evaluation(model, evaluation)
    assert registry.get("tiny") == model
    again = Registry(registry.root)
    assert again.profiles(model) == [profile]
    assert again.evaluations(model) == [evaluation]
    assert again.list() == [model]


def test_the_newest_profile_per_machine_wins(
    registry: Registry, model_file: Path, facts: ModelFacts, profile: Profile
) -> None:
    model = registry.register(model_file, facts)
    newer = profile.model_copy(
        update={"measured_at": profile.measured_at + timedelta(hours=1), "decode_tokens_per_s": 200.0}
    )
    four = profile.model_copy(update={"threads": 4})
    elsewhere = profile.model_copy(update={"hardware": "aarch64", "tier": "mec"})
    for each in (newer, profile, four, elsewhere):
        registry.add_profile(model, each)
    assert registry.profiles(model) == [elsewhere, newer, four]


def test_evaluations_come_newest_first(
    registry: Registry, model_file: Path, facts: ModelFacts, evaluation: Evaluation
) -> None:
    model = registry.register(model_file, facts)
    newer = evaluation.model_copy(update={"measured_at": evaluation.measured_at + timedelta(days=1)})
    registry.add_evaluation(model, newer)
    registry.add_evaluation(model, evaluation)
    assert registry.evaluations(model) == [newer, evaluation]


def test_nothing_is_measured_of_a_model_that_is_not_there(
    registry: Registry, model_file: Path, facts: ModelFacts, profile: Profile
) -> None:
    model = registry.register(model_file, facts)
    registry.remove("tiny")
    with pytest.raises(ModelNotFoundError):
        registry.add_profile(model, profile)
    with pytest.raises(ModelNotFoundError):
        registry.profiles(model)


# --- removal ----------------------------------------------------------------------------------------------


def test_remove_takes_what_only_that_model_used(
    registry: Registry, model_file: Path, facts: ModelFacts, profile: Profile, evaluation: Evaluation
) -> None:
    model = registry.register(model_file, facts)
    registry.add_profile(model, profile)
    before = _blobs(registry)
    twin = registry.register(model_file, facts.model_copy(update={"version": "twin"}))
    registry.add_profile(twin, profile)  # the same blob as the other's profile
    registry.add_evaluation(twin, evaluation)
    registry.remove("tiny:twin")
    assert _blobs(registry) == before
    assert registry.profiles(model) == [profile]
    assert registry.path(model).exists()
    registry.remove(f"tiny@{model.digest}")
    assert _blobs(registry) == set()
    assert registry.list() == []
    with pytest.raises(ModelNotFoundError):
        registry.remove("tiny")


def test_entries_of_other_tools_are_left_alone(
    registry: Registry, model_file: Path, facts: ModelFacts
) -> None:
    registry.register(model_file, facts)
    path = registry.root / "index.json"
    index = json.loads(path.read_text())
    foreign = {
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "digest": "sha256:" + "0" * 64,
        "size": 2,
        "platform": {"architecture": "arm64", "os": "linux"},
    }
    blob = registry.root / "blobs" / "sha256" / ("0" * 64)
    index["manifests"].append(foreign)
    index["annotations"] = {"org.example": "kept"}
    path.write_text(json.dumps(index))
    registry.register(model_file, facts.model_copy(update={"version": "v2"}))
    written = json.loads(path.read_text())
    assert foreign in written["manifests"]
    assert written["annotations"] == {"org.example": "kept"}
    # What it refers to cannot be known here, so nothing is deleted.
    with pytest.raises(ArtifactError, match=blob.name):
        registry.remove("tiny:v2")
    assert len(registry.list()) == 2


# --- what others see --------------------------------------------------------------------------------------


def test_the_folder_is_an_oci_layout_with_modelpack_manifests(
    registry: Registry, model_file: Path, facts: ModelFacts, profile: Profile
) -> None:
    model = registry.register(model_file, facts)
    registry.add_profile(model, profile)
    assert json.loads((registry.root / "oci-layout").read_text()) == {"imageLayoutVersion": "1.0.0"}
    index = json.loads((registry.root / "index.json").read_text())
    assert index["schemaVersion"] == 2
    entry, about = index["manifests"]
    assert entry["artifactType"] == "application/vnd.cncf.model.manifest.v1+json"
    assert entry["annotations"]["org.opencontainers.image.ref.name"] == "tiny:f32"
    blobs = registry.root / "blobs"
    for descriptor in (entry, about):
        path = blobs / descriptor["digest"].replace(":", "/")
        assert sha256_file(path) == descriptor["digest"]
        assert path.stat().st_size == descriptor["size"]
    manifest = json.loads((blobs / entry["digest"].replace(":", "/")).read_text())
    assert manifest["mediaType"] == "application/vnd.oci.image.manifest.v1+json"
    assert manifest["config"]["mediaType"] == "application/vnd.cncf.model.config.v1+json"
    (layer,) = manifest["layers"]
    assert layer["mediaType"] == "application/vnd.cncf.model.weight.v1.raw"
    assert layer["annotations"] == {"org.cncf.model.filepath": "tiny-f32.gguf"}
    assert layer["digest"] == model.file_digest
    assert manifest["annotations"]["dev.mecroute.deployment_tiers"] == '["device", "mec"]'
    assert all(isinstance(value, str) for value in manifest["annotations"].values())
    config = json.loads((blobs / manifest["config"]["digest"].replace(":", "/")).read_text())
    assert config["modelfs"] == {"type": "layers", "diffIds": [model.file_digest]}
    subject = json.loads((blobs / about["digest"].replace(":", "/")).read_text())["subject"]
    assert subject["digest"] == model.digest


def test_export_has_the_fields_that_older_tools_read(
    registry: Registry, model_file: Path, facts: ModelFacts
) -> None:
    model = registry.register(model_file, facts.model_copy(update={"accuracy": 0.5, "latency_ms": 80.0}))
    exported = json.loads(json.dumps(registry.export()))
    assert exported == {
        "models": {
            "tiny:f32": {
                "size_mb": 0.0,
                "accuracy": 0.5,
                "latency_ms": 80.0,
                "deployment_tiers": ["device", "mec"],
                "use_cases": ["a, b", "c"],
                "version": "f32",
                "digest": model.digest,
                "quantization": "F32",
                "parent_digest": None,
            }
        }
    }


def test_generation_changes_with_every_write(
    registry: Registry, model_file: Path, facts: ModelFacts, profile: Profile
) -> None:
    seen = [registry.generation()]
    model = registry.register(model_file, facts)
    seen.append(registry.generation())
    registry.add_profile(model, profile)
    seen.append(registry.generation())
    registry.remove("tiny")
    seen.append(registry.generation())
    assert len(set(seen)) == 4


def test_threads_share_one_registry(registry: Registry, tmp_path: Path, facts: ModelFacts) -> None:
    errors: list[BaseException] = []

    def work(number: int) -> None:
        try:
            file = write_model(tmp_path / f"{number}.gguf", seed=number)
            model = registry.register(file, facts.model_copy(update={"version": f"v{number}"}))
            registry.path(model)
            registry.list()
        except BaseException as error:  # noqa: BLE001 - shown by the assertion in the main thread
            errors.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert [model.version for model in registry.list()] == [f"v{number}" for number in range(8)]
