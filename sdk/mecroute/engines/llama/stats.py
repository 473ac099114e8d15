"""What an engine tells of itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class EngineStats:
    """What an engine is doing.

    Attributes:
        running: requests that have a slot.
        queued: requests that wait for one.
        n_parallel: slots.
        kv_used_tokens: tokens held in the slots, for running requests and as a prefix cache.
        kv_total_tokens: tokens the KV memory has room for.
        prefill_tokens_per_s: prompt tokens computed per second, of late; None until measured.
        decode_tokens_per_s: tokens per second that one running request gets, of late; None until measured.
        tokens_total: tokens generated since the start.
        prompt_tokens_total: prompt tokens since the start, cached or not.
        prefix_hit_tokens: prompt tokens since the start that were not computed again.
        retry_after_s: when a request refused now is worth repeating; 0 if it would be accepted.
    """

    running: int
    queued: int
    n_parallel: int
    kv_used_tokens: int
    kv_total_tokens: int
    prefill_tokens_per_s: float | None
    decode_tokens_per_s: float | None
    tokens_total: int
    prompt_tokens_total: int
    prefix_hit_tokens: int
    retry_after_s: float


def combined(first: EngineStats, others: Sequence[EngineStats]) -> EngineStats:
    """What several schedulers of one engine are doing together; speeds and slots are those of the first."""
    if not others:
        return first
    every = (first, *others)
    return replace(
        first,
        running=sum(one.running for one in every),
        queued=sum(one.queued for one in every),
        kv_used_tokens=sum(one.kv_used_tokens for one in every),
        kv_total_tokens=sum(one.kv_total_tokens for one in every),
        tokens_total=sum(one.tokens_total for one in every),
        prompt_tokens_total=sum(one.prompt_tokens_total for one in every),
        prefix_hit_tokens=sum(one.prefix_hit_tokens for one in every),
    )
