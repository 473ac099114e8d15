"""Between our facts and OCI manifests: how a model, a profile and an evaluation are written down."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TypeVar

from pydantic import ValidationError

from mecroute_registry.digest import sha256_bytes
from mecroute_registry.errors import ArtifactError
from mecroute_registry.facts import Evaluation, ModelFacts, ModelFile, ModelVersion, Profile
from mecroute_registry.oci import (
    CREATED,
    EMPTY_BYTES,
    EMPTY_TYPE,
    EVALUATION_TYPE,
    FILE_PATH,
    MANIFEST_TYPE,
    MODEL_CONFIG_TYPE,
    MODEL_TYPE,
    PROFILE_TYPE,
    REF_NAME,
    WEIGHT_CONFIG_TYPE,
    WEIGHT_TYPE,
    Descriptor,
    Manifest,
    encode_json,
)
from mecroute_registry.onnx_folder import TEXT_FILES

PREFIX = "dev.mecroute."
#: On the index entry of a measurement, so that a remote index can be filtered without reading manifests.
SUBJECT = f"{PREFIX}subject"
_LISTS = frozenset({"deployment_tiers", "tasks", "use_cases"})
_REBUILD_HINT = "remove that version and register or pull it again"

MeasurementT = TypeVar("MeasurementT", Profile, Evaluation)


@dataclass(frozen=True, slots=True)
class Artifact:
    """A manifest ready to be stored: its index entry and the small blobs it needs, by digest."""

    entry: Descriptor
    blobs: dict[str, bytes]


def describe_model(
    facts: ModelFacts, file_digest: str, size_bytes: int, companions: Sequence[ModelFile] = ()
) -> Artifact:
    """Write a model version down: one layer for its file, and one for each that lies beside it.

    The manifest holds no time stamp, so the same bytes with the same facts have the same digest on every
    machine; when it was registered is said by the index entry.

    Args:
        facts: what is stated about it.
        file_digest: of the model file.
        size_bytes: of the model file alone.
        companions: the files beside it.
    """
    config = encode_json(
        {
            "descriptor": {
                "name": facts.name,
                "version": facts.version,
                **({"family": facts.architecture} if facts.architecture else {}),
                **({"licenses": [facts.license]} if facts.license else {}),
            },
            "config": {
                "architecture": "transformer",
                "format": facts.format,
                **({"paramSize": _short_count(facts.parameters)} if facts.parameters else {}),
                **({"quantization": facts.quantization} if facts.quantization else {}),
            },
            "modelfs": {
                "type": "layers",
                "diffIds": [file_digest, *(companion.digest for companion in companions)],
            },
        }
    )
    file_name = f"{facts.name.rpartition('/')[2]}-{facts.version}.{facts.format}"
    manifest = Manifest(
        artifact_type=MODEL_TYPE,
        config=Descriptor(media_type=MODEL_CONFIG_TYPE, digest=sha256_bytes(config), size=len(config)),
        layers=(
            Descriptor(
                media_type=WEIGHT_TYPE,
                digest=file_digest,
                size=size_bytes,
                annotations={FILE_PATH: file_name},
            ),
            *(
                Descriptor(
                    media_type=WEIGHT_CONFIG_TYPE if companion.path in TEXT_FILES else WEIGHT_TYPE,
                    digest=companion.digest,
                    size=companion.size_bytes,
                    annotations={FILE_PATH: companion.path},
                )
                for companion in companions
            ),
        ),
        annotations=_to_annotations(facts),
    )
    now = datetime.now(UTC).isoformat()
    return _artifact(manifest, [config], {REF_NAME: f"{facts.name}:{facts.version}", CREATED: now})


def describe_measurement(subject: Descriptor, measurement: Profile | Evaluation) -> Artifact:
    """Write a profile or an evaluation down as an artifact about the model manifest `subject`."""
    kind = PROFILE_TYPE if isinstance(measurement, Profile) else EVALUATION_TYPE
    data = encode_json(measurement.model_dump(mode="json", exclude_none=True))
    manifest = Manifest(
        artifact_type=kind,
        config=Descriptor(media_type=EMPTY_TYPE, digest=sha256_bytes(EMPTY_BYTES), size=len(EMPTY_BYTES)),
        layers=(Descriptor(media_type=kind, digest=sha256_bytes(data), size=len(data)),),
        subject=Descriptor(media_type=MANIFEST_TYPE, digest=subject.digest, size=subject.size),
    )
    annotations = {SUBJECT: subject.digest, CREATED: measurement.measured_at.isoformat()}
    return _artifact(manifest, [EMPTY_BYTES, data], annotations)


def _artifact(manifest: Manifest, blobs: Iterable[bytes], annotations: dict[str, str]) -> Artifact:
    data = manifest.encode()
    entry = Descriptor(
        media_type=MANIFEST_TYPE,
        digest=sha256_bytes(data),
        size=len(data),
        artifact_type=manifest.artifact_type,
        annotations=annotations,
    )
    return Artifact(entry, {sha256_bytes(blob): blob for blob in (*blobs, data)})


def is_model(entry: Descriptor) -> bool:
    """Say whether an index entry is a model."""
    return entry.artifact_type == MODEL_TYPE


def read_model(entry: Descriptor, manifest: Manifest, where: str) -> ModelVersion | None:
    """Read a model version back; None when the manifest was not written by mecroute.

    Raises:
        ArtifactError: the manifest is ours and does not say what it should.
    """
    annotations = manifest.annotations or {}
    if f"{PREFIX}name" not in annotations:
        return None
    if not manifest.layers:
        raise ArtifactError(f"{where} is damaged: a model has at least one file", hint=_REBUILD_HINT)
    created = (entry.annotations or {}).get(CREATED)
    layer, *beside = manifest.layers
    try:
        return ModelVersion.model_validate(
            {
                **_from_annotations(annotations),
                "digest": entry.digest,
                "file_digest": layer.digest,
                "size_bytes": sum(one.size for one in manifest.layers),
                "companions": [
                    {
                        "path": (one.annotations or {}).get(FILE_PATH, ""),
                        "digest": one.digest,
                        "size_bytes": one.size,
                    }
                    for one in beside
                ],
                "created": created or datetime.fromtimestamp(0, UTC),
            }
        )
    except (ValidationError, json.JSONDecodeError) as error:
        message = f"{where} is damaged: its facts are not valid"
        raise ArtifactError(message, hint=_REBUILD_HINT) from error


def read_measurement(data: bytes, kind: type[MeasurementT], where: str) -> MeasurementT:
    """Read a profile or an evaluation back.

    Raises:
        ArtifactError: it is damaged.
    """
    try:
        return kind.model_validate_json(data)
    except ValidationError as error:
        message = f"{where} is damaged: not a valid {kind.__name__.lower()}"
        raise ArtifactError(message, hint=_REBUILD_HINT) from error


def _to_annotations(facts: ModelFacts) -> dict[str, str]:
    """One annotation per stated fact; OCI wants strings, so lists are JSON and numbers their decimal form."""
    stated = facts.model_dump(mode="json", exclude_none=True, include=set(ModelFacts.model_fields))
    return {
        f"{PREFIX}{field}": value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        for field, value in stated.items()
    }


def _from_annotations(annotations: dict[str, str]) -> dict[str, Any]:
    # Only known facts: a later version of mecroute may write more.
    values: dict[str, Any] = {}
    for field in ModelFacts.model_fields:
        text = annotations.get(f"{PREFIX}{field}")
        if text is not None:
            values[field] = json.loads(text) if field in _LISTS else text
    return values


def _short_count(count: int) -> str:
    """`134515008` → `135M`, the form of ModelPack's `paramSize`."""
    for unit, size in (("B", 10**9), ("M", 10**6), ("K", 10**3)):
        if count >= size:
            return f"{count / size:.3g}{unit}"
    return str(count)
