"""What an engine tells of itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from mecroute.engines.llama.gaps import GapCounts


@dataclass(frozen=True, slots=True)
class EngineStats:
    """What an engine is doing.

    Attributes:
        running: requests that have a slot.
        queued: requests that wait for one.
        n_parallel: slots.
        kv_used_tokens: cells of the KV memory in use, for running requests and as a prefix cache.
        kv_cached_tokens: those of them that only the prefix cache holds.
        kv_total_tokens: tokens the KV memory has room for.
        prefill_tokens_per_s: prompt tokens computed per second, of late; None until measured.
        decode_tokens_per_s: tokens per second that a request would get alone, of late; None until measured.
        decode_slowdown: how much longer a token takes for each other request that generates, as a share of
            what it takes alone; None until measured.
        prefill_left_tokens: prompt tokens of accepted requests that are not computed yet.
        tokens_total: tokens generated since the start.
        prompt_tokens_total: prompt tokens since the start, cached or not.
        prefix_hit_tokens: prompt tokens since the start that were not computed again.
        prefix_evictions: times that something was forgotten for its room since the start.
        prefix_recalls: times that a conversation came back from memory beside the KV memory since the start.
        prefix_ram_bytes: what is held there.
        disk_hits: times that a conversation came back from the disk since the start.
        disk_hit_tokens: its tokens, each time.
        decode_steps_total: steps since the start in which answers grew.
        decoded_rows_total: tokens that these steps decoded, one of each running answer: divided by the steps
            and by `n_parallel`, how full batches are.
        gaps: between two tokens of an answer, since the start.
        retry_after_s: when a request refused now is worth repeating; 0 if it would be accepted.
        drafted_tokens: tokens guessed ahead and verified since the start; 0 without speculation.
        accepted_tokens: those of them that were right, each of which saved a step.
    """

    running: int
    queued: int
    n_parallel: int
    kv_used_tokens: int
    kv_cached_tokens: int
    kv_total_tokens: int
    prefill_tokens_per_s: float | None
    decode_tokens_per_s: float | None
    decode_slowdown: float | None
    prefill_left_tokens: int
    tokens_total: int
    prompt_tokens_total: int
    prefix_hit_tokens: int
    prefix_evictions: int
    prefix_recalls: int
    prefix_ram_bytes: int
    disk_hits: int
    disk_hit_tokens: int
    retry_after_s: float
    decode_steps_total: int = 0
    decoded_rows_total: int = 0
    gaps: GapCounts = field(default_factory=GapCounts)
    drafted_tokens: int = 0
    accepted_tokens: int = 0

    @property
    def prefix_hit_rate(self) -> float | None:
        """Share of the prompt tokens that were not computed again; None before there are any."""
        return self.prefix_hit_tokens / self.prompt_tokens_total if self.prompt_tokens_total else None


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
        prefill_left_tokens=sum(one.prefill_left_tokens for one in every),
        tokens_total=sum(one.tokens_total for one in every),
        prompt_tokens_total=sum(one.prompt_tokens_total for one in every),
        prefix_hit_tokens=sum(one.prefix_hit_tokens for one in every),
    )
