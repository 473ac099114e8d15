"""Measures the speed of a model that runs in this process."""

from __future__ import annotations

import time
from collections.abc import Callable

from mecroute.engines.llama import GREEDY, GenerationRequest, LlamaEngine, Usage
from mecroute.errors import MissingExtraError, UsageError
from mecroute_quantize.measure.sample import Sample, attempts, check_lengths, fresh_text, summarize
from mecroute_registry.facts import Profile, Tier


def measure_engine(
    engine: LlamaEngine,
    *,
    runs: int = 5,
    prompt_tokens: int = 64,
    output_tokens: int = 32,
    tier: Tier,
    hardware: str,
    progress: Callable[[float], None] | None = None,
) -> Profile:
    """Measure single requests, one after the other, on an engine that is otherwise idle.

    One request before them warms the model up and is not counted. Each prompt is new, so that the
    prefix cache does not flatter; answers are greedy and of full length.

    Args:
        engine: an open engine with room for prompt and answer in its context.
        runs: ≥ 1.
        prompt_tokens: ≥ 4; exact.
        output_tokens: ≥ 2; exact.
        tier: the tier whose work this is.
        hardware: the hardware class, as `mecroute.device.hardware.hardware_class()` names it.
        progress: called with the share of runs done, 0 to 1.

    Returns:
        The profile; its peak memory is the largest resident size of this process after a run.

    Raises:
        UsageError: the lengths do not fit the engine's context.
        TierResponseError: the model ends its answers too early to measure.
        MissingExtraError: psutil is not installed.
    """
    try:
        import psutil
    except ImportError as error:
        raise MissingExtraError("device", "measuring a model") from error
    check_lengths(runs=runs, prompt_tokens=prompt_tokens, output_tokens=output_tokens)
    if prompt_tokens + output_tokens > engine.n_ctx:
        raise UsageError(
            f"{prompt_tokens} prompt and {output_tokens} output tokens do not fit the context of "
            f"{engine.n_ctx} tokens of {engine.name}",
            hint="measure shorter requests, or load the model with a larger context",
        )
    process = psutil.Process()
    _run_once(engine, _prompt(engine, prompt_tokens, 0), output_tokens)
    samples: list[Sample] = []
    for attempt in attempts(runs):
        prompt = _prompt(engine, prompt_tokens, attempt + 1)
        begun = time.perf_counter()
        usage = _run_once(engine, prompt, output_tokens)
        latency_ms = (time.perf_counter() - begun) * 1e3
        if usage.completion_tokens < output_tokens:
            continue
        samples.append(
            Sample(
                prompt_tokens=usage.prompt_tokens,
                ttft_ms=usage.ttft_ms,
                latency_ms=latency_ms,
                prefill_tokens_per_s=usage.prefill_tokens_per_s,
                decode_tokens_per_s=usage.decode_tokens_per_s,
                peak_memory_bytes=process.memory_info().rss,
            )
        )
        if progress is not None:
            progress(len(samples) / runs)
        if len(samples) == runs:
            break
    return summarize(
        samples,
        runs=runs,
        output_tokens=output_tokens,
        tier=tier,
        hardware=hardware,
        threads=engine.n_threads,
        model=engine.name,
    )


def _prompt(engine: LlamaEngine, length: int, index: int) -> tuple[int, ...]:
    """A new prompt of exactly so many tokens."""
    # No tokenizer makes a token of more than a dozen letters on average.
    tokens = engine.tokenize(fresh_text(length * 12, index))
    assert len(tokens) >= length, "the passage is longer than the prompt"
    return tokens[:length]


def _run_once(engine: LlamaEngine, prompt: tuple[int, ...], output_tokens: int) -> Usage:
    request = GenerationRequest(prompt, max_tokens=output_tokens, sampling=GREEDY)
    usage: Usage | None = None
    with engine.submit(request) as generation:
        for event in generation:
            usage = event.usage or usage
    assert usage is not None, "the last event carries the usage"
    return usage
