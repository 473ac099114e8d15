"""What a MEC node reports of itself at `GET /admin/node`: written by the server, read by clients."""

from __future__ import annotations

from functools import cached_property
from typing import Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, field_validator

from mecroute_registry.facts import Task

#: A classifier with more says nothing of them in a report that clients read every second.
MOST_LABELS_REPORTED = 512
_TASKS = frozenset(get_args(Task))
ModelState = Literal["pulling", "verifying", "loading", "ready", "failed", "unloaded"]


class TransferProgress(BaseModel):
    """Bytes transferred so far, of how many."""

    done: int = Field(ge=0)
    total: int = Field(ge=0)


class ModelReport(BaseModel):
    """One model on a node. Speeds are tokens per second; None where nothing was measured yet.

    Args:
        ref: the name under which it is served.
        digest: the registry digest; None for a model served straight from a file.
        detail: why it failed, or what it is doing; None when there is nothing to say.
        context_length, parallel, threads: None while the model is not loaded.
        providers: ONNX Runtime's execution providers that an ONNX model runs on, in their order.
        decode_tokens_per_s: of one request that is alone.
        decode_slowdown: how much longer a token takes for each other request, as a share.
        prefill_left_tokens: prompt tokens of accepted requests that are not computed yet.
        accuracy: 0..1, as registered; None where unknown.
        pinned: whether it stays in memory whatever else is asked for.
        on_demand: whether a request brings it into memory, where it is not; takes about `load_s` seconds.
        load_s: how long its last load took; None where it was never loaded.
        heat: requests so far, each counting half after ten minutes.
        resident_bytes, vram_resident_bytes: what it takes of the node's memory budgets.
        prefix_hit_rate: 0..1, share of the prompt tokens since the start that were found in the cache.
        prefixes: keys (see `mecroute.prefix_keys`) of the conversations whose tokens are in memory, the
            most recently used first, at most 256.
        labels: the classes of a text classifier; None where it is none, or they are not known or too many.
    """

    model_config = ConfigDict(extra="ignore")

    ref: str = Field(min_length=1)
    state: ModelState
    digest: str | None = None
    file_digest: str | None = None
    detail: str | None = None
    progress: TransferProgress | None = None
    tasks: tuple[Task, ...] = ("chat", "completion", "embed")
    context_length: int | None = Field(default=None, ge=1)
    parallel: int | None = Field(default=None, ge=1)
    threads: int | None = Field(default=None, ge=1)
    providers: tuple[str, ...] = ()
    running: int = Field(default=0, ge=0)
    queued: int = Field(default=0, ge=0)
    kv_used_tokens: int = Field(default=0, ge=0)
    kv_total_tokens: int = Field(default=0, ge=0)
    prefill_tokens_per_s: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    decode_tokens_per_s: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    decode_slowdown: float | None = Field(default=None, ge=0, le=1)
    prefill_left_tokens: int = Field(default=0, ge=0)
    size_bytes: int | None = Field(default=None, ge=0)
    quantization: str | None = None
    accuracy: float | None = Field(default=None, ge=0, le=1)
    pinned: bool = False
    on_demand: bool = False
    load_s: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    heat: float = Field(default=0, ge=0, allow_inf_nan=False)
    resident_bytes: int = Field(default=0, ge=0)
    vram_resident_bytes: int = Field(default=0, ge=0)
    prefix_hit_rate: float | None = Field(default=None, ge=0, le=1)
    prefixes: tuple[str, ...] = Field(default=(), max_length=256)
    labels: tuple[str, ...] | None = Field(default=None, max_length=MOST_LABELS_REPORTED)

    @field_validator("tasks", mode="before")
    @classmethod
    def _known_tasks(cls, tasks: object) -> object:
        # A newer node may know others, which this client would not ask for.
        if not isinstance(tasks, list | tuple):
            return tasks
        return [one for one in tasks if not isinstance(one, str) or one in _TASKS]

    @cached_property
    def prefix_set(self) -> frozenset[str]:
        """`prefixes` to look one up in."""
        return frozenset(self.prefixes)

    @cached_property
    def label_set(self) -> frozenset[str] | None:
        """`labels` to look one up in."""
        return None if self.labels is None else frozenset(self.labels)


class NodeReport(BaseModel):
    """One node, its machine and its models."""

    model_config = ConfigDict(extra="ignore")

    node: str
    zone: str | None = None
    region: str | None = None
    version: str = ""
    hardware: str = ""
    cpu_count: int = Field(default=1, ge=1)
    cpu_percent: float = Field(default=0, ge=0, allow_inf_nan=False)
    memory_total_bytes: int = Field(default=0, ge=0)
    memory_available_bytes: int = Field(default=0, ge=0)
    peak_memory_bytes: int | None = Field(default=None, ge=0, description="of the node's own process")
    memory_budget_bytes: int | None = Field(default=None, ge=0, description="RAM its models may take")
    memory_resident_bytes: int = Field(default=0, ge=0, description="RAM its models take")
    vram_budget_bytes: int | None = Field(default=None, ge=0)
    vram_resident_bytes: int = Field(default=0, ge=0)
    gpu_backend: str | None = None
    models: tuple[ModelReport, ...] = ()
    retry_after_s: float = Field(default=0, ge=0, allow_inf_nan=False)
