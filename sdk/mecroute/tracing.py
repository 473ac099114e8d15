"""Spans of the calls that a client makes, for applications that trace themselves with OpenTelemetry.

Nothing here imports OpenTelemetry: it is used only where the application has done so, and costs nothing where
it has not. Spans hold names, numbers and error codes, never a prompt or an answer.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from typing import Any
from urllib.parse import urlsplit

from mecroute.errors import MecrouteError
from mecroute.tiers.base import Call

#: OpenTelemetry's names for what is done (semantic conventions for generative AI).
_OPERATIONS = {"chat": "chat", "completion": "text_completion", "embed": "embeddings"}


class CallSpan:
    """The span of one call to one target; does nothing where the application does not trace."""

    def __init__(self, span: Any = None, carrier: Mapping[str, str] | None = None) -> None:
        self._span = span
        #: Headers by which a server's spans become children of this one.
        self.headers: Mapping[str, str] = carrier or {}

    def used(self, usage: object) -> None:
        """Note the token counts of an answer's `usage`."""
        if self._span is None or not isinstance(usage, Mapping):
            return
        for theirs, name in (("prompt_tokens", "input_tokens"), ("completion_tokens", "output_tokens")):
            if isinstance(count := usage.get(theirs), int):
                self._span.set_attribute(f"gen_ai.usage.{name}", count)


_NO_SPAN = CallSpan()


@contextmanager
def call_span(call: Call, base_url: str) -> Iterator[CallSpan]:
    """Trace a call: a client span under the application's current one.

    Args:
        call: what is asked of which target.
        base_url: where that target is.
    """
    trace: Any = sys.modules.get("opentelemetry.trace")
    if trace is None:
        yield _NO_SPAN
        return
    propagate = import_module("opentelemetry.propagate")
    url = urlsplit(base_url)
    operation = _OPERATIONS.get(call.task, call.task)
    attributes = {
        "gen_ai.operation.name": operation,
        "gen_ai.provider.name": "mecroute" if call.target.tier == "mec" else str(call.target.node),
        "gen_ai.request.model": call.target.model,
        "mecroute.request.id": call.request_id,
        "mecroute.tier": call.target.tier,
        "server.address": url.hostname or "",
        "server.port": url.port or (443 if url.scheme == "https" else 80),
    }
    span = trace.get_tracer("mecroute").start_span(
        f"{operation} {call.target.model}", kind=trace.SpanKind.CLIENT, attributes=attributes
    )
    carrier: dict[str, str] = {}
    propagate.inject(carrier, trace.set_span_in_context(span))
    try:
        yield CallSpan(span, carrier)
    except MecrouteError as error:
        # The code and not the message: a service may quote the request in what it answers.
        span.set_attribute("error.type", error.code)
        span.set_status(trace.StatusCode.ERROR, error.code)
        raise
    except BaseException:  # cancelled, or the reader of a stream left
        span.set_attribute("error.type", "cancelled")
        raise
    finally:
        span.end()
