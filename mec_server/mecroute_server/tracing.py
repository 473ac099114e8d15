"""OpenTelemetry traces of what a node answers, exported over OTLP/HTTP where that is configured.

One server span per request, named and attributed by OpenTelemetry's conventions for generative AI, with a
child for each phase of a generation: `queue`, `prefill` and `decode`. Spans hold names, numbers and error
codes, never a prompt, an answer or a caller's key. Nothing of OpenTelemetry is imported where it is not
configured.
"""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from mecroute.errors import ConfigError, MissingExtraError
from mecroute_registry._version import __version__

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span

    from mecroute.engines.llama.generation import Answers, Generation

_log = logging.getLogger(__name__)

#: OpenTelemetry's name for what a route does.
_OPERATIONS = {
    "/v1/chat/completions": "chat",
    "/v1/responses": "chat",
    "/v1/messages": "chat",
    "/api/chat": "chat",
    "/v1/completions": "text_completion",
    "/api/generate": "text_completion",
    "/v1/embeddings": "embeddings",
    "/api/embed": "embeddings",
}
#: Newer FastAPI has spans and logs of its own, which would hold messages of exceptions and tell of every
#: request twice. Older FastAPI takes this for an extra that it does not know.
FASTAPI_TELEMETRY_OFF: Any = {
    "tracing": False,
    "metrics": False,
    "logs": False,
    "operation_spans": False,
    "auto_configure": False,
}
#: The variables by which OpenTelemetry is configured everywhere.
_ENDPOINT_VARIABLES = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")


class Tracing:
    """Makes a node's spans. Thread-safe.

    Args:
        provider: where they go.
    """

    def __init__(self, provider: TracerProvider) -> None:
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._provider = provider
        self._tracer = provider.get_tracer("mecroute_server", __version__)
        self._propagator = TraceContextTextMapPropagator()

    def begin(self, method: str, headers: Mapping[str, str], request_id: str) -> RequestSpan:
        """Open the span of a request, as a child of the caller's if its `traceparent` names one.

        Args:
            method: the HTTP method.
            headers: the request's, with lower-case names.
            request_id: as it is answered.
        """
        from opentelemetry.trace import SpanKind

        span = self._tracer.start_span(
            method,
            context=self._propagator.extract(headers),
            kind=SpanKind.SERVER,
            attributes={"http.request.method": method, "mecroute.request.id": request_id},
        )
        return RequestSpan(self, span, method)

    def phase(self, name: str, parent: Span, begin_ns: int, end_ns: int) -> None:
        """Add a child span after the fact; times in ns since the epoch."""
        from opentelemetry.trace import set_span_in_context

        span = self._tracer.start_span(name, context=set_span_in_context(parent), start_time=begin_ns)
        span.end(end_ns)

    def close(self) -> None:
        """Export what is left; blocks for up to the exporter's time limit."""
        self._provider.shutdown()


class RequestSpan:
    """The span of one request; for one event loop."""

    def __init__(self, tracing: Tracing, span: Span, method: str) -> None:
        self._tracing = tracing
        self._span = span
        self._method = method
        # Phases are measured by another clock than spans are: both are read once, here.
        self._epoch_ns, self._perf_s = time.time_ns(), time.perf_counter()

    def generated(self, answers: Answers) -> None:
        """Note an answer that is complete, and its phases: of several prompts those of the first."""
        usage = answers.usage
        if usage is None:
            return
        generation = min(answers.generations, key=_first_token_ms)
        self._span.set_attributes(
            {
                "gen_ai.request.max_tokens": generation.max_tokens,
                "gen_ai.request.choice.count": sum(request.n for request in answers.requests),
                "gen_ai.usage.input_tokens": usage.prompt_tokens,
                "gen_ai.usage.output_tokens": usage.completion_tokens,
                "gen_ai.usage.cache_read.input_tokens": usage.cached_tokens,
                "gen_ai.response.time_to_first_chunk": usage.ttft_ms / 1000,
            }
        )
        first_at = generation.submitted_at + usage.ttft_ms / 1000
        begun_at = first_at - usage.prefill_ms / 1000
        times = (generation.submitted_at, begun_at, first_at, first_at + usage.decode_ms / 1000)
        edges = [self._epoch_ns + round((at - self._perf_s) * 1e9) for at in times]
        for name, begin_ns, end_ns in zip(("queue", "prefill", "decode"), edges, edges[1:], strict=False):
            self._tracing.phase(name, self._span, begin_ns, end_ns)

    def embedded(self, input_tokens: int) -> None:
        """Note an embedding that is complete."""
        self._span.set_attribute("gen_ai.usage.input_tokens", input_tokens)

    def end(self, *, route: str, model: str, status: int, code: str | None) -> None:
        """Close it.

        Args:
            route: the path's pattern.
            model: the reference of the model that was asked; empty if none was found.
            status: the HTTP status; 499 if the caller left.
            code: the error's code, where one was answered.
        """
        from opentelemetry.trace import StatusCode

        span = self._span
        operation = _OPERATIONS.get(route)
        span.update_name(f"{self._method} {route}")
        span.set_attributes({"http.route": route, "http.response.status_code": status})
        if operation is not None:
            span.set_attributes({"gen_ai.operation.name": operation, "gen_ai.provider.name": "mecroute"})
            if model:
                span.update_name(f"{operation} {model}")
        if model:
            span.set_attributes({"gen_ai.request.model": model, "gen_ai.response.model": model})
        if status >= 400:
            span.set_attribute("error.type", code or ("cancelled" if status == 499 else str(status)))
        if status >= 500:
            span.set_status(StatusCode.ERROR)
        span.end()


def _first_token_ms(generation: Generation) -> float:
    return generation.usage.ttft_ms if generation.usage is not None else math.inf


def open_tracing(endpoint: str | None, *, node: str, zone: str | None, region: str | None) -> Tracing | None:
    """Start tracing if it is configured, here or by OpenTelemetry's own variables; None if it is not.

    Args:
        endpoint: base URL of an OTLP/HTTP collector, without `/v1/traces`; it outranks the variables.
        node: the node's name; zone and region say where it stands.

    Raises:
        ConfigError: the endpoint is not an HTTP URL.
        MissingExtraError: the endpoint is set and the `otel` extra is not installed.
    """
    if os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return None
    if endpoint is None and not any(os.environ.get(name) for name in _ENDPOINT_VARIABLES):
        return None
    if endpoint is not None and (
        urlsplit(endpoint).scheme not in ("http", "https") or not urlsplit(endpoint).hostname
    ):
        raise ConfigError(
            f"[server] otlp_endpoint '{endpoint}' is not an HTTP URL",
            hint="http://127.0.0.1:4318, for example",
        )
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        if endpoint is not None:
            raise MissingExtraError("otel", "exporting traces") from error
        # The variables are often set for a whole machine; they are no reason not to serve.
        _log.warning("OpenTelemetry is configured, but not installed: pip install 'mecroute[otel]'")
        return None
    facts: dict[str, Any] = {"service.version": __version__, "service.instance.id": node}
    if not os.environ.get("OTEL_SERVICE_NAME"):
        facts["service.name"] = "mecroute"
    facts |= {"mecroute.zone": zone} if zone else {}
    facts |= {"mecroute.region": region} if region else {}
    # Not the process' global provider: an application that embeds a node has its own.
    provider = TracerProvider(resource=Resource.create(facts), shutdown_on_exit=False)
    url = None if endpoint is None else endpoint.rstrip("/") + "/v1/traces"
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=url)))
    return Tracing(provider)
