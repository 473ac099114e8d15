"""What is known of a model version: the vocabulary shared by the registry, the router and the wire."""

from __future__ import annotations

import re
from datetime import datetime
from pathlib import PurePosixPath
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

Tier = Literal["device", "mec", "cloud"]
Task = Literal["chat", "completion", "embed", "classify", "rerank", "infer"]
ModelFormat = Literal["gguf", "onnx"]

#: Name and version follow OCI's repository and tag grammar (distribution-spec 1.1).
NAME_PATTERN = r"^[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*)*$"
VERSION_PATTERN = r"^[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}$"
DIGEST_PATTERN = r"^sha256:[0-9a-f]{64}$"

Digest = Annotated[str, Field(pattern=DIGEST_PATTERN)]


class Profile(BaseModel):
    """What `bench` measured of a model version on a hardware class.

    Speeds are tokens per second, latencies milliseconds, memory bytes.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    hardware: str = Field(min_length=1, max_length=200, description="hardware class, e.g. linux-x86_64-2c")
    tier: Tier
    measured_at: datetime
    threads: int = Field(ge=1)
    prompt_tokens: int = Field(ge=1, description="prompt length of one measured request")
    output_tokens: int = Field(ge=1, description="output length of one measured request")
    runs: int = Field(ge=1)
    prefill_tokens_per_s: float = Field(gt=0)
    decode_tokens_per_s: float = Field(gt=0)
    ttft_ms_p50: float = Field(ge=0)
    ttft_ms_p95: float = Field(ge=0)
    latency_ms_p50: float = Field(ge=0)
    latency_ms_p95: float = Field(ge=0)
    peak_memory_bytes: int | None = Field(default=None, ge=0)


class Evaluation(BaseModel):
    """A quality measurement of a model version, with what is needed to repeat it."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    dataset: str = Field(min_length=1, description="name and digest of the evaluation data")
    measured_at: datetime
    perplexity: float | None = Field(default=None, gt=0)
    perplexity_tokens: int | None = Field(default=None, ge=1)
    accuracy: float | None = Field(default=None, ge=0, le=1)
    accuracy_items: int | None = Field(default=None, ge=1)


class ModelFacts(BaseModel):
    """The facts one states when registering a model; the registry adds digest and size itself."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(pattern=NAME_PATTERN, max_length=255)
    version: str = Field(pattern=VERSION_PATTERN)
    format: ModelFormat = "gguf"
    deployment_tiers: tuple[Tier, ...] = Field(min_length=1)
    tasks: tuple[Task, ...] = ("chat", "completion", "embed")
    use_cases: tuple[str, ...] = ()
    quantization: str | None = None
    parent_digest: Digest | None = Field(default=None, description="digest of the file it was made from")
    architecture: str | None = None
    parameters: int | None = Field(default=None, ge=0)
    context_length: int | None = Field(default=None, ge=1, description="tokens the model was trained for")
    accuracy: float | None = Field(default=None, ge=0, le=1, description="share of evaluation items right")
    latency_ms: float | None = Field(
        default=None, gt=0, description="median of one reference request on the machine that measured it"
    )
    license: str | None = None

    @field_validator("deployment_tiers")
    @classmethod
    def _no_tier_twice(cls, tiers: tuple[Tier, ...]) -> tuple[Tier, ...]:
        return tuple(dict.fromkeys(tiers))


class ModelFile(BaseModel):
    """One file of a model version.

    Args:
        path: where it lies beside the model file, with `/` between folders; never outside of that folder.
        digest: of its bytes.
        size_bytes: >= 0.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: str = Field(min_length=1, max_length=255)
    digest: Digest
    size_bytes: int = Field(ge=0)

    @field_validator("path")
    @classmethod
    def _stays_inside(cls, path: str) -> str:
        # A store may be anybody's: no path of its manifests leads out of the folder the files are put into.
        plain = path.isprintable() and "\\" not in path and str(PurePosixPath(path)) == path
        if not plain or path.startswith("/") or ".." in PurePosixPath(path).parts or path == ".":
            raise ValueError(f"{path!r} is not the name of a file beside the model file")
        return path


class ModelVersion(ModelFacts):
    """One registered version of a model: its facts, its digests and its size.

    `digest` names the OCI manifest (the identity that is deployed and signed); `file_digest` names the
    bytes of the model file. `companions` are the files that lie beside it: an ONNX model's tensors in files
    of their own, its tokenizer and configuration. `size_bytes` counts them all.
    """

    digest: Digest
    file_digest: Digest
    size_bytes: int = Field(ge=1)
    companions: tuple[ModelFile, ...] = Field(default=(), max_length=1024)
    created: datetime

    @model_validator(mode="after")
    def _files_fit_together(self) -> Self:
        paths = [PurePosixPath(file.path) for file in self.files]
        folders = {folder for path in paths for folder in path.parents}
        if len(set(paths)) != len(paths) or folders & set(paths):
            raise ValueError("two of its files have the same name")
        if self.files[0].size_bytes < 1:
            raise ValueError("its files are larger than all of it")
        return self

    @property
    def files(self) -> tuple[ModelFile, ...]:
        """Every file, the model file first."""
        size = self.size_bytes - sum(file.size_bytes for file in self.companions)
        # Not validated: a size that cannot be is told apart by this class, and not by ModelFile's error.
        own = ModelFile.model_construct(path=f"model.{self.format}", digest=self.file_digest, size_bytes=size)
        return (own, *self.companions)

    @property
    def ref(self) -> str:
        """The reference `name:version`."""
        return f"{self.name}:{self.version}"

    @property
    def size_mb(self) -> float:
        """Size in megabytes (10**6 bytes), to one decimal."""
        return round(self.size_bytes / 1e6, 1)


def parse_ref(ref: str) -> tuple[str, str | None]:
    """Split `name`, `name:version` or `name@sha256:…` into a name and a version or digest.

    Raises:
        ValueError: the text is not a model reference.
    """
    name, at, digest = ref.partition("@")
    if at:
        if not re.match(NAME_PATTERN, name) or not re.match(DIGEST_PATTERN, digest):
            raise ValueError(f"'{ref}' is not a model reference: expected name@sha256:<64 hex digits>")
        return name, digest
    name, colon, version = ref.partition(":")
    if not re.match(NAME_PATTERN, name) or (colon and not re.match(VERSION_PATTERN, version)):
        raise ValueError(f"'{ref}' is not a model reference: expected NAME or NAME:VERSION, in lower case")
    return name, version or None
