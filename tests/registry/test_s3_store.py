"""Models go to a real S3 service and come back whole, with all that is known of them."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import boto3
import pytest

from mecroute_registry import (
    ArtifactExistsError,
    DigestMismatchError,
    Evaluation,
    MissingExtraError,
    ModelFacts,
    ModelNotFoundError,
    ModelVersion,
    Profile,
    Registry,
    RemoteStoreError,
)
from mecroute_registry.remote import RemoteStore, open_remote
from support.gguf_bytes import write_model
from support.process import child_environment
from support.s3 import S3Server

if TYPE_CHECKING:
    from mypy_boto3_s3.client import S3Client


@pytest.fixture
def store(s3: S3Server, uri: str) -> RemoteStore:
    return open_remote(uri, endpoint_url=s3.endpoint_url)


@pytest.fixture
def model(registry: Registry, model_file: Path, facts: ModelFacts) -> ModelVersion:
    return registry.register(model_file, facts)


@pytest.fixture
def node(tmp_path: Path) -> Registry:
    return Registry(tmp_path / "node")


def _client(s3: S3Server) -> S3Client:
    return boto3.session.Session().client("s3", endpoint_url=s3.endpoint_url)


def _split(uri: str) -> tuple[str, str]:
    bucket, _, prefix = uri.removeprefix("s3://").partition("/")
    return bucket, prefix


def test_push_and_pull(
    store: RemoteStore,
    registry: Registry,
    model: ModelVersion,
    node: Registry,
    profile: Profile,
    evaluation: Evaluation,
) -> None:
    registry.add_profile(model, profile)
    registry.add_evaluation(model, evaluation)
    sent: list[tuple[int, int]] = []
    store.push(registry, model, lambda done, total: sent.append((done, total)))
    assert sent[-1] == (model.size_bytes, model.size_bytes)
    assert store.list() == [model]

    got: list[tuple[int, int]] = []
    pulled = store.pull(
        "tiny", node, expect_digest=model.digest, progress=lambda done, total: got.append((done, total))
    )
    assert pulled == model
    assert got[-1] == (model.size_bytes, model.size_bytes)
    assert node.path(pulled).read_bytes() == registry.path(model).read_bytes()
    assert node.profiles(pulled) == [profile]
    assert node.evaluations(pulled) == [evaluation]
    # And once more changes nothing.
    generation = node.generation()
    assert store.pull(f"tiny@{model.digest}", node) == model
    assert node.generation() == generation


def test_the_bucket_holds_an_oci_layout(
    store: RemoteStore, registry: Registry, model: ModelVersion, s3: S3Server, uri: str
) -> None:
    store.push(registry, model)
    bucket, prefix = _split(uri)
    client = _client(s3)
    keys = {item["Key"] for item in client.list_objects_v2(Bucket=bucket)["Contents"]}
    blobs = {path.name for path in (registry.root / "blobs" / "sha256").iterdir()}
    entry = f"{prefix}/entries/{model.digest.removeprefix('sha256:')}.json"
    assert keys == {f"{prefix}/oci-layout", f"{prefix}/index.json", entry} | {
        f"{prefix}/blobs/sha256/{name}" for name in blobs
    }
    index = json.loads(client.get_object(Bucket=bucket, Key=f"{prefix}/index.json")["Body"].read())
    assert index == json.loads((registry.root / "index.json").read_text())


def test_what_the_bucket_has_is_not_sent_again(
    store: RemoteStore, registry: Registry, model: ModelVersion, profile: Profile, s3: S3Server, uri: str
) -> None:
    store.push(registry, model)
    bucket, prefix = _split(uri)
    client = _client(s3)

    def modified() -> dict[str, object]:
        listed = client.list_objects_v2(Bucket=bucket, Prefix=f"{prefix}/blobs/")["Contents"]
        return {item["Key"]: item["LastModified"] for item in listed}

    before = modified()
    registry.add_profile(model, profile)
    store.push(registry, model)
    after = modified()
    assert before.items() <= after.items()
    assert len(after) == len(before) + 3  # the profile, its manifest and the empty config


def test_a_later_pull_brings_new_measurements(
    store: RemoteStore, registry: Registry, model: ModelVersion, node: Registry, profile: Profile
) -> None:
    store.push(registry, model)
    store.pull("tiny", node)
    registry.add_profile(model, profile)
    store.push(registry, model)
    store.pull("tiny", node)
    assert node.profiles(model) == [profile]


def test_measurements_of_other_models_stay_behind(
    store: RemoteStore,
    registry: Registry,
    model: ModelVersion,
    node: Registry,
    profile: Profile,
    facts: ModelFacts,
    tmp_path: Path,
) -> None:
    other = registry.register(
        write_model(tmp_path / "o.gguf", seed=5), facts.model_copy(update={"version": "v2"})
    )
    registry.add_profile(other, profile)
    store.push(registry, model)
    store.push(registry, other)
    store.pull("tiny:f32", node)
    assert node.list() == [model]
    assert node.profiles(model) == []
    assert store.pull("tiny", node) == other  # registered last
    assert node.profiles(other) == [profile]


def test_a_version_in_the_bucket_never_changes(
    store: RemoteStore, registry: Registry, model: ModelVersion, facts: ModelFacts, tmp_path: Path
) -> None:
    store.push(registry, model)
    other = Registry(tmp_path / "other")
    changed = other.register(write_model(tmp_path / "changed.gguf", seed=3), facts)
    with pytest.raises(ArtifactExistsError, match="tiny:f32 is already in s3://"):
        store.push(other, changed)
    with pytest.raises(ArtifactExistsError, match="tiny:f32 is already in the registry"):
        store.pull("tiny:f32", other)
    assert store.list() == [model]
    assert other.list() == [changed]


def test_an_unexpected_digest_is_refused(
    store: RemoteStore, registry: Registry, model: ModelVersion, node: Registry
) -> None:
    store.push(registry, model)
    with pytest.raises(DigestMismatchError, match=f"has digest {model.digest}, expected"):
        store.pull("tiny:f32", node, expect_digest="sha256:" + "0" * 64)
    assert node.list() == []


def test_what_is_not_there(
    store: RemoteStore, registry: Registry, model: ModelVersion, node: Registry, uri: str
) -> None:
    with pytest.raises(RemoteStoreError, match=f"{_split(uri)[0]} at http.*no such bucket"):
        store.list()
    store.push(registry, model)
    with pytest.raises(ModelNotFoundError, match=r"no model 'tinny' in s3://.*did you mean tiny"):
        store.pull("tinny", node)
    with pytest.raises(ModelNotFoundError, match="it has f32"):
        store.pull("tiny:q8_0", node)


def test_a_prefix_without_models_is_empty(
    store: RemoteStore, registry: Registry, model: ModelVersion, s3: S3Server, uri: str
) -> None:
    store.push(registry, model)
    bucket, _ = _split(uri)
    for other in (f"s3://{bucket}", f"s3://{bucket}/edge", f"s3://{bucket}/edge/v1/deeper/"):
        assert open_remote(other, endpoint_url=s3.endpoint_url).list() == []


def test_a_file_in_several_parts(
    store: RemoteStore, registry: Registry, node: Registry, tmp_path: Path, facts: ModelFacts
) -> None:
    # 40 MB are three parts of a multipart upload.
    file = write_model(tmp_path / "large.gguf", size_bytes=40 << 20)
    model = registry.register(file, facts)
    store.push(registry, model)
    assert node.path(store.pull("tiny", node)).stat().st_size == model.size_bytes


def test_writers_at_the_same_time_lose_nothing(
    s3: S3Server, uri: str, tmp_path: Path, facts: ModelFacts
) -> None:
    # This server ignores If-Match, so this shows that a lost update of the index loses no model.
    errors: list[BaseException] = []
    start = threading.Barrier(4)

    def push(number: int) -> None:
        try:
            registry = Registry(tmp_path / f"r{number}")
            file = write_model(tmp_path / f"{number}.gguf", seed=number)
            model = registry.register(file, facts.model_copy(update={"version": f"v{number}"}))
            store = open_remote(uri, endpoint_url=s3.endpoint_url)
            start.wait(30)
            store.push(registry, model)
        except BaseException as error:  # noqa: BLE001 - shown by the assertion in the main thread
            errors.append(error)

    threads = [threading.Thread(target=push, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    listed = open_remote(uri, endpoint_url=s3.endpoint_url).list()
    assert [model.version for model in listed] == ["v0", "v1", "v2", "v3"]


def test_processes_that_pull_the_same_model_share_one_download(
    store: RemoteStore,
    registry: Registry,
    s3: S3Server,
    uri: str,
    node: Registry,
    tmp_path: Path,
    facts: ModelFacts,
) -> None:
    model = registry.register(write_model(tmp_path / "m.gguf", size_bytes=4 << 20), facts)
    store.push(registry, model)
    script = """
import sys
from pathlib import Path
from mecroute_registry import Registry
from mecroute_registry.remote import open_remote
open_remote(sys.argv[1], endpoint_url=sys.argv[2]).pull("tiny:f32", Registry(Path(sys.argv[3])))
"""
    children = [
        subprocess.Popen(
            [sys.executable, "-c", script, uri, s3.endpoint_url, str(node.root)],
            env=child_environment(),
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(3)
    ]
    for child in children:
        _, stderr = child.communicate(timeout=60)
        assert child.returncode == 0, stderr
    assert node.list() == [model]
    node.verify(model)
    assert not list((node.root / "blobs" / "sha256").glob(".*"))


def test_without_boto3_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "mecroute_registry.remote._bucket", raising=False)
    monkeypatch.setitem(sys.modules, "boto3", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'mecroute\[aws\]'"):
        open_remote("s3://bucket/models")
