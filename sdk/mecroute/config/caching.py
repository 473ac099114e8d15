"""`[cache]` and `[placement]`: remembered answers, and which models lie where."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from mecroute.config.base import Table


class CacheConfig(Table):
    """`[cache]`: answers that are given again."""

    enabled: bool = True
    ttl_s: float = Field(default=86_400, gt=0, le=31_536_000, description="age past which none is used")
    max_bytes: int = Field(default=64_000_000, ge=0, description="of all remembered answers together")
    semantic: bool = Field(
        default=False, description="also answer what means the same; needs `mecroute bench cache` first"
    )
    wrong_hit_rate: float = Field(
        default=0.01, gt=0, lt=1, description="share of semantic hits that may be wrong, at most"
    )
    encoder: Path | None = Field(
        default=None, description="folder of an ONNX text encoder; default: hashed n-grams, which need none"
    )
    persist: bool = Field(default=False, description="keep answers between runs; this stores their text")
    path: Path | None = Field(default=None, description="SQLite file for it; default: the user state folder")


class PlacementConfig(Table):
    """`[placement]`: which models lie where, by demand."""

    learn: bool = Field(default=True, description="count which models are asked for, by hour, between runs")
    preload: bool = Field(default=False, description="load the device's likeliest model while it is idle")
    node_budget_bytes: int | None = Field(
        default=None, ge=0, description="memory for models per node; default: what a node has free"
    )
