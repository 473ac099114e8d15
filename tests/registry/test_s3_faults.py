"""What goes wrong between a node and its store: cut connections, wrong bytes, refusals, silence."""

from __future__ import annotations

import hashlib
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import boto3
import pytest

from mecroute_registry import (
    ArtifactError,
    DigestMismatchError,
    InvalidModelFileError,
    ModelFacts,
    ModelNotFoundError,
    ModelVersion,
    Registry,
    RemoteStoreError,
    UsageError,
)
from mecroute_registry.manifest import describe_model
from mecroute_registry.remote import open_remote
from support.gguf_bytes import write_model
from support.process import child_environment
from support.s3 import S3Server, free_port
from support.tcp_proxy import faulty_proxy

_SIZE = 4 << 20


@pytest.fixture
def model(registry: Registry, tmp_path: Path, facts: ModelFacts, s3: S3Server, uri: str) -> ModelVersion:
    """A model of 4 MiB that is in the store."""
    model = registry.register(write_model(tmp_path / "m.gguf", size_bytes=_SIZE), facts)
    open_remote(uri, endpoint_url=s3.endpoint_url).push(registry, model)
    return model


@pytest.fixture
def node(tmp_path: Path) -> Registry:
    return Registry(tmp_path / "node")


Put = Callable[[str, bytes], None]


@pytest.fixture
def put(s3: S3Server, uri: str) -> Put:
    """Writes an object of the store behind its back."""
    bucket, _, prefix = uri.removeprefix("s3://").partition("/")
    client = boto3.session.Session().client("s3", endpoint_url=s3.endpoint_url)

    def write(key: str, data: bytes) -> None:
        client.put_object(Bucket=bucket, Key=f"{prefix}/{key}", Body=data)

    return write


def _key(digest: str) -> str:
    return f"blobs/sha256/{digest.removeprefix('sha256:')}"


def _is_clean(node: Registry) -> bool:
    return node.list() == [] and not list((node.root / "blobs" / "sha256").glob("*"))


# --- interruptions ----------------------------------------------------------------------------------------


def test_a_cut_pull_resumes_on_the_next_call(
    s3: S3Server, uri: str, model: ModelVersion, node: Registry
) -> None:
    with faulty_proxy(s3.endpoint_url) as proxy:
        store = open_remote(uri, endpoint_url=proxy.url)
        proxy.cut_after(_SIZE // 2)
        with pytest.raises(RemoteStoreError, match="unreachable") as caught:
            store.pull("tiny", node)
        assert caught.value.retryable
        assert node.list() == []
        partial = node.layout.partial_path(model.file_digest)
        kept = partial.stat().st_size
        assert _SIZE // 4 < kept < _SIZE

        proxy.heal()
        before = proxy.received
        seen: list[int] = []
        pulled = store.pull("tiny", node, progress=lambda done, _: seen.append(done))
        assert seen[0] == kept
        assert proxy.received - before < model.size_bytes - kept + 64 * 1024
    assert not partial.exists()
    node.verify(pulled)


def test_a_connection_that_breaks_is_taken_up_within_the_call(
    s3: S3Server, uri: str, model: ModelVersion, node: Registry
) -> None:
    with faulty_proxy(s3.endpoint_url) as proxy:
        store = open_remote(uri, endpoint_url=proxy.url)
        cut_at: list[int] = []

        def cut_half_way(done: int, total: int) -> None:
            if done > _SIZE // 2 and not cut_at:
                cut_at.append(done)
                proxy.cut_now()

        pulled = store.pull("tiny", node, progress=cut_half_way)
        assert cut_at
        # Had it started again, half of the file would have come twice. (What was under way is lost.)
        assert proxy.received < model.size_bytes * 1.4
    node.verify(pulled)


def test_a_killed_pull_resumes_in_another_process(
    s3: S3Server, uri: str, model: ModelVersion, node: Registry
) -> None:
    script = """
import sys
from pathlib import Path
from mecroute_registry import Registry
from mecroute_registry.remote import open_remote
open_remote(sys.argv[1], endpoint_url=sys.argv[2]).pull("tiny", Registry(Path(sys.argv[3])))
"""
    with faulty_proxy(s3.endpoint_url) as proxy:
        proxy.slow_down(1_000_000)
        child = subprocess.Popen(
            [sys.executable, "-c", script, uri, proxy.url, str(node.root)],
            env=child_environment(),
            stderr=subprocess.PIPE,
        )
        partial = node.layout.partial_path(model.file_digest)
        try:
            while not partial.exists() or partial.stat().st_size < 512 * 1024:
                assert child.poll() is None
                time.sleep(0.02)
        finally:
            child.send_signal(signal.SIGKILL)
            child.communicate(timeout=30)
        kept = partial.stat().st_size
        assert 0 < kept < model.size_bytes
        assert node.list() == []

        proxy.heal()
        before = proxy.received
        pulled = open_remote(uri, endpoint_url=proxy.url).pull("tiny", node)
        assert proxy.received - before < model.size_bytes - kept + 64 * 1024
    node.verify(pulled)


_KILLED_PUSH = """
import sys, time
from pathlib import Path
from mecroute_registry import Registry
from mecroute_registry.remote import open_remote
from mecroute_registry.remote._bucket import Bucket
uri, endpoint_url, root, name, when = sys.argv[1:]
whole = getattr(Bucket, name)
def stopping(self, key, *rest):
    if key.startswith(when):
        print("there", flush=True)
        time.sleep(60)
    return whole(self, key, *rest)
setattr(Bucket, name, stopping)
registry = Registry(Path(root))
open_remote(uri, endpoint_url=endpoint_url).push(registry, registry.get("tiny"))
"""


@pytest.mark.parametrize(
    ("name", "key"),
    [("write", "blobs/"), ("write", "entries/"), ("swap", "index.json"), ("upload", "while it is sent")],
    ids=["before its documents", "before its entry", "before the index", "within the file"],
)
def test_a_killed_push_shows_nothing_half_and_can_be_repeated(
    s3: S3Server, uri: str, registry: Registry, tmp_path: Path, facts: ModelFacts, name: str, key: str
) -> None:
    model = registry.register(write_model(tmp_path / "m.gguf", size_bytes=_SIZE), facts)
    with faulty_proxy(s3.endpoint_url) as proxy:
        child = subprocess.Popen(
            [sys.executable, "-c", _KILLED_PUSH, uri, proxy.url, str(registry.root), name, key],
            env=child_environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            if name == "upload":
                proxy.slow_down(None, sent_bytes_per_s=_SIZE / 4)
                while proxy.sent < _SIZE / 4:
                    assert child.poll() is None
                    time.sleep(0.02)
            else:
                assert child.stdout
                assert child.stdout.readline() == "there\n"
        finally:
            child.send_signal(signal.SIGKILL)
            child.communicate(timeout=30)
    # Whoever looks now sees the whole model, once its entry is written, or none of it.
    store, early = open_remote(uri, endpoint_url=s3.endpoint_url), Registry(tmp_path / "early")
    if name == "swap":
        early.verify(store.pull("tiny", early))
    else:
        assert store.list() == []
        with pytest.raises(ModelNotFoundError):
            store.pull("tiny", early)
    store.push(registry, model)
    again = Registry(tmp_path / "again")
    pulled = open_remote(uri, endpoint_url=s3.endpoint_url).pull("tiny", again)
    assert pulled.digest == model.digest
    again.verify(pulled)


def test_a_cut_push_leaves_the_index_alone_and_can_be_repeated(
    s3: S3Server, uri: str, registry: Registry, tmp_path: Path, facts: ModelFacts, model: ModelVersion
) -> None:
    second = registry.register(
        write_model(tmp_path / "2.gguf", seed=2, size_bytes=_SIZE), facts.model_copy(update={"version": "v2"})
    )
    with faulty_proxy(s3.endpoint_url) as proxy:
        store = open_remote(uri, endpoint_url=proxy.url)
        store.list()

        def cut(done: int, total: int) -> None:
            proxy.cut_after(0)

        with pytest.raises(RemoteStoreError):
            store.push(registry, second, cut)
        proxy.heal()
        assert open_remote(uri, endpoint_url=proxy.url).list() == [model]
        store.push(registry, second)
        assert len(store.list()) == 2


def test_a_damaged_partial_file_is_found_and_fetched_anew(
    s3: S3Server, uri: str, model: ModelVersion, node: Registry
) -> None:
    node.layout.create()
    partial = node.layout.partial_path(model.file_digest)
    for rest in (b"x" * 1000, b"x" * model.size_bytes, b"x" * (model.size_bytes + 1)):
        partial.write_bytes(rest)
        node.verify(open_remote(uri, endpoint_url=s3.endpoint_url).pull("tiny", node))
        assert not partial.exists()
        node.remove("tiny")


# --- wrong bytes ------------------------------------------------------------------------------------------


def test_wrong_bytes_in_the_bucket_never_arrive(
    s3: S3Server, uri: str, model: ModelVersion, node: Registry, registry: Registry, put: Put
) -> None:
    data = bytearray(registry.path(model).read_bytes())
    data[_SIZE // 2] ^= 0x40
    put(_key(model.file_digest), bytes(data))
    store = open_remote(uri, endpoint_url=s3.endpoint_url)
    with pytest.raises(DigestMismatchError, match="do not match"):
        store.pull("tiny", node)
    assert _is_clean(node)
    put(_key(model.file_digest), bytes(data[:-1]))
    with pytest.raises(DigestMismatchError, match=f"{len(data) - 1} bytes, expected {len(data)}"):
        store.pull("tiny", node)
    assert _is_clean(node)
    # A file of the wrong size is sent again.
    store.push(registry, model)
    node.verify(store.pull("tiny", node))


def test_a_wrong_manifest_is_refused(
    s3: S3Server, uri: str, model: ModelVersion, node: Registry, registry: Registry, put: Put
) -> None:
    manifest = registry.layout.blob_path(model.digest).read_bytes()
    put(_key(model.digest), manifest.replace(b"llama", b"LLAMA"))
    with pytest.raises(DigestMismatchError, match=model.digest.removeprefix("sha256:")):
        open_remote(uri, endpoint_url=s3.endpoint_url).pull("tiny", node)
    assert node.list() == []


@pytest.mark.parametrize("text", [b"", b"<html>", b"{}garbage", b'{"manifests": [1]}'])
def test_a_damaged_index_is_named_and_not_overwritten(
    s3: S3Server, uri: str, model: ModelVersion, registry: Registry, put: Put, text: bytes
) -> None:
    put("index.json", text)
    store = open_remote(uri, endpoint_url=s3.endpoint_url)
    with pytest.raises(ArtifactError, match=r"index\.json of s3://.* is damaged"):
        store.list()
    with pytest.raises(ArtifactError, match=r"index\.json of s3://"):
        store.push(registry, model)


def test_a_hostile_manifest_cannot_name_a_path(
    s3: S3Server, uri: str, model: ModelVersion, node: Registry, put: Put, registry: Registry
) -> None:
    entry = json.loads((registry.root / "index.json").read_text())["manifests"][0]
    manifest = json.loads(registry.layout.blob_path(model.digest).read_text())
    manifest["layers"][0]["digest"] = "sha256:../../../../etc/passwd"
    _publish(put, entry, json.dumps(manifest).encode())
    with pytest.raises(ArtifactError, match="is damaged"):
        open_remote(uri, endpoint_url=s3.endpoint_url).pull("tiny", node)
    assert not node.root.exists()


def test_a_file_that_is_no_model_is_not_registered(
    s3: S3Server, uri: str, node: Registry, put: Put, facts: ModelFacts, model: ModelVersion
) -> None:
    data = b"GGUF" + bytes(1000)
    digest = "sha256:" + hashlib.sha256(data).hexdigest()
    artifact = describe_model(facts, digest, len(data))
    put(_key(digest), data)
    for name, blob in artifact.blobs.items():
        put(_key(name), blob)
    put("index.json", json.dumps({"manifests": [artifact.entry.model_dump(by_alias=True)]}).encode())
    with pytest.raises(InvalidModelFileError, match="is not a model that can be read"):
        open_remote(uri, endpoint_url=s3.endpoint_url).pull("tiny", node)
    assert _is_clean(node)


def test_a_missing_file_is_named(s3: S3Server, uri: str, model: ModelVersion, node: Registry) -> None:
    bucket, _, prefix = uri.removeprefix("s3://").partition("/")
    client = boto3.session.Session().client("s3", endpoint_url=s3.endpoint_url)
    client.delete_object(Bucket=bucket, Key=f"{prefix}/{_key(model.file_digest)}")
    with pytest.raises(RemoteStoreError, match="file of tiny:f32 is missing"):
        open_remote(uri, endpoint_url=s3.endpoint_url).pull("tiny", node)
    assert _is_clean(node)


# --- refusals and silence ---------------------------------------------------------------------------------


def test_access_denied(
    s3: S3Server,
    uri: str,
    model: ModelVersion,
    node: Registry,
    registry: Registry,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    store = open_remote(uri, endpoint_url=s3.endpoint_url)
    for call in (store.list, lambda: store.pull("tiny", node), lambda: store.push(registry, model)):
        with pytest.raises(
            RemoteStoreError, match=r"s3://models-.*access denied.*AWS_ACCESS_KEY_ID"
        ) as caught:
            call()
        assert not caught.value.retryable
        assert s3.endpoint_url in caught.value.message


def test_no_credentials(s3: S3Server, uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(RemoteStoreError, match="no usable AWS credentials"):
        open_remote(uri, endpoint_url=s3.endpoint_url).list()


def test_unreachable(s3: S3Server, uri: str, node: Registry) -> None:
    store = open_remote(uri, endpoint_url=f"http://127.0.0.1:{free_port()}")
    with pytest.raises(RemoteStoreError, match=r"unreachable.*check that the service runs") as caught:
        store.pull("tiny", node)
    assert caught.value.retryable


def test_an_endpoint_that_is_no_url(s3: S3Server, uri: str) -> None:
    with pytest.raises(UsageError, match="127"):
        open_remote(uri, endpoint_url="127.0.0.1:9000").list()


def _publish(put: Put, entry: dict[str, Any], manifest: bytes) -> None:
    """Put a manifest into the store as the only one, under its true digest."""
    digest = "sha256:" + hashlib.sha256(manifest).hexdigest()
    put(_key(digest), manifest)
    put(
        "index.json", json.dumps({"manifests": [{**entry, "digest": digest, "size": len(manifest)}]}).encode()
    )
