"""What one measured request took, and how several become a profile."""

from __future__ import annotations

import itertools
import math
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from statistics import median

from mecroute.errors import TierResponseError, UsageError
from mecroute_quantize.evaluation.dataset import load_text
from mecroute_registry.facts import Profile, Tier

#: The reference request behind `latency_ms` in the registry.
REFERENCE_PROMPT_TOKENS = 64
REFERENCE_OUTPUT_TOKENS = 32

#: A model may end its answer early; such a run says nothing of the length asked for and is made again.
_ATTEMPTS_PER_RUN = 4


@dataclass(frozen=True, slots=True)
class Sample:
    """One measured request. Times in milliseconds, speeds in tokens per second, all > 0.

    `peak_memory_bytes` is that of the process that runs the model, where it can be seen.
    """

    prompt_tokens: int
    ttft_ms: float
    latency_ms: float
    prefill_tokens_per_s: float
    decode_tokens_per_s: float
    peak_memory_bytes: int | None = None


def check_lengths(*, runs: int, prompt_tokens: int, output_tokens: int) -> None:
    """Refuse numbers that cannot be measured.

    Raises:
        UsageError: one of them is out of range.
    """
    for name, value, least in (
        ("runs", runs, 1),
        ("prompt_tokens", prompt_tokens, 4),
        ("output_tokens", output_tokens, 2),
    ):
        if value < least:
            raise UsageError(f"{name} is {value}", hint=f"it must be at least {least}")


def attempts(runs: int) -> Iterator[int]:
    """Number the requests that may be made for so many runs."""
    return iter(range(runs * _ATTEMPTS_PER_RUN))


def fresh_text(characters: int, index: int) -> str:
    """English prose of a length, never the same twice, so that no prefix cache has seen it.

    Args:
        characters: > 0.
        index: which passage of the text to take; another one for each run.
    """
    # The random number comes first: whatever follows it then has to be computed.
    opening = f"{secrets.randbelow(10**6):06d}. "
    paragraphs = [part for part in load_text().split("\n\n") if len(part) > 200]
    turn = index % len(paragraphs)
    passage = itertools.cycle(paragraphs[turn:] + paragraphs[:turn])
    parts, length = [opening], len(opening)
    while length < characters:
        part = next(passage) + "\n\n"
        parts.append(part)
        length += len(part)
    return "".join(parts)[:characters]


def summarize(
    samples: Sequence[Sample],
    *,
    runs: int,
    output_tokens: int,
    tier: Tier,
    hardware: str,
    threads: int,
    model: str,
) -> Profile:
    """Turn samples into a profile: medians of the speeds, p50 and p95 of the times.

    Raises:
        TierResponseError: too few runs gave `output_tokens` tokens.
    """
    if len(samples) < runs:
        raise TierResponseError(
            f"{model} ended {runs * _ATTEMPTS_PER_RUN - len(samples)} of {runs * _ATTEMPTS_PER_RUN} answers "
            f"before {output_tokens} tokens",
            hint="measure shorter answers",
            tier=tier,
            model=model,
        )
    memory = [sample.peak_memory_bytes for sample in samples if sample.peak_memory_bytes is not None]
    ttft = [sample.ttft_ms for sample in samples]
    latency = [sample.latency_ms for sample in samples]
    return Profile(
        hardware=hardware,
        tier=tier,
        measured_at=datetime.now(UTC),
        threads=threads,
        prompt_tokens=round(median(sample.prompt_tokens for sample in samples)),
        output_tokens=output_tokens,
        runs=runs,
        prefill_tokens_per_s=median(sample.prefill_tokens_per_s for sample in samples),
        decode_tokens_per_s=median(sample.decode_tokens_per_s for sample in samples),
        ttft_ms_p50=percentile(ttft, 50),
        ttft_ms_p95=percentile(ttft, 95),
        latency_ms_p50=percentile(latency, 50),
        latency_ms_p95=percentile(latency, 95),
        peak_memory_bytes=max(memory, default=None),
    )


def percentile(values: Sequence[float], percent: float) -> float:
    """The percentile of at least one value, with linear interpolation (type 7 of Hyndman and Fan, 1996)."""
    ordered = sorted(values)
    at = (len(ordered) - 1) * percent / 100
    below, above = math.floor(at), math.ceil(at)
    return ordered[below] + (ordered[above] - ordered[below]) * (at - below)
