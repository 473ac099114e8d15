"""Measures the speed of a model behind an OpenAI-compatible endpoint."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Literal
from uuid import uuid4

from mecroute.errors import TierResponseError
from mecroute.target import Target
from mecroute.tiers.base import Call
from mecroute.tiers.http import Endpoint, HttpTier
from mecroute_quantize.measure.sample import Sample, attempts, check_lengths, fresh_text, summarize
from mecroute_registry.facts import Profile


def measure_endpoint(
    base_url: str,
    model: str,
    *,
    api_key: str | None = None,
    runs: int = 5,
    prompt_tokens: int = 64,
    output_tokens: int = 32,
    tier: Literal["mec", "cloud"] = "mec",
    hardware: str,
    threads: int = 1,
    progress: Callable[[float], None] | None = None,
) -> Profile:
    """Measure single streamed completions, one after the other.

    One request before them finds out how long the model's tokens are, warms it up and is not counted. Each
    prompt is new, so that the prefix cache does not flatter. Times are seen from here, the network
    included; speeds are the server's own `timings` where it gives them, else taken from the times.

    Args:
        base_url: up to and including `/v1`.
        model: the name the endpoint serves it under.
        api_key: sent as a bearer token.
        runs: ≥ 1.
        prompt_tokens: ≥ 4; met as closely as text allows, the profile says what it was.
        output_tokens: ≥ 2; exact.
        tier: what the endpoint is.
        hardware: the hardware class of the machine that serves.
        threads: ≥ 1; threads that it runs the model with, as far as known.
        progress: called with the share of runs done, 0 to 1.

    Returns:
        The profile, without peak memory: it cannot be seen from here.

    Raises:
        UsageError: the lengths are out of range.
        TierError: the endpoint cannot be reached, answers with nonsense, or ends its answers early.
        AuthenticationError, ModelNotFoundError, OverloadedError, InvalidRequestError: it refuses.

    Runs an event loop of its own: call it from a thread that has none.
    """
    check_lengths(runs=runs, prompt_tokens=prompt_tokens, output_tokens=output_tokens)
    client = _Client(Endpoint(tier=tier, name=base_url, base_url=base_url, api_key=api_key), model)
    samples = asyncio.run(_measure(client, runs, prompt_tokens, output_tokens, progress))
    return summarize(
        samples,
        runs=runs,
        output_tokens=output_tokens,
        tier=tier,
        hardware=hardware,
        threads=threads,
        model=model,
    )


async def _measure(
    client: _Client,
    runs: int,
    prompt_tokens: int,
    output_tokens: int,
    progress: Callable[[float], None] | None,
) -> list[Sample]:
    try:
        # A token is at least a character, so this one cannot be too long.
        probe = await client.complete(fresh_text(prompt_tokens, 0), output_tokens)
        characters = round(prompt_tokens * prompt_tokens / probe.prompt_tokens)
        samples: list[Sample] = []
        for attempt in attempts(runs):
            answer = await client.complete(fresh_text(characters, attempt + 1), output_tokens)
            if answer.completion_tokens < output_tokens:
                continue
            samples.append(answer.sample())
            if progress is not None:
                progress(len(samples) / runs)
            if len(samples) == runs:
                break
        return samples
    finally:
        await client.aclose()


@dataclass(frozen=True, slots=True)
class _Answer:
    prompt_tokens: int
    completion_tokens: int
    ttft_ms: float
    latency_ms: float
    timings: Mapping[str, Any]

    def sample(self) -> Sample:
        prefill = _positive(self.timings.get("prompt_per_second"))
        decode = _positive(self.timings.get("predicted_per_second"))
        decode_ms = max(self.latency_ms - self.ttft_ms, 1e-3)
        return Sample(
            prompt_tokens=self.prompt_tokens,
            ttft_ms=self.ttft_ms,
            latency_ms=self.latency_ms,
            prefill_tokens_per_s=prefill or self.prompt_tokens / self.ttft_ms * 1e3,
            decode_tokens_per_s=decode or (self.completion_tokens - 1) / decode_ms * 1e3,
        )


class _Client:
    """Completes texts at one endpoint and takes the time. For one event loop."""

    def __init__(self, endpoint: Endpoint, model: str) -> None:
        self._endpoint = endpoint
        self._target = Target(tier=endpoint.tier, model=model, node=endpoint.name)
        self._http: HttpTier | None = None

    async def complete(self, prompt: str, max_tokens: int) -> _Answer:
        if self._http is None:
            self._http = HttpTier({self._endpoint.name: self._endpoint})
        body = {
            "prompt": prompt,
            "max_tokens": max_tokens,
            "temperature": 0,
            "stream_options": {"include_usage": True},
        }
        call = Call("completion", self._target, body, request_id=f"bench-{uuid4().hex}")
        begun = time.perf_counter()
        first = last = 0.0
        usage: Mapping[str, Any] = {}
        timings: Mapping[str, Any] = {}
        stream: AsyncGenerator[dict[str, Any]] = self._http.stream(call)
        async with aclosing(stream):
            async for chunk in stream:
                now = time.perf_counter()
                choices = chunk.get("choices") or ()
                if choices:
                    last = now
                if not first and any(choice.get("text") for choice in choices):
                    first = now
                usage = _object(chunk.get("usage")) or usage
                timings = _object(chunk.get("timings")) or timings
        prompt_tokens, completion_tokens = usage.get("prompt_tokens"), usage.get("completion_tokens")
        if not isinstance(prompt_tokens, int) or not isinstance(completion_tokens, int) or prompt_tokens < 1:
            raise TierResponseError(
                f"{self._endpoint.name} does not say how many tokens it read and wrote",
                hint="only an endpoint that answers stream_options.include_usage can be measured",
                tier=self._endpoint.tier,
                model=self._target.model,
            )
        return _Answer(
            prompt_tokens=prompt_tokens,
            completion_tokens=completion_tokens,
            ttft_ms=((first or last) - begun) * 1e3,
            latency_ms=(last - begun) * 1e3,
            timings=timings,
        )

    async def aclose(self) -> None:
        if self._http is not None:
            await self._http.aclose()


def _object(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _positive(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and value > 0 else None
