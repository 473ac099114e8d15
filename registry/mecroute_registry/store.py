"""The local model registry: what models exist, where they may run, and their bytes."""

from __future__ import annotations

import builtins
import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mecroute_registry.digest import Progress, copy_file, part_of, sha256_file
from mecroute_registry.errors import (
    ArtifactError,
    ArtifactExistsError,
    DigestMismatchError,
    InvalidModelFileError,
    ModelNotFoundError,
)
from mecroute_registry.facts import Evaluation, ModelFacts, ModelFile, ModelVersion, Profile
from mecroute_registry.gguf import read_gguf
from mecroute_registry.layout import Layout, disk_errors
from mecroute_registry.manifest import (
    MeasurementT,
    describe_measurement,
    describe_model,
    is_model,
    read_measurement,
    read_model,
)
from mecroute_registry.oci import (
    EVALUATION_TYPE,
    INDEX_TYPE,
    MANIFEST_TYPE,
    PROFILE_TYPE,
    Descriptor,
    Index,
    Manifest,
)
from mecroute_registry.onnx import read_onnx
from mecroute_registry.onnx_folder import companions_of, model_file, tasks_of
from mecroute_registry.paths import default_registry_dir
from mecroute_registry.selection import newest_first, select
from mecroute_registry.unpacked import discard, unpack


@dataclass(frozen=True, slots=True)
class _Read:
    """A file that has been read: its digest and size, and the copy made of it (None: the registry had it)."""

    digest: str
    size_bytes: int
    copy: Path | None


class Registry:
    """A folder of model versions, each with its facts, its files and its measurements.

    A version never changes once registered: `digest` covers the bytes and the facts, and profiles and
    evaluations are kept beside it. Thread-safe; several processes may share one root.

    Args:
        root: the folder; `default_registry_dir()` when None. It is created by the first write.
    """

    def __init__(self, root: Path | None = None) -> None:
        self.root = default_registry_dir() if root is None else root
        #: The OCI layout under `root`, for the remote stores.
        self.layout = Layout(self.root)
        # Manifests are immutable, so what was read and verified once stays true.
        self._manifests: dict[str, Manifest] = {}
        # Digest → (size, mtime_ns, inode) of the blob when its bytes were last verified.
        self._verified: dict[str, tuple[int, int, int]] = {}

    # --- models -------------------------------------------------------------------------------------------

    def register(self, file: Path, facts: ModelFacts, *, progress: Progress | None = None) -> ModelVersion:
        """Check a model file, copy it in and record its facts.

        Facts left unset are read from the file's header. Registering the same bytes with the same facts
        again changes nothing. With an ONNX model comes what lies beside it: the files that hold its tensors,
        and, where it reads texts, its tokenizer and configuration.

        Args:
            file: the model file, or a folder with one ONNX model; it is only read.
            facts: what is stated about it.
            progress: called with bytes done and in all while the files are read.

        Raises:
            InvalidModelFileError: the file is not a readable model.
            ArtifactExistsError: that name and version are taken by other bytes or facts.
            ArtifactError: the file changed meanwhile, or the registry cannot be written.
        """
        beside: Mapping[str, Path] = {}
        if facts.format == "gguf":
            facts = _complete(facts, file)
        else:
            file = model_file(file)
            facts, beside = _complete_onnx(facts, file)
        sources = (file, *beside.values())
        with disk_errors("read", file):
            total = sum(source.stat().st_size for source in sources)
        with contextlib.ExitStack() as copies:
            read: builtins.list[_Read] = []
            for source in sources:
                done = sum(one.size_bytes for one in read)
                read.append(self._read(source, copies, part_of(progress, done, total)))
            companions = [
                ModelFile(path=path, digest=one.digest, size_bytes=one.size_bytes)
                for path, one in zip(beside, read[1:], strict=True)
            ]
            artifact = describe_model(facts, read[0].digest, read[0].size_bytes, companions)
            with self.layout.locked():
                self._require_free(facts.name, facts.version, artifact.entry.digest)
                for one in read:
                    if one.copy is not None:
                        self.layout.put_file(one.digest, one.copy)
                    elif not self.layout.blob_path(one.digest).exists():
                        message = f"{facts.name}:{facts.version} was removed while it was registered again"
                        raise ArtifactError(message, hint="register it again", retryable=True)
                self.layout.commit((artifact.entry,), artifact.blobs)
        return self.get(f"{facts.name}@{artifact.entry.digest}")

    def list(self) -> list[ModelVersion]:
        """Return all model versions, sorted by name and version.

        Raises:
            ArtifactError: the index or a manifest is damaged; the message names the file.
        """
        return self._models(self.layout.read_index())

    def versions(self, name: str) -> builtins.list[ModelVersion]:
        """Return the versions of one model, the one registered last first; empty when there is none."""
        return newest_first(self.list(), name)

    def get(self, ref: str) -> ModelVersion:
        """Return the model version that a reference names.

        Args:
            ref: `name` (its newest version), `name:version` or `name@sha256:…`.

        Raises:
            UsageError: `ref` is not a reference.
            ModelNotFoundError: there is none; the message lists close names.
        """
        return select(ref, self.list(), f"the registry {self.root}")

    def path(self, model: ModelVersion) -> Path:
        """Return the model's file, its bytes and those of its companions verified against their digests.

        A file is hashed when it is first asked for and whenever its size, time or inode changed since. A
        model with companions has them under their names in the same folder.

        Raises:
            ModelNotFoundError: a file is not in the registry.
            DigestMismatchError: the bytes of one are damaged.
            ArtifactError: the folder of a model with companions cannot be written.
            InvalidModelFileError: an ONNX model without companions keeps tensors in other files.
        """
        blobs = [self.blob(model, file) for file in model.files]
        if model.companions:
            return unpack(self.layout, model)
        # Beside this blob lie those of all other models, which must not be read as its tensors.
        if model.format == "onnx" and (others := read_onnx(blobs[0]).external_files):
            raise InvalidModelFileError(
                f"{model.ref} keeps tensors in '{others[0]}', which is none of its files",
                hint="register it with the files beside it, under another version",
            )
        return blobs[0]

    def blob(self, model: ModelVersion, file: ModelFile) -> Path:
        """Return where the bytes of one file of a model lie, verified as for `path`; raises as it does."""
        if self._verified.get(file.digest) != self._blob_stamp(model, file):
            self._hash(model, file, None)
        return self.layout.blob_path(file.digest)

    def companions(self, model: ModelVersion) -> dict[str, Path]:
        """Return where the files beside a model's file lie, by their names; nothing is verified."""
        return {file.path: self.layout.blob_path(file.digest) for file in model.companions}

    def verify(self, model: ModelVersion, progress: Progress | None = None) -> None:
        """Hash the model's files again, whatever was verified before.

        Raises:
            ModelNotFoundError: a file is not in the registry.
            DigestMismatchError: the bytes of one are damaged.
        """
        done = 0
        for file in model.files:
            self._hash(model, file, part_of(progress, done, model.size_bytes))
            done += file.size_bytes

    def remove(self, ref: str) -> None:
        """Remove a model version, its measurements, and the blobs that nothing else uses.

        Raises:
            UsageError: `ref` is not a reference.
            ModelNotFoundError: there is none.
        """
        with self.layout.locked():
            index = self.layout.read_index()
            model = select(ref, self._models(index), f"the registry {self.root}")
            gone = self._related(index, model.digest)
            rest = index.removing(frozenset(entry.digest for entry in gone))
            unused = self._blobs_of(gone) - self._blobs_of(rest.manifests)
            self.layout.write_index(rest)
            self.layout.delete_blobs(unused)
            discard(self.layout, model.digest)
        for digest in unused:
            self._manifests.pop(digest, None)
            self._verified.pop(digest, None)

    # --- measurements -------------------------------------------------------------------------------------

    def add_profile(self, model: ModelVersion, profile: Profile) -> None:
        """Keep what `bench` measured of a model; its digest stays the same.

        Raises:
            ModelNotFoundError: the model is not in the registry.
        """
        self._add_measurement(model, profile)

    def profiles(self, model: ModelVersion) -> builtins.list[Profile]:
        """Return the newest profile per hardware class, tier and thread count, sorted by these."""
        newest: dict[tuple[str, str, int], Profile] = {}
        for profile in self._measurements(model, PROFILE_TYPE, Profile):
            key = (profile.hardware, profile.tier, profile.threads)
            if key not in newest or newest[key].measured_at <= profile.measured_at:
                newest[key] = profile
        return [newest[key] for key in sorted(newest)]

    def add_evaluation(self, model: ModelVersion, evaluation: Evaluation) -> None:
        """Keep a quality measurement of a model; its digest stays the same.

        Raises:
            ModelNotFoundError: the model is not in the registry.
        """
        self._add_measurement(model, evaluation)

    def evaluations(self, model: ModelVersion) -> builtins.list[Evaluation]:
        """Return all evaluations of a model, the newest first."""
        found = self._measurements(model, EVALUATION_TYPE, Evaluation)
        return sorted(found, key=lambda evaluation: evaluation.measured_at, reverse=True)

    # --- for other programs -------------------------------------------------------------------------------

    def export(self) -> dict[str, Any]:
        """Return the JSON index that older tools read: `{"models": {"name:version": {…}}}`."""
        return {
            "models": {
                model.ref: {
                    "size_mb": model.size_mb,
                    "accuracy": model.accuracy,
                    "latency_ms": model.latency_ms,
                    "deployment_tiers": [*model.deployment_tiers],
                    "use_cases": [*model.use_cases],
                    "version": model.version,
                    "digest": model.digest,
                    "quantization": model.quantization,
                    "parent_digest": model.parent_digest,
                }
                for model in self.list()
            }
        }

    def generation(self) -> tuple[int, ...]:
        """Return a cheap marker that changes with the registry, so that readers can cache `list()`."""
        return self.layout.index_stamp()

    def related(self, model: ModelVersion) -> tuple[Descriptor, ...]:
        """Return the index entries of a model and of everything said about it, the model's first.

        Raises:
            ModelNotFoundError: the model is not in the registry.
        """
        entries = self._related(self.layout.read_index(), model.digest)
        if not entries:
            raise self._missing(model)
        return entries

    def adopt(
        self,
        model: ModelVersion,
        entries: tuple[Descriptor, ...],
        documents: Mapping[str, bytes],
        files: Mapping[str, Path],
    ) -> ModelVersion:
        """Take in a model that a remote store delivered, every digest already verified.

        Args:
            model: the model version.
            entries: its index entry and those of its measurements.
            documents: the small blobs that they need, by digest.
            files: the files of the model that the registry does not have yet, by digest, on its file system.

        Raises:
            ArtifactExistsError: that name and version are taken by another digest.
        """
        with self.layout.locked():
            self._require_free(model.name, model.version, model.digest)
            for digest in dict.fromkeys(file.digest for file in model.files):
                if digest in files:
                    self.layout.put_file(digest, files[digest])
                elif not self.layout.blob_path(digest).exists():
                    message = f"a file of {model.ref} was removed while it was pulled"
                    raise ArtifactError(message, hint="pull it again", retryable=True, model=model.ref)
            self.layout.commit(entries, documents)
        return self.get(f"{model.name}@{model.digest}")

    # --- private ------------------------------------------------------------------------------------------

    def _models(self, index: Index) -> builtins.list[ModelVersion]:
        models = []
        for entry in index.manifests:
            if is_model(entry):
                where = str(self.layout.blob_path(entry.digest))
                model = read_model(entry, self._manifest(entry), where)
                if model is not None:
                    models.append(model)
        return sorted(models, key=lambda model: (model.name, model.version))

    def _manifest(self, entry: Descriptor) -> Manifest:
        manifest = self._manifests.get(entry.digest)
        if manifest is None:
            manifest = self._manifests[entry.digest] = self.layout.read_manifest(entry)
        return manifest

    def _read(self, file: Path, copies: contextlib.ExitStack, progress: Progress | None) -> _Read:
        """Take a file's digest, and a copy of it unless the registry has one; the copy lasts as `copies`."""
        with disk_errors("read", file):
            before = file.stat()
        incoming = copies.enter_context(self.layout.incoming())
        digest, copy = self._stored_copy(file, before.st_size, progress), None
        if digest is None:
            copy = incoming
            with disk_errors("copy", file):
                digest = copy_file(file, copy, progress)
        with disk_errors("read", file):
            after = file.stat()
        if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
            raise ArtifactError(f"{file} changed while it was read", hint="register it once it is complete")
        return _Read(digest, before.st_size, copy)

    def _stored_copy(self, file: Path, size: int, progress: Progress | None) -> str | None:
        """Digest of the file if the registry has a good copy of its bytes already, so that none is made."""
        stored = [(model, one) for model in self.list() for one in model.files]
        if all(one.size_bytes != size for _, one in stored):
            return None
        with disk_errors("read", file):
            digest = sha256_file(file, progress)
        for model, one in stored:
            if one.digest == digest:
                try:
                    self.blob(model, one)
                except (DigestMismatchError, ModelNotFoundError):
                    return None  # that copy is damaged: a new one replaces it
                return digest
        return None

    def _hash(self, model: ModelVersion, file: ModelFile, progress: Progress | None) -> None:
        """Verify the bytes of one file, and note that they were."""
        stamp = self._blob_stamp(model, file)
        path = self.layout.blob_path(file.digest)
        self._verified.pop(file.digest, None)
        with disk_errors("read", path):
            actual = sha256_file(path, progress)
        if actual != file.digest:
            which = "the file" if file.digest == model.file_digest else f"'{file.path}'"
            raise DigestMismatchError(
                f"{which} of {model.ref} is damaged: {path} has digest {actual}",
                hint=f"run `mecroute models rm {model.ref}`, then register or pull it again",
                model=model.ref,
            )
        # The stamp from before the hash: a change during it makes the next `blob` hash again.
        self._verified[file.digest] = stamp

    def _require_free(self, name: str, version: str, digest: str) -> None:
        for model in self.list():
            if (model.name, model.version) == (name, version) and model.digest != digest:
                raise ArtifactExistsError(
                    f"{model.ref} is already in the registry {self.root} with other content ({model.digest})",
                    hint=f"choose another version, or run `mecroute models rm {model.ref}` first",
                    model=model.ref,
                )

    def _related(self, index: Index, digest: str) -> tuple[Descriptor, ...]:
        """The manifest and, level by level, all that have it as their subject (a signature of a profile…)."""
        found = [entry for entry in index.manifests if entry.digest == digest]
        names = {digest} if found else set()
        others = [
            entry
            for entry in index.manifests
            if entry.media_type == MANIFEST_TYPE and not is_model(entry) and entry.digest != digest
        ]
        while names:
            level = []
            for entry in others:
                subject = self._manifest(entry).subject
                if subject is not None and subject.digest in names:
                    level.append(entry)
            found += level
            names = {entry.digest for entry in level}
            others = [entry for entry in others if entry.digest not in names]
        return tuple(found)

    def _blobs_of(self, entries: tuple[Descriptor, ...]) -> frozenset[str]:
        """Every blob that the entries need, their own manifests among them."""
        digests: set[str] = set()
        todo = [*entries]
        while todo:
            entry = todo.pop()
            if entry.digest in digests:
                continue
            digests.add(entry.digest)
            if entry.media_type == MANIFEST_TYPE:
                manifest = self._manifest(entry)
                digests.update(blob.digest for blob in (manifest.config, *manifest.layers))
            elif entry.media_type == INDEX_TYPE:
                nested = Index.parse(self.layout.read_document(entry), entry.digest, "remove that entry")
                todo += nested.manifests
        return frozenset(digests)

    def _add_measurement(self, model: ModelVersion, measurement: Profile | Evaluation) -> None:
        with self.layout.locked():
            index = self.layout.read_index()
            subject = next((entry for entry in index.manifests if entry.digest == model.digest), None)
            if subject is None:
                raise self._missing(model)
            artifact = describe_measurement(subject, measurement)
            self.layout.commit((artifact.entry,), artifact.blobs)

    def _measurements(
        self, model: ModelVersion, artifact_type: str, kind: type[MeasurementT]
    ) -> builtins.list[MeasurementT]:
        found = []
        for entry in self.related(model):
            manifest = self._manifest(entry)
            subject = manifest.subject
            if (
                entry.artifact_type == artifact_type
                and subject is not None
                and subject.digest == model.digest
                and manifest.layers
            ):
                layer = manifest.layers[0]
                data = self.layout.read_document(layer)
                found.append(read_measurement(data, kind, str(self.layout.blob_path(layer.digest))))
        return found

    def _blob_stamp(self, model: ModelVersion, file: ModelFile) -> tuple[int, int, int]:
        path = self.layout.blob_path(file.digest)
        with disk_errors("read", path):
            try:
                status = path.stat()
            except FileNotFoundError as error:
                raise self._missing(model) from error
        return (status.st_size, status.st_mtime_ns, status.st_ino)

    def _missing(self, model: ModelVersion) -> ModelNotFoundError:
        message = f"{model.ref} ({model.digest[:19]}…) is not in the registry {self.root}"
        return ModelNotFoundError(message, hint="register or pull it first", model=model.ref)


def _complete(facts: ModelFacts, file: Path) -> ModelFacts:
    """Fill the facts that were left unset from the header of the file."""
    header = read_gguf(file)
    read = {
        "architecture": header.architecture,
        "parameters": header.parameters,
        "context_length": header.context_length,
        "quantization": header.quantization,
        "license": header.license,
    }
    return facts.model_copy(update=_unset(facts, read))


def _complete_onnx(facts: ModelFacts, file: Path) -> tuple[ModelFacts, Mapping[str, Path]]:
    """The same of an ONNX file, with the files that belong beside it."""
    outline = read_onnx(file)
    read: dict[str, Any] = {"parameters": outline.parameters, "quantization": outline.quantization}
    update = _unset(facts, read)
    if "tasks" not in facts.model_fields_set:
        update["tasks"] = tasks_of(file, outline)
    return facts.model_copy(update=update), companions_of(file, outline)


def _unset(facts: ModelFacts, read: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in read.items() if getattr(facts, name) is None and value is not None}
