"""`[router.cascade]`: answers that are given nearby, judged, and asked for elsewhere if they are too poor."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from mecroute.config.base import Table
from mecroute_registry.facts import Tier

#: What an answer is judged by; a class is always judged by its probability.
Judge = Literal["mean-logprob", "min-logprob", "agreement", "verifier"]


class CascadeConfig(Table):
    """`[router.cascade]`."""

    enabled: bool = Field(default=False, description="where a request does not say; see requirements.cascade")
    tiers: tuple[Tier, ...] = Field(
        default=("device",), min_length=1, description="where first answers are given"
    )
    judge: Judge = Field(default="mean-logprob", description="what first answers are judged by")
    samples: int = Field(default=3, ge=2, le=10, description="answers that are compared, for agreement")
    max_error_rate: float = Field(
        default=0.05, gt=0, lt=1, description="of the first answers that are kept, so many may be wrong"
    )
    confidence: float = Field(default=0.95, gt=0, lt=1, description="that this rate is kept")
    streams: bool = Field(default=False, description="hold streams back until their answer is judged")

    @field_validator("tiers", mode="before")
    @classmethod
    def _list_of_a_variable(cls, value: object) -> object:
        return value.split(",") if isinstance(value, str) else value
