"""A model store in an S3 bucket: the same OCI image layout as on disk, under a prefix."""

from __future__ import annotations

import builtins
import contextlib
import random
import re
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from mecroute_registry.digest import Progress, part_of, sha256_bytes
from mecroute_registry.errors import (
    ArtifactExistsError,
    DigestMismatchError,
    InvalidModelFileError,
    MissingExtraError,
    ModelNotFoundError,
    RemoteStoreError,
)
from mecroute_registry.facts import ModelFile, ModelVersion
from mecroute_registry.gguf import read_gguf
from mecroute_registry.manifest import SUBJECT, is_model, read_model
from mecroute_registry.oci import (
    INDEX_FILE,
    LAYOUT_BYTES,
    LAYOUT_FILE,
    MANIFEST_TYPE,
    MAX_DOCUMENT_BYTES,
    MAX_INDEX_BYTES,
    Descriptor,
    Index,
    Manifest,
)
from mecroute_registry.remote._download import Download
from mecroute_registry.selection import select
from mecroute_registry.store import Registry

if TYPE_CHECKING:
    from mecroute_registry.remote._bucket import Bucket

_REPAIR_HINT = "delete that object in the store and push the model again"

# Beside the index, one object for each of its entries. On a service that ignores conditional writes, a writer
# may overwrite what another has just added to the index; nobody overwrites these objects, so nothing is lost,
# and the next push brings the index itself up to date.
_ENTRIES = "entries"
_ENTRY_NAME = re.compile(r"[0-9a-f]{64}\.json")

_INDEX_ATTEMPTS = 10
_RETRY_PAUSE_S = (0.05, 0.25)


class S3Store:
    """Models in an S3 bucket, or in any service that speaks S3.

    Credentials come the standard AWS way (environment, profile, instance role). Thread-safe; nothing is
    contacted before the first call.

    Args:
        uri: `s3://bucket/prefix`.
        endpoint_url: the URL of the service; AWS itself when None.
        region: the AWS region; the standard AWS configuration decides when None.

    Raises:
        UsageError: the URI or the endpoint is not one.
        MissingExtraError: boto3 is not installed.
    """

    def __init__(self, uri: str, *, endpoint_url: str | None = None, region: str | None = None) -> None:
        self.uri = uri
        self._bucket = _open_bucket(uri, endpoint_url, region)
        # Manifests are immutable, so each is fetched and verified once.
        self._manifests: dict[str, bytes] = {}

    def push(self, registry: Registry, model: ModelVersion, progress: Progress | None = None) -> None:
        """Copy a model version, its file and its measurements into the bucket, which is created if need be.

        Raises as `RemoteStore.push` says.
        """
        entries = registry.related(model)
        files = {file.digest: file for file in model.files}
        sources = {digest: registry.blob(model, file) for digest, file in files.items()}
        self._bucket.ensure()
        self._require_free(self._read_index(), model)
        done = 0
        for digest, file in files.items():
            self._push_file(file, sources[digest], part_of(progress, done, model.size_bytes))
            done += file.size_bytes
        _report(progress, model)
        for entry in entries:
            manifest = registry.layout.read_manifest(entry)
            for blob in (manifest.config, *manifest.layers, entry):
                if blob.digest not in files:
                    self._push_document(blob.digest, registry.layout.read_document(blob))
        if self._bucket.size(LAYOUT_FILE) != len(LAYOUT_BYTES):
            self._bucket.write(LAYOUT_FILE, LAYOUT_BYTES)
        self._add_to_index(model, entries)

    def pull(
        self,
        ref: str,
        registry: Registry,
        *,
        expect_digest: str | None = None,
        progress: Progress | None = None,
    ) -> ModelVersion:
        """Copy a model version with its measurements into the registry, resuming an interrupted pull.

        Raises as `RemoteStore.pull` says.
        """
        index = self._read_index()
        model = select(ref, self._models(index), self._bucket.where)
        if expect_digest is not None and model.digest != expect_digest:
            raise DigestMismatchError(
                f"{model.ref} in {self._bucket.where} has digest {model.digest}, expected {expect_digest}",
                hint="push the version that is meant, or deploy the digest that is there",
                model=model.ref,
            )
        entries = self._related(index, model)
        files = {file.digest: file for file in model.files}
        documents: dict[str, bytes] = {}
        for entry in entries:
            documents[entry.digest] = self._fetch_manifest(entry)
            manifest = self._parse(entry, documents[entry.digest])
            for blob in (manifest.config, *manifest.layers):
                if blob.digest not in files:
                    documents[blob.digest] = self._fetch_document(blob)
        with contextlib.ExitStack() as claims:
            done, fetched = 0, {}
            # In the order of their digests, so that two pulls cannot wait for each other's claim.
            for digest, file in sorted(files.items()):
                path = self._fetch_file(
                    registry, model, file, claims, part_of(progress, done, model.size_bytes)
                )
                if path is not None:
                    fetched[digest] = path
                done += file.size_bytes
            _report(progress, model)
            return registry.adopt(model, entries, documents, fetched)

    def list(self) -> builtins.list[ModelVersion]:
        """Return the model versions in the bucket, sorted by name and version; none when it holds no index.

        Raises:
            RemoteStoreError: the bucket does not exist, or cannot be reached.
        """
        return self._models(self._read_index())

    # --- push ---------------------------------------------------------------------------------------------

    def _push_file(self, file: ModelFile, source: Path, progress: Progress | None) -> None:
        key = _blob_key(file.digest)
        if self._bucket.size(key) != file.size_bytes:
            self._bucket.upload(key, source, progress)

    def _push_document(self, digest: str, data: bytes) -> None:
        if self._bucket.size(_blob_key(digest)) != len(data):
            self._bucket.write(_blob_key(digest), data)

    def _add_to_index(self, model: ModelVersion, entries: tuple[Descriptor, ...]) -> None:
        """Add entries so that no other writer's are lost, nor ours."""
        present = self._bucket.names(_ENTRIES)
        for entry in entries:
            if _entry_name(entry.digest) not in present:
                self._bucket.write(f"{_ENTRIES}/{_entry_name(entry.digest)}", entry.encode())
        for _ in range(_INDEX_ATTEMPTS):
            index, etag = self._read_index_object()
            complete = self._with_lost_entries(index)
            self._require_free(complete, model)
            if complete == index or self._bucket.swap(INDEX_FILE, complete.encode(), etag):
                return
            time.sleep(random.uniform(*_RETRY_PAUSE_S))  # noqa: S311 - spreads writers out, no secret
        raise RemoteStoreError(
            f"cannot add {model.ref} to the index of {self._bucket.where}: other writers keep changing it",
            hint="push again",
            retryable=True,
            model=model.ref,
        )

    def _require_free(self, index: Index, model: ModelVersion) -> None:
        for there in self._models(index):
            if there.ref == model.ref and there.digest != model.digest:
                raise ArtifactExistsError(
                    f"{model.ref} is already in {self._bucket.where} with other content ({there.digest})",
                    hint="register and push it under another version",
                    model=model.ref,
                )

    # --- pull ---------------------------------------------------------------------------------------------

    def _fetch_file(
        self,
        registry: Registry,
        model: ModelVersion,
        file: ModelFile,
        claims: contextlib.ExitStack,
        progress: Progress | None,
    ) -> Path | None:
        """One file, claimed for as long as `claims` lasts; None where the registry has it already."""
        if _has_file(registry, model, file):
            return None
        key = _blob_key(file.digest)
        download = Download(
            registry.layout,
            file.digest,
            file.size_bytes,
            partial(self._bucket.stream, key),
            f"{key} of {self._bucket.where}",
        )
        path = claims.enter_context(download.claim())
        # Whoever had the claim before us may have completed it.
        if _has_file(registry, model, file):
            path.unlink(missing_ok=True)
            return None
        self._check_size(model, file)
        download.run(path, progress)
        if file.digest == model.file_digest:
            self._check_format(model, path)
        return path

    def _check_size(self, model: ModelVersion, file: ModelFile) -> None:
        key = _blob_key(file.digest)
        size = self._bucket.size(key)
        if size is None:
            which = "the file" if file.digest == model.file_digest else f"'{file.path}'"
            message = f"{which} of {model.ref} is missing from {self._bucket.where} ({key})"
            raise RemoteStoreError(message, hint="push the model again", model=model.ref)
        if size != file.size_bytes:
            raise DigestMismatchError(
                f"{key} of {self._bucket.where} is damaged: {size} bytes, expected {file.size_bytes}",
                hint="push the model again",
                model=model.ref,
            )

    def _check_format(self, model: ModelVersion, path: Path) -> None:
        if model.format != "gguf":
            return  # an ONNX file can be judged only with the others beside it: before it is loaded
        try:
            read_gguf(path)
        except InvalidModelFileError as error:
            path.unlink(missing_ok=True)
            message = f"{self._where(model.file_digest)} is not a model that can be read: {error.message}"
            raise InvalidModelFileError(message, hint="push a good file under another version") from error

    def _related(self, index: Index, model: ModelVersion) -> tuple[Descriptor, ...]:
        """The entries of the model and of what speaks about it directly."""
        found = [entry for entry in index.manifests if entry.digest == model.digest]
        for entry in index.manifests:
            if entry.media_type != MANIFEST_TYPE or is_model(entry):
                continue
            stated = (entry.annotations or {}).get(SUBJECT)
            if stated is not None and stated != model.digest:
                continue
            subject = self._parse(entry, self._fetch_manifest(entry)).subject
            if subject is not None and subject.digest == model.digest:
                found.append(entry)
        return tuple(found)

    # --- documents ----------------------------------------------------------------------------------------

    def _read_index(self) -> Index:
        return self._with_lost_entries(self._read_index_object()[0])

    def _read_index_object(self) -> tuple[Index, str | None]:
        """The index as it is in the bucket, and its ETag; None when there is none."""
        read = self._bucket.read(INDEX_FILE, MAX_INDEX_BYTES)
        if read is None:
            return Index(), None
        where = f"{INDEX_FILE} of {self._bucket.where}"
        return Index.parse(read[0], where, "restore it, or delete it and push a model again"), read[1]

    def _with_lost_entries(self, index: Index) -> Index:
        """The index with the entries that another writer's update took out of it."""
        present = {_entry_name(entry.digest) for entry in index.manifests}
        lost = []
        # Some services list what is still being written under a name of their own; that is no entry yet.
        there = {name for name in self._bucket.names(_ENTRIES) if _ENTRY_NAME.fullmatch(name)}
        for name in sorted(there - present):
            read = self._bucket.read(f"{_ENTRIES}/{name}", MAX_DOCUMENT_BYTES)
            if read is not None:
                where = f"{_ENTRIES}/{name} of {self._bucket.where}"
                lost.append(Descriptor.parse(read[0], where, _REPAIR_HINT))
        return index.adding(tuple(lost))

    def _models(self, index: Index) -> builtins.list[ModelVersion]:
        models = []
        for entry in index.manifests:
            if is_model(entry):
                manifest = self._parse(entry, self._fetch_manifest(entry))
                model = read_model(entry, manifest, self._where(entry.digest))
                if model is not None:
                    models.append(model)
        return sorted(models, key=lambda model: (model.name, model.version))

    def _fetch_manifest(self, entry: Descriptor) -> bytes:
        data = self._manifests.get(entry.digest)
        if data is None:
            data = self._manifests[entry.digest] = self._fetch_document(entry)
        return data

    def _fetch_document(self, descriptor: Descriptor) -> bytes:
        read = self._bucket.read(_blob_key(descriptor.digest), MAX_DOCUMENT_BYTES)
        if read is None:
            message = f"{self._where(descriptor.digest)} is missing"
            raise RemoteStoreError(message, hint="push the model again")
        if sha256_bytes(read[0]) != descriptor.digest:
            message = f"{self._where(descriptor.digest)} is damaged: its bytes do not match its name"
            raise DigestMismatchError(message, hint=_REPAIR_HINT)
        return read[0]

    def _parse(self, entry: Descriptor, data: bytes) -> Manifest:
        return Manifest.parse(data, self._where(entry.digest), _REPAIR_HINT)

    def _where(self, digest: str) -> str:
        return f"{_blob_key(digest)} of {self._bucket.where}"


def _open_bucket(uri: str, endpoint_url: str | None, region: str | None) -> Bucket:
    try:
        from mecroute_registry.remote._bucket import Bucket
    except ImportError as error:
        raise MissingExtraError("aws", f"the model store {uri}") from error
    return Bucket(uri, endpoint_url, region)


def _blob_key(digest: str) -> str:
    return f"blobs/sha256/{digest.removeprefix('sha256:')}"


def _entry_name(digest: str) -> str:
    return f"{digest.removeprefix('sha256:')}.json"


def _has_file(registry: Registry, model: ModelVersion, file: ModelFile) -> bool:
    try:
        registry.blob(model, file)
    except (ModelNotFoundError, DigestMismatchError):
        return False
    return True


def _report(progress: Progress | None, model: ModelVersion) -> None:
    if progress is not None:
        progress(model.size_bytes, model.size_bytes)
