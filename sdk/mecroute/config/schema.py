"""The shape of the configuration: one class per table of `mecroute.toml`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Self, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    StringConstraints,
    field_validator,
    model_validator,
)

Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$")]
HttpUrl = Annotated[str, StringConstraints(pattern=r"^https?://[^\s/?#]+[^\s?#]*$")]


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class RegistryConfig(_Table):
    """`[registry]`: where the local model registry lies."""

    path: Path | None = Field(default=None, description="folder; default: the user data folder")


class StoreConfig(_Table):
    """`[store]`: the remote model store. Credentials come the standard AWS way, never from here."""

    uri: str | None = Field(default=None, description="s3://bucket/prefix")
    endpoint_url: HttpUrl | None = Field(default=None, description="an S3 endpoint other than AWS")
    region: str | None = None


class DeviceConfig(_Table):
    """`[device]`: the tier inside this process."""

    enabled: bool = True
    threads: int | None = Field(default=None, ge=1, le=1024, description="default: every usable CPU")
    context: int = Field(default=2048, ge=64, le=1_000_000, description="tokens per request")
    gpu_layers: int = Field(default=0, ge=-1, description="-1 puts every layer on the GPU")
    battery_floor: float = Field(default=0.15, ge=0, le=1, description="below it the device is spared")


class RouterConfig(_Table):
    """`[router]`: how candidates are scored."""

    latency_weight: float = Field(default=0.40, ge=0, le=1)
    quality_weight: float = Field(default=0.30, ge=0, le=1)
    cost_weight: float = Field(default=0.20, ge=0, le=1)
    availability_weight: float = Field(default=0.10, ge=0, le=1)
    tie_margin: float = Field(default=0.02, ge=0, le=1, description="scores this close go to the nearer tier")
    latency_target_ms: float = Field(default=3000, gt=0, description="used when a request states none")
    cost_target_usd: float = Field(default=0.001, gt=0, description="used when a request states none")
    predictor: str = Field(
        default="shipped", min_length=1, description="learned difficulty: shipped, off, or a file"
    )

    @model_validator(mode="after")
    def _weights_sum_to_one(self) -> Self:
        total = self.latency_weight + self.quality_weight + self.cost_weight + self.availability_weight
        if abs(total - 1) > 1e-6:
            raise ValueError(f"the four weights must sum to 1, not {total:.3f}")
        return self


class RemoteConfig(_Table):
    """What MEC nodes and cloud services have in common."""

    name: Name
    api_key: SecretStr | None = None
    api_key_env: str | None = Field(default=None, description="environment variable that holds the key")
    region: str | None = Field(default=None, description="where its data stays; compared with residency")
    input_usd_per_mtok: float = Field(default=0, ge=0, description="USD per million prompt tokens")
    output_usd_per_mtok: float = Field(default=0, ge=0, description="USD per million output tokens")

    def key(self) -> str | None:
        """The API key, from the file or from the variable it names; None where there is none."""
        if self.api_key is not None:
            return self.api_key.get_secret_value()
        return os.environ.get(self.api_key_env) if self.api_key_env else None


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


R = TypeVar("R", bound=RemoteConfig)


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
    max_queue: int = Field(default=64, ge=0, le=100_000)
    max_body_bytes: int = Field(default=8_000_000, ge=1024)
    api_key: SecretStr | None = Field(default=None, description="a key that may do everything")
    keys_file: Path | None = Field(default=None, description="keys with scopes; see `mecroute keys`")
    requests_per_minute: int | None = Field(default=None, ge=1, description="of a key without its own limit")
    output_tokens_per_minute: int | None = Field(
        default=None, ge=1, description="of a key without its own limit"
    )
    audit_log: Path | None = Field(default=None, description="a file for admin actions, as JSON lines")
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

    @field_validator("cors_origins", mode="before")
    @classmethod
    def _origins_of_a_variable(cls, value: object) -> object:
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


class Config(_Table):
    """The whole configuration. Every table is optional; the default needs no key and no network."""

    registry: RegistryConfig = RegistryConfig()
    store: StoreConfig = StoreConfig()
    device: DeviceConfig = DeviceConfig()
    router: RouterConfig = RouterConfig()
    state: StateConfig = StateConfig()
    server: ServerConfig = ServerConfig()
    nodes: tuple[NodeConfig, ...] = ()
    cloud: tuple[CloudConfig, ...] = ()

    @field_validator("nodes", "cloud")
    @classmethod
    def _names_are_unique(cls, remotes: tuple[R, ...]) -> tuple[R, ...]:
        names = [remote.name for remote in remotes]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"the name '{twice[0]}' is used twice")
        return remotes
