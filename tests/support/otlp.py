"""An OpenTelemetry collector for a test: OTLP over HTTP, read with the protocol's own messages."""

from __future__ import annotations

import gzip
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span


@dataclass
class Collector:
    """What was exported to it.

    Attributes:
        url: its base URL.
        resources: the attributes of each exporter, once per request.
        raw: the bytes of every request's body.
    """

    url: str = ""
    spans: list[Span] = field(default_factory=list)
    resources: list[dict[str, Any]] = field(default_factory=list)
    raw: list[bytes] = field(default_factory=list)

    def wait_for(self, wanted: Callable[[Collector], bool]) -> None:
        """Wait until what is wanted has been exported; fails after 20 s."""
        ends_at = time.monotonic() + 20
        while not wanted(self):
            if time.monotonic() > ends_at:
                raise AssertionError(f"not exported; there are: {[span.name for span in self.spans]}")
            time.sleep(0.02)

    def named(self, name: str) -> list[Span]:
        """The spans of that name, in the order in which they were exported."""
        return [span for span in self.spans if span.name == name]


def attributes(item: Any) -> dict[str, Any]:
    """The attributes of a span or a resource as a dictionary."""
    return {
        pair.key: getattr(pair.value, str(pair.value.WhichOneof("value")))
        for pair in item.attributes
        if pair.value.WhichOneof("value")
    }


@contextmanager
def collector() -> Iterator[Collector]:
    """A collector on a free loopback port."""
    found = Collector()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            if self.headers.get("content-encoding") == "gzip":
                body = gzip.decompress(body)
            assert self.path == "/v1/traces"
            request = ExportTraceServiceRequest.FromString(body)
            found.raw.append(body)
            for group in request.resource_spans:
                found.resources.append(attributes(group.resource))
                for scope in group.scope_spans:
                    found.spans.extend(scope.spans)
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Says nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    found.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield found
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)
