"""Models of several files: registered whole, laid out by name, verified, sent to a store and back."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest

from mecroute_registry import (
    ArtifactError,
    DigestMismatchError,
    InvalidModelFileError,
    ModelFacts,
    ModelVersion,
    Registry,
    RemoteStoreError,
    Task,
    sha256_file,
)
from mecroute_registry.manifest import describe_model, is_model, read_model
from mecroute_registry.oci import Manifest
from mecroute_registry.remote import open_remote
from support.s3 import S3Server
from support.tiny_encoder import write_cross_encoder, write_encoder, write_text_classifier
from support.tiny_onnx import write_classifier

FACTS = ModelFacts(name="enc", version="v1", format="onnx", deployment_tiers=("mec",))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An encoder that keeps its tensors in a second file, its tokenizer above the folder of the model."""
    folder = write_encoder(tmp_path / "made", file="onnx/encoder.onnx", external="weights.bin")
    (folder / "onnx/encoder.onnx").rename(folder / "onnx/model.onnx")
    (folder / "config.json").write_text('{"max_position_embeddings": 64}')
    (folder / "README.md").write_text("not a part of the model")
    return folder


@pytest.fixture
def model(registry: Registry, folder: Path) -> ModelVersion:
    return registry.register(folder, FACTS)


def names(model: ModelVersion) -> set[str]:
    return {file.path for file in model.companions}


def test_what_lies_beside_a_model_comes_with_it(
    registry: Registry, folder: Path, model: ModelVersion
) -> None:
    assert names(model) == {"weights.bin", "tokenizer.json", "config.json"}
    path = registry.path(model)
    assert {file.name for file in path.parent.iterdir()} == {"model.onnx", *names(model)}
    for file, made in (("model.onnx", "onnx/model.onnx"), ("weights.bin", "onnx/weights.bin")):
        assert (path.parent / file).read_bytes() == (folder / made).read_bytes()
    sizes = [(path.parent / file.path).stat().st_size for file in model.files]
    assert model.size_bytes == sum(sizes)
    assert [file.size_bytes for file in model.files] == sizes
    assert (model.tasks, model.parameters, model.quantization) == (("embed", "infer"), 48, "float32")
    # Second names of the same bytes, and none that somebody could write through.
    assert path.stat().st_ino == registry.layout.blob_path(model.file_digest).stat().st_ino
    assert path.stat().st_mode & 0o222 == 0
    assert registry.register(folder / "onnx/model.onnx", FACTS) == model


def test_a_model_of_one_file_has_none(registry: Registry, tmp_path: Path) -> None:
    file = write_classifier(tmp_path / "c.onnx")
    model = registry.register(file, FACTS)
    assert (model.companions, model.tasks) == ((), ("infer",))
    assert registry.path(model) == registry.layout.blob_path(model.file_digest)
    # A tokenizer belongs only to a model that reads tokens.
    (tmp_path / "tokenizer.json").write_text("{}")
    assert registry.register(file, FACTS) == model


@pytest.mark.parametrize(
    ("kind", "tasks"), [("classifier", ("classify", "infer")), ("cross-encoder", ("rerank", "infer"))]
)
def test_the_tasks_are_read_from_the_files(
    registry: Registry, tmp_path: Path, kind: str, tasks: tuple[Task, ...]
) -> None:
    if kind == "classifier":
        made = write_text_classifier(tmp_path / "m", ("good", "bad"))
    else:
        made = write_cross_encoder(tmp_path / "m")
        config = json.loads((made / "config.json").read_text())
        (made / "config.json").write_text(json.dumps({**config, "id2label": {"0": "relevant"}}))
    assert registry.register(made, FACTS).tasks == tasks
    stated = FACTS.model_copy(update={"version": "v2", "tasks": ("infer",)})
    assert registry.register(made, ModelFacts(**stated.model_dump())).tasks == ("infer",)


def test_what_cannot_be_registered(registry: Registry, tmp_path: Path, folder: Path) -> None:
    (tmp_path / "empty.onnx").write_bytes(b"")
    registry.root.mkdir()
    with pytest.raises(InvalidModelFileError):
        registry.register(tmp_path / "empty.onnx", FACTS)
    with pytest.raises(InvalidModelFileError, match="0 ONNX models"):
        registry.register(registry.root, FACTS)
    weights = folder / "onnx/weights.bin"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1])
    with pytest.raises(InvalidModelFileError, match="has 191 bytes of 192"):
        registry.register(folder, FACTS)
    weights.unlink()
    with pytest.raises(InvalidModelFileError, match="not beside it"):
        registry.register(folder, FACTS)
    (tmp_path / "elsewhere").write_bytes(whole)
    weights.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InvalidModelFileError, match="a link"):
        registry.register(folder, FACTS)
    taken = write_encoder(tmp_path / "taken", external="config.json")
    with pytest.raises(InvalidModelFileError, match=r"name of a tokenizer's file"):
        registry.register(taken, FACTS)
    assert registry.list() == []
    assert not list(registry.layout.blob_path("sha256:0").parent.glob(".incoming-*"))


def test_damage_to_any_file_is_found(registry: Registry, model: ModelVersion) -> None:
    registry.verify(model)
    tokenizer = next(file for file in model.companions if file.path == "tokenizer.json")
    blob = registry.layout.blob_path(tokenizer.digest)
    blob.chmod(0o644)
    blob.write_bytes(blob.read_bytes().replace(b"edge", b"Edge"))
    for again in (registry, Registry(registry.root)):
        with pytest.raises(DigestMismatchError, match=r"'tokenizer.json' of enc:v1 is damaged"):
            again.path(model)


def test_the_folder_is_put_right_and_goes_with_the_model(registry: Registry, model: ModelVersion) -> None:
    path = registry.path(model)
    (path.parent / "weights.bin").unlink()
    (path.parent / "tokenizer.json").unlink()
    (path.parent / "tokenizer.json").symlink_to("/etc/passwd")
    # What a process that was killed while it laid files out has left behind.
    left = path.parent.with_name(".new-0123")
    left.mkdir()
    (left / "model.onnx").write_bytes(b"half")
    assert registry.path(model) == path
    assert not (path.parent / "tokenizer.json").is_symlink()
    assert (path.parent / "weights.bin").stat().st_size == 192
    assert not left.exists()
    registry.remove("enc:v1")
    assert not path.parent.exists()
    assert [blob.name for blob in registry.layout.blob_path("sha256:0").parent.iterdir()] == []


def test_two_versions_share_the_bytes_they_have_in_common(
    registry: Registry, folder: Path, model: ModelVersion
) -> None:
    (folder / "config.json").write_text('{"max_position_embeddings": 32}')
    other = registry.register(folder, FACTS.model_copy(update={"version": "v2"}))
    assert other.digest != model.digest
    assert other.file_digest == model.file_digest
    registry.remove("enc:v1")
    assert registry.path(other).is_file()


def test_copies_where_there_are_no_hard_links(
    registry: Registry, model: ModelVersion, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(errno.EPERM, "no hard links here")

    monkeypatch.setattr(os, "link", refuse)
    path = registry.path(model)
    assert path.stat().st_ino != registry.layout.blob_path(model.file_digest).stat().st_ino
    before = path.stat().st_ino
    assert registry.path(model) == path
    assert path.stat().st_ino == before
    weights = path.parent / "weights.bin"
    weights.chmod(0o644)
    weights.write_bytes(bytes(192))
    assert registry.path(model) == path
    assert weights.read_bytes() != bytes(192)


@pytest.mark.parametrize(
    "path",
    [
        "../escape",
        "/etc/passwd",
        "a/../../b",
        "a\\b",
        "a//b",
        "./a",
        ".",
        "",
        "a\0b",
        "a\nb",
        "model.onnx",
        "tokenizer.json",
        "model.onnx/x",
        "tokenizer.json/x",
    ],
)
def test_a_manifest_cannot_name_files_elsewhere(registry: Registry, model: ModelVersion, path: str) -> None:
    entry = next(one for one in registry.layout.read_index().manifests if is_model(one))
    manifest = registry.layout.read_manifest(entry)
    first, second, *rest = manifest.layers
    bad = second.model_copy(update={"annotations": {"org.cncf.model.filepath": path}})
    hostile: Manifest = manifest.model_copy(update={"layers": (first, bad, *rest)})
    with pytest.raises(ArtifactError, match="is damaged"):
        read_model(entry, hostile, "the manifest")
    assert read_model(entry, manifest, "the manifest") == model


def test_a_model_cannot_take_tensors_from_another(registry: Registry, tmp_path: Path) -> None:
    """A manifest that leaves its companions out: beside its file lie the blobs of all models."""
    victim = registry.register(write_classifier(tmp_path / "c.onnx"), FACTS)
    name = victim.file_digest.removeprefix("sha256:")
    thief = write_encoder(tmp_path / "thief", external=name) / "model.onnx"
    digest = sha256_file(thief)
    artifact = describe_model(FACTS.model_copy(update={"name": "thief"}), digest, thief.stat().st_size)
    with registry.layout.locked():
        registry.layout.put_file(digest, thief)
        registry.layout.commit((artifact.entry,), artifact.blobs)
    with pytest.raises(InvalidModelFileError, match="none of its files"):
        registry.path(registry.get("thief"))


def test_what_was_registered_before_has_the_digest_it_had() -> None:
    """One file, one layer: the manifest of a model without companions is what it always was."""
    artifact = describe_model(FACTS, f"sha256:{'0' * 64}", 7)
    manifest = Manifest.parse(artifact.blobs[artifact.entry.digest], "here", "")
    assert len(manifest.layers) == 1
    assert artifact.entry.digest == "sha256:734a54e20ffbcc1910e27b7e5e3b088f8be2b5ef336725a1719cc8a23a2a1cde"


@pytest.fixture
def store(s3: S3Server, uri: str) -> Any:
    return open_remote(uri, endpoint_url=s3.endpoint_url)


def test_a_store_keeps_all_of_it(store: Any, registry: Registry, model: ModelVersion, tmp_path: Path) -> None:
    sent: list[tuple[int, int]] = []
    store.push(registry, model, lambda done, total: sent.append((done, total)))
    assert sent[-1] == (model.size_bytes, model.size_bytes)
    assert [done for done, _ in sent] == sorted(done for done, _ in sent)
    assert store.list() == [model]
    node = Registry(tmp_path / "node")
    got: list[tuple[int, int]] = []
    assert store.pull("enc", node, progress=lambda done, total: got.append((done, total))) == model
    assert got[-1] == (model.size_bytes, model.size_bytes)
    assert [done for done, _ in got] == sorted(done for done, _ in got)
    for file in model.files:
        assert node.path(model).with_name(file.path).read_bytes() == (
            registry.path(model).with_name(file.path).read_bytes()
        )


def test_a_pull_that_was_cut_off_goes_on(
    store: Any, registry: Registry, model: ModelVersion, tmp_path: Path
) -> None:
    store.push(registry, model)
    node = Registry(tmp_path / "node")

    class StopError(Exception):
        pass

    for stop_at in range(0, model.size_bytes, 150):

        def stop(done: int, _: int, at: int = stop_at) -> None:
            if at < done < model.size_bytes:
                raise StopError

        try:
            store.pull("enc", node, progress=stop)
        except StopError:
            assert node.list() == []  # all of it, or nothing
    assert store.pull("enc", node) == model
    assert node.path(model).is_file()
    assert not list(node.layout.blob_path("sha256:0").parent.glob(".partial-*"))


def test_a_file_that_the_store_has_lost_is_named(
    store: Any, s3: S3Server, uri: str, registry: Registry, model: ModelVersion, tmp_path: Path
) -> None:
    import boto3

    store.push(registry, model)
    weights = next(file for file in model.companions if file.path == "weights.bin")
    bucket, _, prefix = uri.removeprefix("s3://").partition("/")
    key = f"{prefix}/blobs/sha256/{weights.digest.removeprefix('sha256:')}".lstrip("/")
    client = boto3.session.Session().client("s3", endpoint_url=s3.endpoint_url)
    client.put_object(Bucket=bucket, Key=key, Body=bytes(192))
    with pytest.raises(DigestMismatchError):
        store.pull("enc", Registry(tmp_path / "node"))
    client.delete_object(Bucket=bucket, Key=key)
    with pytest.raises(RemoteStoreError, match=r"'weights.bin' of enc:v1 is missing"):
        store.pull("enc", Registry(tmp_path / "node"))
    store.push(registry, model)
    assert store.pull("enc", Registry(tmp_path / "node")) == model
