"""What an engine tells of itself."""

from __future__ import annotations

from dataclasses import dataclass


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
        decode_tokens_per_s: tokens per second that one running request gets, of late; None until measured.
        tokens_total: tokens generated since the start.
        prompt_tokens_total: prompt tokens since the start, cached or not.
        prefix_hit_tokens: prompt tokens since the start that were not computed again.
        prefix_evictions: times that something was forgotten for its room since the start.
        prefix_recalls: times that a conversation came back from memory beside the KV memory since the start.
        prefix_ram_bytes: what is held there.
        disk_hits: times that a conversation came back from the disk since the start.
        disk_hit_tokens: its tokens, each time.
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
    tokens_total: int
    prompt_tokens_total: int
    prefix_hit_tokens: int
    prefix_evictions: int
    prefix_recalls: int
    prefix_ram_bytes: int
    disk_hits: int
    disk_hit_tokens: int
    retry_after_s: float
    drafted_tokens: int = 0
    accepted_tokens: int = 0

    @property
    def prefix_hit_rate(self) -> float | None:
        """Share of the prompt tokens that were not computed again; None before there are any."""
        return self.prefix_hit_tokens / self.prompt_tokens_total if self.prompt_tokens_total else None
