"""The node's Prometheus metrics, in a registry of their own."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import accumulate

from prometheus_client import CollectorRegistry, Counter, Histogram, Info, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from mecroute.engines.llama.engine import EngineStats, Usage
from mecroute.engines.llama.gaps import GAP_BOUNDS_S, GapCounts
from mecroute_registry._version import __version__
from mecroute_server.pool import EnginePool

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
_SPEEDS = (1, 2, 5, 10, 20, 40, 60, 80, 120, 160, 240, 400)

#: The pool's state, read at each scrape: name, what it says, and the field of the engine's stats.
_GAUGES = (
    ("mecroute_running_requests", "Requests being computed", "running"),
    ("mecroute_queued_requests", "Requests waiting for their turn", "queued"),
    ("mecroute_kv_used_tokens", "Cells of the KV memory in use, shared ones counted once", "kv_used_tokens"),
    ("mecroute_kv_cached_tokens", "Cells in use that only the prefix cache holds", "kv_cached_tokens"),
    ("mecroute_kv_total_tokens", "Cells of the KV memory", "kv_total_tokens"),
    ("mecroute_prefix_hit_rate", "Share of the prompt tokens found in the prefix cache", "prefix_hit_rate"),
    ("mecroute_prefix_memory_bytes", "Conversations held in memory beside it", "prefix_ram_bytes"),
)
#: What an engine has counted since its model was loaded, in the same way.
_COUNTERS = (
    ("mecroute_engine_tokens", "Tokens generated, those of cancelled requests included", "tokens_total"),
    ("mecroute_decode_steps", "Steps in which answers grew", "decode_steps_total"),
    ("mecroute_decoded_rows", "Tokens decoded in these steps: per step, the batch", "decoded_rows_total"),
    ("mecroute_prefix_evictions", "Conversations that had to leave the KV memory", "prefix_evictions"),
    ("mecroute_prefix_recalls", "Conversations that came back to it from memory", "prefix_recalls"),
    ("mecroute_prefix_disk_hits", "Conversations that came back to it from the disk", "disk_hits"),
    ("mecroute_prefix_disk_hit_tokens", "Tokens of those", "disk_hit_tokens"),
    ("mecroute_drafted_tokens", "Tokens that speculation guessed and a step verified", "drafted_tokens"),
    ("mecroute_accepted_tokens", "Of those, the right ones", "accepted_tokens"),
)


class Metrics:
    """Counts requests and tokens; safe from any thread.

    Args:
        node: the node's name, a label of `mecroute_node_info`.
        pool: the engines whose state is read at each scrape.
    """

    def __init__(self, node: str, pool: EnginePool) -> None:
        registry = self._registry = CollectorRegistry()
        Info("mecroute_node", "The node and its version", registry=registry).info(
            {"node": node, "version": __version__}
        )
        self._requests = Counter(
            "mecroute_requests", "HTTP requests answered", ("route", "model", "status"), registry=registry
        )
        self._seconds = Histogram(
            "mecroute_request_seconds",
            "From the request's arrival to its answer's last byte",
            ("route", "model"),
            buckets=_SECONDS,
            registry=registry,
        )
        self._ttft = Histogram(
            "mecroute_ttft_seconds", "Time to first token", ("model",), buckets=_SECONDS, registry=registry
        )
        self._queued = Histogram(
            "mecroute_queue_seconds",
            "From a request's submission to the start of work on its prompt",
            ("model",),
            buckets=_SECONDS,
            registry=registry,
        )
        self._decode_speed = Histogram(
            "mecroute_decode_tokens_per_second",
            "Decode speed of one request",
            ("model",),
            buckets=_SPEEDS,
            registry=registry,
        )
        self._prompt_tokens = Counter(
            "mecroute_prompt_tokens", "Prompt tokens received", ("model",), registry=registry
        )
        self._cached_tokens = Counter(
            "mecroute_cached_prompt_tokens", "Prompt tokens found in the cache", ("model",), registry=registry
        )
        self._completion_tokens = Counter(
            "mecroute_completion_tokens", "Tokens generated", ("model",), registry=registry
        )
        self._cancelled = Counter(
            "mecroute_cancelled_requests", "Requests whose caller left", ("model",), registry=registry
        )
        self._refused = Counter(
            "mecroute_refused_requests",
            "Requests refused, by the error's code",
            ("reason",),
            registry=registry,
        )
        registry.register(_PoolCollector(pool))

    def record_request(self, route: str, model: str, status: int, seconds: float) -> None:
        """Count one answered request; `route` and `model` are names of ours, never the caller's text."""
        self._requests.labels(route, model, str(status)).inc()
        self._seconds.labels(route, model).observe(seconds)

    def record_generation(self, model: str, usage: Usage) -> None:
        """Count a complete answer by what it took."""
        self._prompt_tokens.labels(model).inc(usage.prompt_tokens)
        self._cached_tokens.labels(model).inc(usage.cached_tokens)
        self._completion_tokens.labels(model).inc(usage.completion_tokens)
        self._ttft.labels(model).observe(usage.ttft_ms / 1000)
        self._queued.labels(model).observe(max(0.0, usage.ttft_ms - usage.prefill_ms) / 1000)
        if usage.completion_tokens > 1:
            self._decode_speed.labels(model).observe(usage.decode_tokens_per_s)

    def record_embedding(self, model: str, prompt_tokens: int) -> None:
        """Count an answered embedding request."""
        self._prompt_tokens.labels(model).inc(prompt_tokens)

    def record_cancelled(self, model: str) -> None:
        """Count a request whose caller left before its answer was complete."""
        self._cancelled.labels(model).inc()

    def record_refused(self, reason: str) -> None:
        """Count a request that was not served; `reason` is an error's code."""
        self._refused.labels(reason).inc()

    def render(self) -> bytes:
        """The metrics in Prometheus' text format."""
        return generate_latest(self._registry)


class _PoolCollector(Collector):
    """Reads the pool at each scrape, on the event loop's thread as the pool demands."""

    def __init__(self, pool: EnginePool) -> None:
        self._pool = pool

    def _memory(self) -> Iterator[Metric]:
        """What loading and unloading has done, and how much memory the models have."""
        residency = self._pool.residency
        loads = CounterMetricFamily("mecroute_model_loads", "Models loaded", labels=("model",))
        seconds = CounterMetricFamily("mecroute_model_load_seconds", "Time loading took", labels=("model",))
        for ref, count in self._pool.loads.items():
            loads.add_metric((ref,), count)
            seconds.add_metric((ref,), self._pool.load_seconds[ref])
        evictions = CounterMetricFamily(
            "mecroute_model_evictions",
            "Models that left memory, for another (memory) or unused (idle)",
            labels=("model", "reason"),
        )
        for labels, count in residency.evictions.items():
            evictions.add_metric(labels, count)
        budget, now = residency.budget, residency.budget.resident
        resident = GaugeMetricFamily("mecroute_resident_bytes", "Memory of the models", labels=("kind",))
        resident.add_metric(("ram",), now.ram_bytes)
        resident.add_metric(("vram",), now.vram_bytes)
        most = GaugeMetricFamily("mecroute_memory_budget_bytes", "The most they may have", labels=("kind",))
        most.add_metric(("ram",), budget.ram_bytes)
        if budget.vram_bytes is not None:
            most.add_metric(("vram",), budget.vram_bytes)
        yield from (loads, seconds, evictions, resident, most)

    def collect(self) -> Iterator[Metric]:
        """One family per fact, one sample per model."""
        state = GaugeMetricFamily(
            "mecroute_model_state", "1 for the state it is in", labels=("model", "state")
        )
        for slot in self._pool.slots():
            state.add_metric((slot.ref, slot.state), 1)
        yield state
        yield from self._memory()
        ready = [(slot.ref, slot.loaded.engine.stats()) for slot in self._pool.slots() if slot.loaded]
        for name, says, field in _GAUGES:
            gauge = GaugeMetricFamily(name, says, labels=("model",))
            for ref, stats in ready:
                # A tensor model has no KV memory, and a rate nothing to be of while nothing was asked.
                value = getattr(stats, field, None)
                if value is not None:
                    gauge.add_metric((ref,), value)
            yield gauge
        generating = [(ref, stats) for ref, stats in ready if isinstance(stats, EngineStats)]
        occupancy = GaugeMetricFamily(
            "mecroute_batch_occupancy_ratio", "Share of the sequences in use, 0 to 1", labels=("model",)
        )
        gaps = HistogramMetricFamily(
            "mecroute_inter_token_seconds", "Between two tokens of an answer", labels=("model",)
        )
        for ref, stats in generating:
            occupancy.add_metric((ref,), stats.running / stats.n_parallel)
            gaps.add_metric((ref,), _buckets(stats.gaps), stats.gaps.sum_s)
        yield occupancy
        yield gaps
        for name, says, field in _COUNTERS:
            counter = CounterMetricFamily(name, says, labels=("model",))
            for ref, stats in generating:
                counter.add_metric((ref,), getattr(stats, field))
            yield counter


def _buckets(gaps: GapCounts) -> list[tuple[str, float]]:
    """Prometheus' cumulated buckets, the last one without a bound."""
    bounds = (*map(str, GAP_BOUNDS_S), "+Inf")
    return list(zip(bounds, accumulate(gaps.counts), strict=True))
