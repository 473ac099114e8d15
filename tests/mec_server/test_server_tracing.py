"""Traces of a node, as a real OTLP collector receives them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from mecroute import Client, Config
from mecroute.config import DeviceConfig, NodeConfig, RegistryConfig, StateConfig
from mecroute.errors import ConfigError, MissingExtraError
from mecroute_server.settings import ServerSettings
from mecroute_server.tracing import open_tracing
from support.otlp import Collector, attributes, collector
from support.server import SAYS, running_node

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
SECRET = "the secret of the harbour"
CHAT: dict[str, Any] = {
    "model": "tiny",
    "messages": [{"role": "user", "content": SECRET}],
    "temperature": 0,
    "max_tokens": len(SAYS),
}
OLLAMA = {name: CHAT[name] for name in ("model", "messages")}
PHASES = ["queue", "prefill", "decode"]


@pytest.fixture
def spans() -> Iterator[Collector]:
    with collector() as found:
        yield found


def settings(tiny: Path, tmp_path: Path, endpoint: str | None) -> ServerSettings:
    return ServerSettings(
        port=0,
        node="edge-1",
        zone="zone-a",
        registry_root=tmp_path,
        model_files=(tiny,),
        threads=1,
        otlp_endpoint=endpoint,
    )


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", CHAT),
        ("/v1/messages", CHAT),
        (
            "/v1/responses",
            {"model": "tiny", "input": SECRET, "temperature": 0, "max_output_tokens": len(SAYS)},
        ),
        ("/api/chat", {**OLLAMA, "options": {"num_predict": len(SAYS), "temperature": 0}}),
    ],
)
def test_a_generation_is_one_span_with_its_phases(
    tiny: Path, tmp_path: Path, spans: Collector, path: str, body: dict[str, Any], stream: bool
) -> None:
    with running_node(settings(tiny, tmp_path, spans.url)) as server:
        headers = {"traceparent": f"00-{TRACE}-{PARENT}-01", "x-request-id": "req-1"}
        answer = httpx.post(server.url + path, json={**body, "stream": stream}, headers=headers, timeout=30)
        assert answer.status_code == 200
        assert httpx.get(f"{server.url}/readyz").status_code == 200
    # The node has stopped, so everything has been exported; probes make no spans.
    (span,) = spans.named("chat tiny")
    assert span.kind == Span.SPAN_KIND_SERVER
    assert span.trace_id.hex() == TRACE
    assert span.parent_span_id.hex() == PARENT
    told = attributes(span)
    expected = {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "mecroute",
        "gen_ai.request.model": "tiny",
        "gen_ai.request.max_tokens": len(SAYS),
        "gen_ai.usage.output_tokens": len(SAYS),
        "http.route": path,
        "http.response.status_code": 200,
        "mecroute.request.id": "req-1",
    }
    assert {name: told[name] for name in expected} == expected
    assert told["gen_ai.usage.input_tokens"] > 0
    phases = [child for child in spans.spans if child.parent_span_id == span.span_id]
    assert [child.name for child in phases] == PHASES
    edges = [t for child in phases for t in (child.start_time_unix_nano, child.end_time_unix_nano)]
    assert edges == sorted(edges)
    assert span.start_time_unix_nano <= edges[0]
    assert edges[-1] <= span.end_time_unix_nano
    assert len(spans.spans) == 1 + len(PHASES)
    assert spans.resources[0]["service.name"] == "mecroute"
    assert spans.resources[0]["service.instance.id"] == "edge-1"
    assert spans.resources[0]["mecroute.zone"] == "zone-a"
    for text in (SECRET, SAYS):
        assert text.encode() not in b"".join(spans.raw)


def test_embeddings_and_errors_have_spans_as_well(tiny: Path, tmp_path: Path, spans: Collector) -> None:
    with (
        running_node(settings(tiny, tmp_path, spans.url)) as server,
        httpx.Client(base_url=server.url, timeout=30) as http,
    ):
        assert http.post("/v1/embeddings", json={"model": "tiny", "input": SECRET}).status_code == 200
        assert http.post("/v1/chat/completions", json={**CHAT, "model": SECRET}).status_code == 404
        assert http.post("/v1/chat/completions", json={**CHAT, "max_tokens": 0}).status_code == 400
        assert http.get("/nowhere").status_code == 404
    (embedding,) = spans.named("embeddings tiny")
    assert attributes(embedding)["gen_ai.usage.input_tokens"] > 0
    (unknown,) = spans.named("POST /v1/chat/completions")
    assert attributes(unknown)["error.type"] == "model_not_found"
    assert unknown.status.code == Status.STATUS_CODE_UNSET  # the caller's mistake, by the conventions
    (wrong,) = spans.named("chat tiny")
    assert attributes(wrong)["error.type"] == "invalid_request"
    assert attributes(spans.named("GET unmatched")[0])["http.response.status_code"] == 404
    assert SECRET.encode() not in b"".join(spans.raw)


def test_an_answer_that_its_caller_left_is_cancelled(endless: Path, tmp_path: Path, spans: Collector) -> None:
    ask = {**CHAT, "model": "endless", "max_tokens": 30_000, "stream": True}
    endless_settings = ServerSettings(
        port=0,
        registry_root=tmp_path,
        model_files=(endless,),
        context=32768,
        threads=1,
        otlp_endpoint=spans.url,
    )
    with running_node(endless_settings) as server:
        with httpx.stream("POST", f"{server.url}/v1/chat/completions", json=ask, timeout=30) as answer:
            next(answer.iter_lines())
        spans.wait_for(lambda found: bool(found.named("chat endless")))
    (span,) = spans.named("chat endless")
    assert "gen_ai.usage.output_tokens" not in attributes(span)


def test_the_standard_variable_is_enough(
    tiny: Path, tmp_path: Path, spans: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", spans.url)
    monkeypatch.setenv("OTEL_SERVICE_NAME", "our-edge")
    with running_node(settings(tiny, tmp_path, None)) as server:
        assert httpx.get(f"{server.url}/v1/models").status_code == 200
    assert [span.name for span in spans.spans] == ["GET /v1/models"]
    assert spans.resources[0]["service.name"] == "our-edge"
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    assert open_tracing(spans.url, node="n", zone=None, region=None) is None


def test_a_collector_that_is_away_holds_nothing_up(tiny: Path, tmp_path: Path) -> None:
    with running_node(settings(tiny, tmp_path, "http://127.0.0.1:9")) as server:
        answer = httpx.post(f"{server.url}/v1/chat/completions", json=CHAT, timeout=30)
        assert answer.status_code == 200


def test_the_client_and_the_node_make_one_trace(
    tiny: Path, tmp_path: Path, spans: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    kept = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(kept))
    monkeypatch.setattr("opentelemetry.trace._TRACER_PROVIDER", provider)
    with running_node(settings(tiny, tmp_path, spans.url)) as server:
        config = Config(
            registry=RegistryConfig(path=tmp_path / "client"),
            device=DeviceConfig(enabled=False),
            state=StateConfig(enabled=False),
            nodes=(NodeConfig(name="n1", url=server.url),),
        )
        with Client(config) as client, provider.get_tracer("app").start_as_current_span("the app's") as outer:
            client.chat.completions.create(messages=CHAT["messages"], max_tokens=4)
            list(client.chat.completions.create(messages=CHAT["messages"], max_tokens=4, stream=True))
    calls = [span for span in kept.get_finished_spans() if span.name == "chat tiny"]
    assert len(calls) == 2
    for call in calls:
        assert call.context
        assert call.parent
        assert call.parent.span_id == outer.get_span_context().span_id
        assert call.attributes
        assert call.attributes["gen_ai.usage.output_tokens"] == 4
        assert call.attributes["mecroute.tier"] == "mec"
        answered = [s for s in spans.spans if s.parent_span_id.hex() == f"{call.context.span_id:016x}"]
        assert [span.name for span in answered] == ["chat tiny"]
        assert answered[0].trace_id.hex() == f"{call.context.trace_id:032x}"
    assert SECRET not in str([span.to_json() for span in kept.get_finished_spans()])


def test_nothing_is_imported_where_nothing_is_configured() -> None:
    program = (
        "import sys, mecroute, mecroute.tiers.http, mecroute_server\n"
        "from mecroute_server.app import create_app\n"
        "from mecroute_server.settings import ServerSettings\n"
        "create_app(ServerSettings())\n"
        # FastAPI imports OpenTelemetry's API, which does nothing, where it finds it.
        "heavy = ('opentelemetry.sdk', 'opentelemetry.exporter')\n"
        "sys.exit(any(name.startswith(heavy) for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_the_framework_adds_no_spans_of_its_own(tiny: Path, tmp_path: Path, monkeypatch: Any) -> None:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    kept = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(kept))
    monkeypatch.setattr("opentelemetry.trace._TRACER_PROVIDER", provider)
    with running_node(settings(tiny, tmp_path, None)) as server:
        assert httpx.post(f"{server.url}/v1/chat/completions", json=CHAT, timeout=30).status_code == 200
    assert kept.get_finished_spans() == ()


def test_what_cannot_be_is_refused(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(ConfigError, match="otlp_endpoint"):
        open_tracing("127.0.0.1:4318", node="n", zone=None, region=None)
    for name in ("opentelemetry.sdk.trace", "opentelemetry.exporter.otlp.proto.http.trace_exporter"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingExtraError, match=r"mecroute\[otel\]"):
        open_tracing("http://127.0.0.1:4318", node="n", zone=None, region=None)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:4318")
    assert open_tracing(None, node="n", zone=None, region=None) is None
    assert "mecroute[otel]" in caplog.text
