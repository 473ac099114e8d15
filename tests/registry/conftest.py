"""What the registry's tests share: a registry, a model file and an S3 server."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from mecroute_registry import Evaluation, ModelFacts, Profile, Registry
from support.gguf_bytes import write_model
from support.s3 import S3Server, s3_server


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry(tmp_path / "registry")


@pytest.fixture
def model_file(tmp_path: Path) -> Path:
    return write_model(tmp_path / "model.gguf")


@pytest.fixture
def facts() -> ModelFacts:
    return ModelFacts(name="tiny", version="f32", deployment_tiers=("device", "mec"), use_cases=("a, b", "c"))


@pytest.fixture
def profile() -> Profile:
    return Profile(
        hardware="linux-x86_64-2c",
        tier="device",
        measured_at=datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC),
        threads=2,
        prompt_tokens=64,
        output_tokens=32,
        runs=3,
        prefill_tokens_per_s=400.0,
        decode_tokens_per_s=100.0,
        ttft_ms_p50=160.0,
        ttft_ms_p95=200.0,
        latency_ms_p50=480.0,
        latency_ms_p95=500.0,
    )


@pytest.fixture
def evaluation() -> Evaluation:
    return Evaluation(
        dataset="text@sha256:00", measured_at=datetime(2026, 1, 2, tzinfo=UTC), perplexity=12.5, accuracy=0.5
    )


@pytest.fixture(scope="session")
def s3_process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with s3_server(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture
def s3(s3_process: S3Server, monkeypatch: pytest.MonkeyPatch) -> S3Server:
    """The S3 server, with its credentials in the environment."""
    for name, value in s3_process.environment().items():
        monkeypatch.setenv(name, value)
    return s3_process


@pytest.fixture
def uri() -> str:
    """A store in a bucket that no other test uses and that does not exist yet."""
    return f"s3://models-{secrets.token_hex(6)}/edge/v1"
