"""What `/metrics` says, read by Prometheus' own parser, is what happened."""

from __future__ import annotations

import re
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from mecroute.engines.llama.gaps import GAP_BOUNDS_S, GapHistogram
from mecroute_server.settings import ServerSettings
from support.process import ROOT
from support.server import SAYS, running_node

ASK = {
    "model": "tiny",
    "messages": [{"role": "user", "content": "hi"}],
    "temperature": 0,
    "max_tokens": len(SAYS),
}


def samples(http: httpx.Client) -> dict[tuple[str, str], float]:
    """Every sample by its name and its `model`, `le` or `reason` label."""
    found = {}
    for family in text_string_to_metric_families(http.get("/metrics").text):
        for sample in family.samples:
            label = sample.labels.get("le") or sample.labels.get("reason") or sample.labels.get("model") or ""
            found[sample.name, label] = sample.value
    return found


def test_answers_are_counted_in_tokens_steps_and_gaps(http: httpx.Client) -> None:
    before = samples(http)
    for stream in (False, True):
        assert http.post("/v1/chat/completions", json={**ASK, "stream": stream}).status_code == 200
    after = samples(http)

    def grown(name: str, label: str = "tiny") -> float:
        return after[name, label] - before.get((name, label), 0)

    assert grown("mecroute_completion_tokens_total") == 2 * len(SAYS)
    assert grown("mecroute_engine_tokens_total") == 2 * len(SAYS)
    # The first token of an answer comes with its prompt, the others one by one.
    assert grown("mecroute_decode_steps_total") == grown("mecroute_decoded_rows_total") == 2 * (len(SAYS) - 1)
    assert grown("mecroute_inter_token_seconds_count") == 2 * (len(SAYS) - 1)
    assert grown("mecroute_inter_token_seconds_sum") > 0
    assert grown("mecroute_ttft_seconds_count") == grown("mecroute_queue_seconds_count") == 2
    assert after["mecroute_batch_occupancy_ratio", "tiny"] == 0
    assert after["mecroute_queued_requests", "tiny"] == after["mecroute_running_requests", "tiny"] == 0
    assert after["mecroute_kv_total_tokens", "tiny"] >= after["mecroute_kv_used_tokens", "tiny"] > 0


def test_a_full_node_shows_its_occupancy_its_queue_and_its_refusals(endless: Path, tmp_path: Path) -> None:
    settings = ServerSettings(
        port=0,
        registry_root=tmp_path,
        model_files=(endless,),
        context=32768,
        parallel=1,
        max_queue=0,
        threads=1,
    )
    ask = {**ASK, "model": "endless", "max_tokens": 30_000, "stream": True}
    with (
        running_node(settings) as server,
        httpx.Client(base_url=server.url, timeout=30) as http,
        http.stream("POST", "/v1/chat/completions", json=ask) as running,
    ):
        lines = running.iter_lines()
        next(lines)
        assert http.post("/v1/chat/completions", json=ask).status_code == 429
        late = {"x-mecroute-deadline-ms": "0.001"}
        assert http.post("/v1/chat/completions", json=ask, headers=late).status_code == 504
        told = samples(http)
    assert told["mecroute_batch_occupancy_ratio", "endless"] == 1
    assert told["mecroute_running_requests", "endless"] == 1
    assert told["mecroute_refused_requests_total", "overloaded"] == 1
    assert told["mecroute_refused_requests_total", "deadline_exceeded"] == 1


#: What an operator was promised: each of these, and no more than is said of it in the documentation.
PROMISED = {
    "queued_requests",
    "running_requests",
    "batch_occupancy_ratio",
    "ttft_seconds",
    "inter_token_seconds",
    "prompt_tokens",
    "completion_tokens",
    "prefix_hit_rate",
    "kv_used_tokens",
    "kv_total_tokens",
    "model_loads",
    "model_evictions",
    "refused_requests",
}


def test_every_metric_is_there_and_documented(http: httpx.Client) -> None:
    assert http.post("/v1/chat/completions", json=ASK).status_code == 200
    families = {
        family.name.removeprefix("mecroute_")
        for family in text_string_to_metric_families(http.get("/metrics").text)
        if not family.name.endswith("_created")
    }
    assert families >= PROMISED
    text = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")
    named = set(re.findall(r"[a-z]+_[a-z_]+", text))
    missing = {
        name
        for name in families
        if not {name, f"{name}_total", f"mecroute_{name}", f"mecroute_{name}_total"} & named
    }
    assert not missing


@pytest.mark.parametrize(
    ("seconds", "bucket"), [(0, 0), (GAP_BOUNDS_S[0], 0), (0.0021, 1), (GAP_BOUNDS_S[-1], -2), (99, -1)]
)
def test_a_gap_is_counted_in_its_bucket(seconds: float, bucket: int) -> None:
    histogram = GapHistogram()
    histogram.add(seconds)
    read = histogram.read()
    assert read.counts[bucket] == 1
    assert sum(read.counts) == 1
    assert read.sum_s == seconds
