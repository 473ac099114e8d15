"""The documents of an OCI image layout, and the media types we put into one.

OCI image-spec 1.1 for the documents; CNCF ModelPack for what a model's manifest holds.
"""

from __future__ import annotations

import json
import re
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mecroute_registry.errors import ArtifactError
from mecroute_registry.facts import Digest

INDEX_TYPE = "application/vnd.oci.image.index.v1+json"
MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
EMPTY_TYPE = "application/vnd.oci.empty.v1+json"
EMPTY_BYTES = b"{}"

MODEL_TYPE = "application/vnd.cncf.model.manifest.v1+json"
MODEL_CONFIG_TYPE = "application/vnd.cncf.model.config.v1+json"
WEIGHT_TYPE = "application/vnd.cncf.model.weight.v1.raw"
WEIGHT_CONFIG_TYPE = "application/vnd.cncf.model.weight.config.v1.raw"
EVALUATION_TYPE = "application/vnd.mecroute.evaluation.v1+json"
PROFILE_TYPE = "application/vnd.mecroute.profile.v1+json"

REF_NAME = "org.opencontainers.image.ref.name"
CREATED = "org.opencontainers.image.created"
FILE_PATH = "org.cncf.model.filepath"

LAYOUT_FILE = "oci-layout"
LAYOUT_BYTES = b'{"imageLayoutVersion":"1.0.0"}'
INDEX_FILE = "index.json"

#: No manifest or measurement of ours comes near; it bounds what a damaged or hostile store makes us read.
MAX_DOCUMENT_BYTES = 4 << 20
MAX_INDEX_BYTES = 64 << 20

_SPELLING = re.compile(r"_([a-z])")


def _camel(field: str) -> str:
    return _SPELLING.sub(lambda match: match.group(1).upper(), field)


class Document(BaseModel):
    """A JSON document of the layout; fields that we do not know are kept as they are."""

    model_config = ConfigDict(frozen=True, extra="allow", alias_generator=_camel, populate_by_name=True)

    @classmethod
    def parse(cls, data: bytes, where: str, hint: str) -> Self:
        """Read a document.

        Args:
            data: the JSON text.
            where: the file or object it came from, for the error message.
            hint: what the reader can do when it is damaged.

        Raises:
            ArtifactError: it is not the document that it should be.
        """
        try:
            return cls.model_validate_json(data)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            place = ".".join(str(part) for part in first["loc"])
            message = f"{where} is damaged: {first['msg']}{f' (at {place})' if place else ''}"
            raise ArtifactError(message, hint=hint) from error

    def encode(self) -> bytes:
        """Return the JSON text; the same document always gives the same bytes, hence the same digest."""
        return encode_json(self.model_dump(mode="json", by_alias=True, exclude_none=True))


class Descriptor(Document):
    """What names a blob: media type, digest and size in bytes."""

    media_type: str
    digest: Digest
    size: int = Field(ge=0)
    artifact_type: str | None = None
    annotations: dict[str, str] | None = None


class Manifest(Document):
    """An image manifest: a config, layers, and the manifest it speaks about, if any."""

    schema_version: int = 2
    media_type: str = MANIFEST_TYPE
    artifact_type: str | None = None
    config: Descriptor
    layers: tuple[Descriptor, ...]
    subject: Descriptor | None = None
    annotations: dict[str, str] | None = None


class Index(Document):
    """The `index.json` of a layout: one descriptor for each manifest."""

    schema_version: int = 2
    media_type: str = INDEX_TYPE
    manifests: tuple[Descriptor, ...] = ()

    def adding(self, entries: tuple[Descriptor, ...]) -> Index:
        """Return this index with the given entries; one whose digest is already there is not added again."""
        present = {entry.digest for entry in self.manifests}
        new = tuple(entry for entry in entries if entry.digest not in present)
        return self.model_copy(update={"manifests": (*self.manifests, *new)})

    def removing(self, digests: frozenset[str]) -> Index:
        """Return this index without the manifests of the given digests."""
        kept = tuple(entry for entry in self.manifests if entry.digest not in digests)
        return self.model_copy(update={"manifests": kept})


def encode_json(value: Any) -> bytes:
    """Return compact JSON with sorted keys."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
