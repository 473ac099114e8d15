"""What is simulated: the nodes, the clients' devices, the cloud and the network between them."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from mecroute.errors import InvalidRequestError


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Machine(_Table):
    """A kind of machine with its model. Speeds are tokens/s of one request alone; see `queueing`."""

    prefill_tokens_per_s: float = Field(gt=0, allow_inf_nan=False)
    decode_tokens_per_s: float = Field(gt=0, allow_inf_nan=False)
    parallel: int = Field(ge=1, le=4096)
    contention: float = Field(ge=0, le=1)
    max_queue: int = Field(default=64, ge=0, le=100_000)
    accuracy: float = Field(ge=0, le=1, description="share of right answers at mean difficulty")
    input_usd_per_mtok: float = Field(default=0, ge=0, allow_inf_nan=False)
    output_usd_per_mtok: float = Field(default=0, ge=0, allow_inf_nan=False)


class NodeClass(Machine):
    """A share of the nodes."""

    name: str = Field(min_length=1)
    share: float = Field(gt=0, allow_inf_nan=False, description="relative number of such nodes")


class Network(_Table):
    """The ways between clients, nodes and the cloud: round trips in ms, and what a client's access takes."""

    same_zone_ms: float = Field(default=8, ge=0, allow_inf_nan=False)
    per_zone_ms: float = Field(default=4, ge=0, allow_inf_nan=False, description="added per zone in between")
    cloud_ms: float = Field(default=120, ge=0, allow_inf_nan=False)
    jitter: float = Field(default=0.1, ge=0, le=1, description="mean deviation of a round trip, as its share")
    loss: float = Field(default=0.002, ge=0, lt=1, description="share of exchanges sent again after a second")
    upload_bytes_per_s: float = Field(default=2.5e6, gt=0, allow_inf_nan=False, description="median")
    download_bytes_per_s: float = Field(default=10e6, gt=0, allow_inf_nan=False, description="median")
    rate_spread: float = Field(
        default=0.7, ge=0, le=3, description="standard deviation of a client's rates, in logarithms"
    )
    bytes_per_token: float = Field(default=5, ge=0, le=10_000, allow_inf_nan=False)


class Conditions(_Table):
    """What befalls clients from time to time: shares of the time, each client's phases its own."""

    cycle_s: float = Field(default=600, gt=0, le=86_400, description="length of a phase and its absence")
    throttled_share: float = Field(default=0.1, ge=0, le=1, description="slowed down for heat")
    throttled_speed: float = Field(default=0.6, gt=0, le=1)
    offline_share: float = Field(default=0, ge=0, le=1, description="without any network")
    battery_share: float = Field(default=0.3, ge=0, le=1, description="of clients that run on a battery")
    low_battery_share: float = Field(default=0.1, ge=0, le=1, description="of their time, below the floor")


class Slo(_Table):
    """What an answer must meet: its first token by `ttft_ms`, its end `per_token_ms` a token later."""

    ttft_ms: float = Field(default=2000, gt=0, allow_inf_nan=False)
    per_token_ms: float = Field(default=60, gt=0, allow_inf_nan=False)


def _device() -> Machine:
    return Machine(
        prefill_tokens_per_s=700,
        decode_tokens_per_s=60,
        parallel=1,
        contention=1,
        max_queue=16,
        accuracy=0.55,
    )


def _cloud() -> Machine:
    return Machine(
        prefill_tokens_per_s=6000,
        decode_tokens_per_s=70,
        parallel=4096,
        contention=0,
        accuracy=0.92,
        input_usd_per_mtok=2.5,
        output_usd_per_mtok=10,
    )


def _node_classes() -> tuple[NodeClass, ...]:
    return (
        NodeClass(
            name="cpu", share=0.5, prefill_tokens_per_s=900, decode_tokens_per_s=40, parallel=8,
            contention=0.58, accuracy=0.72, output_usd_per_mtok=0.2,
        ),
        NodeClass(
            name="gpu", share=0.4, prefill_tokens_per_s=5000, decode_tokens_per_s=70, parallel=32,
            contention=0.06, accuracy=0.8, input_usd_per_mtok=0.1, output_usd_per_mtok=0.6,
        ),
        NodeClass(
            name="gpu-large", share=0.1, prefill_tokens_per_s=8000, decode_tokens_per_s=90, parallel=64,
            contention=0.03, accuracy=0.86, input_usd_per_mtok=0.3, output_usd_per_mtok=1.2,
        ),
    )  # fmt: skip


class Scenario(_Table):
    """A world to simulate. The defaults are assumptions, but for the contention of the `cpu` class.

    Args:
        nodes: MEC nodes, dealt out over the classes and the zones.
        clients: gateways or kiosks, each with its own agents and device, dealt out over the zones.
        report_age_s: how old a node's report may be when a client decides, unless an answer told it since.
        complexity_noise: standard deviation of the error in a client's estimate of a request's difficulty.
    """

    nodes: int = Field(default=100, ge=1, le=10_000)
    zones: int = Field(default=10, ge=1, le=1000)
    clients: int = Field(default=20, ge=1, le=10_000)
    node_classes: tuple[NodeClass, ...] = Field(default_factory=_node_classes, min_length=1)
    device: Machine = Field(default_factory=_device)
    cloud: Machine = Field(default_factory=_cloud)
    network: Network = Field(default_factory=Network)
    conditions: Conditions = Field(default_factory=Conditions)
    slo: Slo = Field(default_factory=Slo)
    report_age_s: float = Field(default=1.0, ge=0, le=3600)
    complexity_noise: float = Field(default=0.2, ge=0, le=1)

    @model_validator(mode="after")
    def _fits_in_memory(self) -> Self:
        if self.nodes * self.clients > 1_000_000:
            raise ValueError("nodes times clients may be 1,000,000 at most")
        return self


def read_scenario(path: Path) -> Scenario:
    """Read a scenario from TOML.

    Raises:
        InvalidRequestError: it cannot be read; the message names the field.
    """
    try:
        return Scenario.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise InvalidRequestError(f"there is no scenario at {path}") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InvalidRequestError(f"{path} cannot be read as TOML: {error}") from error
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"]) or "scenario"
        raise InvalidRequestError(f"{path}: {place}: {first['msg']}") from error
