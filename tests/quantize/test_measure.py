"""measure_engine and measure_endpoint: what a profile says, and what cannot be measured."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI, Request
from fastapi.responses import Response, StreamingResponse

from mecroute.device.hardware import hardware_class
from mecroute.engines.llama import LlamaEngine
from mecroute.errors import AuthenticationError, TierResponseError, TierUnreachableError, UsageError
from mecroute_quantize.measure import measure_endpoint, measure_engine
from mecroute_quantize.measure.sample import fresh_text, percentile
from mecroute_server.settings import ServerSettings
from support.server import running_server
from support.tiny_gguf import write_tiny_gguf
from support.upstream import running


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    return write_tiny_gguf(tmp_path / "tiny.gguf", says="XYZW")


def test_an_engine_s_profile_is_of_the_lengths_asked_for(tiny: Path) -> None:
    steps: list[float] = []
    with LlamaEngine(tiny, n_ctx=128, n_threads=1) as engine:
        profile = measure_engine(
            engine,
            runs=3,
            prompt_tokens=40,
            output_tokens=8,
            tier="device",
            hardware=hardware_class(),
            progress=steps.append,
        )
        assert engine.stats().prefix_hit_tokens <= 8, "prompts share no more than the BOS token"
    assert (profile.prompt_tokens, profile.output_tokens, profile.runs, profile.threads) == (40, 8, 3, 1)
    assert profile.hardware == hardware_class()
    assert profile.tier == "device"
    assert 0 < profile.ttft_ms_p50 <= profile.ttft_ms_p95
    assert profile.ttft_ms_p50 < profile.latency_ms_p50 <= profile.latency_ms_p95
    assert profile.peak_memory_bytes is not None
    assert profile.peak_memory_bytes > 1e6
    assert steps == pytest.approx([1 / 3, 2 / 3, 1])


def test_lengths_that_do_not_fit_the_context_are_refused(tiny: Path) -> None:
    with LlamaEngine(tiny, n_ctx=64, n_threads=1) as engine:
        with pytest.raises(UsageError, match="do not fit the context of 64"):
            measure_engine(engine, prompt_tokens=60, output_tokens=5, tier="device", hardware="h")
        for wrong in ({"runs": 0}, {"prompt_tokens": 1}, {"output_tokens": 1}):
            with pytest.raises(UsageError, match=next(iter(wrong))):
                measure_engine(engine, **wrong, tier="device", hardware="h")


def test_a_node_is_measured_over_its_endpoint(tiny: Path) -> None:
    settings = ServerSettings(port=0, model_files=(tiny,), threads=1, context=256, api_keys=("secret",))
    with running_server(settings) as url:
        profile = measure_endpoint(
            f"{url}/v1",
            "tiny",
            api_key="secret",
            runs=3,
            prompt_tokens=40,
            output_tokens=8,
            hardware="edge-1",
            threads=1,
        )
        with pytest.raises(AuthenticationError):
            measure_endpoint(f"{url}/v1", "tiny", api_key="wrong", hardware="edge-1")
    assert 30 <= profile.prompt_tokens <= 50
    assert (profile.output_tokens, profile.runs, profile.tier) == (8, 3, "mec")
    assert 0 < profile.ttft_ms_p50 < profile.latency_ms_p50
    assert profile.peak_memory_bytes is None


@dataclass
class _Completions:
    """A completions endpoint whose answers a test sets."""

    ends_after: int = 10_000
    usage: bool = True
    timings: dict[str, float] | None = None
    prompts: list[str] = field(default_factory=list)
    url: str = ""

    async def answer(self, body: dict[str, Any]) -> AsyncIterator[str]:
        count = min(body["max_tokens"], self.ends_after)
        for index in range(count):
            finish = "length" if index == count - 1 else None
            choice = {"index": 0, "text": "word ", "finish_reason": finish}
            yield f"data: {json.dumps({'choices': [choice]})}\n\n"
            await asyncio.sleep(0.001)
        if self.usage:
            usage = {"prompt_tokens": len(body["prompt"]) // 4, "completion_tokens": count}
            end = {"choices": [], "usage": usage, **({"timings": self.timings} if self.timings else {})}
            yield f"data: {json.dumps(end)}\n\n"
        yield "data: [DONE]\n\n"


@contextmanager
def _endpoint(**settings: Any) -> Iterator[_Completions]:
    app, completions = FastAPI(), _Completions(**settings)

    @app.post("/v1/completions")
    async def complete(request: Request) -> Response:
        body = await request.json()
        completions.prompts.append(body["prompt"])
        return StreamingResponse(completions.answer(body), media_type="text/event-stream")

    with running(app) as url:
        completions.url = f"{url}/v1"
        yield completions


def test_prompts_meet_the_length_and_are_never_the_same() -> None:
    with _endpoint() as endpoint:
        profile = measure_endpoint(
            endpoint.url, "m", runs=4, prompt_tokens=64, output_tokens=4, tier="cloud", hardware="h"
        )
    assert profile.prompt_tokens == 64
    assert profile.tier == "cloud"
    assert len({prompt[:6] for prompt in endpoint.prompts}) == len(endpoint.prompts) == 5


def test_the_server_s_own_speeds_are_taken() -> None:
    timings = {"prompt_per_second": 321.0, "predicted_per_second": 12.5}
    with _endpoint(timings=timings) as endpoint:
        profile = measure_endpoint(endpoint.url, "m", runs=2, output_tokens=4, hardware="h")
    assert profile.prefill_tokens_per_s == 321.0
    assert profile.decode_tokens_per_s == 12.5


def test_answers_that_end_early_are_not_counted() -> None:
    with (
        _endpoint(ends_after=3) as endpoint,
        pytest.raises(TierResponseError, match="ended 8 of 8 answers before 4 tokens"),
    ):
        measure_endpoint(endpoint.url, "m", runs=2, output_tokens=4, hardware="h")


def test_an_endpoint_that_does_not_count_tokens_cannot_be_measured() -> None:
    with _endpoint(usage=False) as endpoint, pytest.raises(TierResponseError, match="how many tokens"):
        measure_endpoint(endpoint.url, "m", runs=1, output_tokens=4, hardware="h")


def test_an_endpoint_that_is_not_there_is_unreachable() -> None:
    with _endpoint() as endpoint:
        pass
    with pytest.raises(TierUnreachableError, match="refused"):
        measure_endpoint(endpoint.url, "m", runs=1, output_tokens=4, hardware="h")


def test_percentiles_are_interpolated() -> None:
    assert percentile([4.0, 1.0, 3.0, 2.0], 50) == 2.5
    assert percentile([7.0], 95) == 7.0
    assert percentile(list(map(float, range(101))), 95) == 95.0


@pytest.mark.parametrize("characters", [4, 64, 5_000, 50_000])
def test_fresh_text_has_the_length_asked_for(characters: int) -> None:
    assert len(fresh_text(characters, 3)) == characters
