"""The shape of the configuration: one class per table of `mecroute.toml`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal, Protocol, Self, TypeVar

from pydantic import ConfigDict, Discriminator, Field, SecretStr, field_validator, model_validator

from mecroute.config.base import HttpUrl, Name, RemoteConfig, S3Uri
from mecroute.config.base import Table as _Table
from mecroute.config.caching import CacheConfig, PlacementConfig
from mecroute.config.cascade import CascadeConfig
from mecroute.config.discovery import CamaraSource, DnsSrvSource, MdnsSource, S3Source
from mecroute.config.network import NetworkConfig
from mecroute.config.prices import PriceConfig

#: How requests are spread over targets of one tier whose scores are about equal.
Balance = Literal["least-latency", "round-robin", "zone", "cost", "prefix"]
#: Names that a policy of one's own may not take.
BUILT_IN_POLICIES = frozenset({"balanced", "latency-first", "quality-first", "cheap", "private"})


class _Named(Protocol):
    @property
    def name(self) -> str: ...


R = TypeVar("R", bound=_Named)


def _uniquely_named(tables: tuple[R, ...]) -> tuple[R, ...]:
    names = [table.name for table in tables]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"the name '{twice[0]}' is used twice")
    return tables


def _json_of_a_variable(value: object) -> object:
    """A table or list that came as the text of an environment variable."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except json.JSONDecodeError as error:
        raise ValueError(f"not valid JSON: {error}") from error


class RegistryConfig(_Table):
    """`[registry]`: where the local model registry lies."""

    path: Path | None = Field(default=None, description="folder; default: the user data folder")


class StoreConfig(_Table):
    """`[store]`: the remote model store. Credentials come the standard AWS way, never from here."""

    uri: str | None = Field(default=None, description="s3://bucket/prefix")
    endpoint_url: HttpUrl | None = Field(default=None, description="an S3 endpoint other than AWS")
    region: str | None = None


class TextModelConfig(_Table):
    """`[[device.text_models]]`: an ONNX encoder or classifier that is in no registry.

    It embeds texts, or classifies them where its `config.json` names classes.
    """

    name: Name
    path: Path = Field(description="folder with the model, its tokenizer.json and its config.json")
    accuracy: float | None = Field(default=None, ge=0, le=1, description="measured share of right answers")


class DeviceConfig(_Table):
    """`[device]`: the tier inside this process."""

    enabled: bool = True
    threads: int | None = Field(default=None, ge=1, le=1024, description="default: every usable CPU")
    context: int = Field(default=2048, ge=64, le=1_000_000, description="tokens per request")
    gpu_layers: int = Field(default=0, ge=-1, description="-1 puts every layer on the GPU")
    battery_floor: float = Field(default=0.15, ge=0, le=1, description="below it the device is spared")
    text_threads: int = Field(default=1, ge=1, le=1024, description="of each encoder and classifier")
    text_models: tuple[TextModelConfig, ...] = Field(default=(), description="encoders and classifiers")

    @field_validator("text_models", mode="before")
    @classmethod
    def _text_models_of_a_variable(cls, value: object) -> object:
        return _json_of_a_variable(value)

    @field_validator("text_models")
    @classmethod
    def _text_model_names_are_unique(cls, models: tuple[TextModelConfig, ...]) -> tuple[TextModelConfig, ...]:
        return _uniquely_named(models)


class Weighting(_Table):
    """One entry of `[router] policies`: the weights of a policy of your own."""

    latency: float = Field(default=0, ge=0, le=1)
    quality: float = Field(default=0, ge=0, le=1)
    cost: float = Field(default=0, ge=0, le=1)
    availability: float = Field(default=0, ge=0, le=1)
    floor: Literal["device", "edge", "any"] | None = Field(default=None, description="least privacy with it")
    cascade: bool = Field(default=True, description="whether cascades may be planned, where they are enabled")
    encode: bool = Field(default=True, description="whether decisions may wait for the encoder")

    @model_validator(mode="after")
    def _weights_sum_to_one(self) -> Self:
        total = self.latency + self.quality + self.cost + self.availability
        if abs(total - 1) > 1e-6:
            raise ValueError(f"the four weights must sum to 1, not {total:.3f}")
        return self


class RouterConfig(_Table):
    """`[router]`: how candidates are scored, and how load is spread over equal ones."""

    policy: str = Field(default="balanced", min_length=1, description="where a request names none")
    policies: dict[Name, Weighting] = Field(default={}, description="weightings of your own, by name")
    balance: Balance = Field(default="least-latency", description="who comes first among equals")
    tie_margin: float = Field(default=0.02, ge=0, le=1, description="scores this close go to the nearer tier")
    latency_target_ms: float = Field(default=3000, gt=0, description="used when a request states none")
    cost_target_usd: float = Field(default=0.001, gt=0, description="used when a request states none")
    zone: str | None = Field(default=None, description="where this client is, when a request does not say")
    sticky_margin: float = Field(
        default=0.05, ge=0, le=1, description="a conversation keeps its node within this score; 0: never"
    )
    predictor: str = Field(
        default="shipped", min_length=1, description="learned difficulty: shipped, off, or a file"
    )
    encoder: str | None = Field(
        default=None, min_length=1, description="text model of the device that reads prompts; default: none"
    )
    hedge: Literal["free", "always", "never"] = Field(
        default="free", description="ask a second target when the first is late: if it costs nothing"
    )
    hedge_budget: float = Field(default=0.05, ge=0, le=1, description="most hedges per request, as a share")
    cascade: CascadeConfig = Field(default=CascadeConfig(), description="first answers that are judged")

    @field_validator("policies", "cascade", mode="before")
    @classmethod
    def _tables_of_a_variable(cls, value: object) -> object:
        return _json_of_a_variable(value)

    @field_validator("policies")
    @classmethod
    def _own_names(cls, value: dict[str, Weighting]) -> dict[str, Weighting]:
        taken = sorted(set(value) & BUILT_IN_POLICIES)
        if taken:
            raise ValueError(f"'{taken[0]}' is built in and cannot be changed; choose another name")
        return value


class NodeConfig(RemoteConfig):
    """`[[nodes]]`: one MEC server."""

    url: HttpUrl
    zone: str | None = None


class CloudConfig(RemoteConfig):
    """`[[cloud]]`: one model behind an OpenAI-compatible API."""

    base_url: HttpUrl = Field(description="up to and including /v1")
    model: str = Field(min_length=1)
    quality: float = Field(default=0.9, ge=0, le=1, description="declared accuracy of the model")
    context_length: int = Field(default=128_000, ge=1)
    continues_prefix: bool = Field(
        default=False, description="whether a final assistant message is continued (llama-server, vLLM: true)"
    )
    stand_in: bool = Field(default=False, description="a local stand-in for a cloud, for trials")


DiscoveryConfig = Annotated[DnsSrvSource | MdnsSource | S3Source | CamaraSource, Discriminator("kind")]


class ServerConfig(_Table):
    """`[server]`: what `mecroute serve` does on this machine."""

    host: str = "127.0.0.1"
    port: int = Field(default=8100, ge=1, le=65535)
    node: Name = "node"
    zone: str | None = None
    region: str | None = None
    threads: int | None = Field(default=None, ge=1, le=1024)
    context: int = Field(default=4096, ge=64, le=1_000_000, description="tokens per sequence")
    parallel: int = Field(default=8, ge=1, le=256, description="sequences decoded at once")
    gpu_layers: int = Field(default=0, ge=-1)
    main_gpu: int = Field(default=0, ge=0, description="the one under split_mode none")
    split_mode: Literal["none", "layer", "row"] | None = Field(default=None, description="over several GPUs")
    tensor_split: tuple[float, ...] = Field(default=(), description="the share of each GPU")
    gpu_devices: tuple[str, ...] = Field(default=(), description="names of the GPUs to use; default: all")
    adapters: dict[str, Path] = Field(default={}, description="GGUF files of LoRA adapters, by name")
    memory_budget_bytes: int | None = Field(default=None, ge=1, description="RAM of all models together")
    vram_budget_bytes: int | None = Field(default=None, ge=0, description="GPU memory of all models together")
    pinned: tuple[str, ...] = Field(default=(), description="models that stay in memory")
    keep_alive_s: float | None = Field(default=None, ge=0, description="of a model that nobody asks")
    load_wait_s: float = Field(default=60, ge=0, le=86_400, description="for a model that is being loaded")
    state_path: Path | None = Field(default=None, description="remembers what was deployed and pinned")
    max_queue: int = Field(default=64, ge=0, le=100_000)
    speculation: Literal["off", "prompt-lookup", "draft"] = Field(
        default="off", description="guess tokens ahead where that is measured to pay"
    )
    draft_model: Path | None = Field(default=None, description="a small GGUF file, for speculation = draft")
    max_body_bytes: int = Field(default=8_000_000, ge=1024)
    max_session_bytes: int = Field(
        default=256_000_000, ge=1024, description="the largest conversation that may be imported"
    )
    api_key: SecretStr | None = Field(default=None, description="a key that may do everything")
    keys_file: Path | None = Field(default=None, description="keys with scopes; see `mecroute keys`")
    requests_per_minute: int | None = Field(default=None, ge=1, description="of a key without its own limit")
    output_tokens_per_minute: int | None = Field(
        default=None, ge=1, description="of a key without its own limit"
    )
    prefix_cache_memory_bytes: int = Field(
        default=256_000_000, ge=0, description="for conversations that have left a model's KV memory"
    )
    prefix_cache_dir: Path | None = Field(
        default=None, description="a folder for those that have left that too; holds what was said"
    )
    prefix_cache_bytes: int = Field(default=4_000_000_000, ge=1_000_000, description="of that folder")
    prefix_cache_min_tokens: int = Field(
        default=256, ge=1, le=1_000_000, description="shorter ones are not stored"
    )
    audit_log: Path | None = Field(default=None, description="a file for admin actions, as JSON lines")
    otlp_endpoint: HttpUrl | None = Field(default=None, description="an OpenTelemetry collector, for traces")
    tls_cert: Path | None = Field(default=None, description="PEM certificate (chain); makes it HTTPS")
    tls_key: Path | None = Field(default=None, description="its PEM key")
    tls_client_ca: Path | None = Field(default=None, description="clients must show its certificates (mTLS)")
    cors_origins: tuple[str, ...] = Field(default=(), description="web origins that may use the node")
    drain_delay_s: float = Field(
        default=0, ge=0, le=3600, description="from not ready to taking no more, when it is told to stop"
    )
    shutdown_grace_s: int = Field(default=15, ge=1, le=86_400, description="for running answers to finish")
    max_connections: int = Field(default=1024, ge=1, le=1_000_000)
    header_timeout_s: float = Field(default=15, gt=0, le=86_400, description="for a request's headers")
    body_timeout_s: float = Field(default=60, gt=0, le=86_400, description="for a request's body")
    write_timeout_s: float = Field(default=60, gt=0, le=86_400, description="of a client that takes nothing")
    request_timeout_s: float = Field(default=600, gt=0, le=86_400, description="for a whole answer")
    announce: bool = Field(default=False, description="tell of this node by mDNS on the local network")
    directory: S3Uri | None = Field(default=None, description="s3:// folder in which the node is listed")
    advertise_url: HttpUrl | None = Field(default=None, description="where others reach it; default: its own")

    @field_validator("cors_origins", "pinned", "tensor_split", "gpu_devices", mode="before")
    @classmethod
    def _list_of_a_variable(cls, value: object) -> object:
        return value.split(",") if isinstance(value, str) else value

    @model_validator(mode="after")
    def _tls_is_whole(self) -> Self:
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ValueError("tls_cert and tls_key go together")
        if self.tls_client_ca is not None and self.tls_cert is None:
            raise ValueError("tls_client_ca needs tls_cert and tls_key")
        return self


class StateConfig(_Table):
    """`[state]`: what the client remembers between runs."""

    path: Path | None = Field(default=None, description="SQLite file; default: the user state folder")
    enabled: bool = True
    max_decisions: int = Field(default=50_000, ge=1, le=10_000_000, description="the newest are kept")
    max_bytes: int = Field(default=100_000_000, ge=1_000_000, description="size of the file")


class MonitorConfig(_Table):
    """`[monitor]`: what is learned from answers, and what may be spent on learning."""

    adapt: bool = Field(default=True, description="whether evidence of quality moves the predictions")
    explore_rate: float = Field(
        default=0, ge=0, le=0.5, description="share of requests sent elsewhere to learn about a target"
    )
    explore_budget_usd_per_day: float = Field(
        default=0, ge=0, description="most that exploring may add to the predicted costs"
    )
    explore_max_slowdown: float = Field(
        default=2, ge=1, description="predicted latency of what is explored, over the best candidate's"
    )
    shadow_rate: float = Field(
        default=0, ge=0, le=1, description="share of answers compared with a second target's"
    )
    shadow_budget_usd_per_day: float = Field(default=0, ge=0, description="for the second answers")


class BudgetConfig(_Table):
    """`[[budgets]]`: most that may be spent within an hour, a day or a month (calendar, UTC)."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)

    name: Name
    limit_usd: float = Field(ge=0, allow_inf_nan=False)
    per: Literal["hour", "day", "month"] = "day"
    scope: Literal["all", "user", "app", "key"] = Field(
        default="all", alias="for", description="all: one for everybody; otherwise one for each of them"
    )


class Config(_Table):
    """The whole configuration. Every table is optional; the default needs no key and no network."""

    registry: RegistryConfig = RegistryConfig()
    store: StoreConfig = StoreConfig()
    device: DeviceConfig = DeviceConfig()
    router: RouterConfig = RouterConfig()
    state: StateConfig = StateConfig()
    network: NetworkConfig = NetworkConfig()
    cache: CacheConfig = CacheConfig()
    placement: PlacementConfig = PlacementConfig()
    monitor: MonitorConfig = MonitorConfig()
    server: ServerConfig = ServerConfig()
    nodes: tuple[NodeConfig, ...] = ()
    cloud: tuple[CloudConfig, ...] = ()
    discovery: tuple[DiscoveryConfig, ...] = ()
    prices: tuple[PriceConfig, ...] = ()
    budgets: tuple[BudgetConfig, ...] = ()

    @field_validator("nodes", "cloud", "discovery", "budgets")
    @classmethod
    def _names_are_unique(cls, remotes: tuple[R, ...]) -> tuple[R, ...]:
        return _uniquely_named(remotes)
