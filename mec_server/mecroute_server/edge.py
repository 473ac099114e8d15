"""The server's edge: what happens to every request, whichever route answers it."""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Callable
from uuid import uuid4

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mecroute.engines.llama.submitter import submitting
from mecroute.errors import MecrouteError
from mecroute.nodes.load_header import LOAD_HEADER
from mecroute_server.audit import AuditLog
from mecroute_server.auth import OPEN_PATHS, Authenticator
from mecroute_server.dialects import dialect_of, error_in
from mecroute_server.errors import (
    MissingScopeError,
    RequestTimeoutError,
    TimeLimitError,
    error_body,
    error_response,
    http_error_response,
)
from mecroute_server.framing import encode_event, encode_named_event
from mecroute_server.keys import ApiKey
from mecroute_server.limits import RateLimiter
from mecroute_server.metrics import Metrics
from mecroute_server.requester import admit
from mecroute_server.sse import SEND_BODY
from mecroute_server.tracing import RequestSpan, Tracing

_log = logging.getLogger(__name__)
#: Statuses of requests that were understood and not served: who is let in, and how much at a time.
_REFUSALS = frozenset({401, 403, 429, 503, 504})
#: A caller's own id goes back to it and into the log, so it must be harmless in both.
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:/+=-]{1,128}")


class Edge:
    """ASGI middleware: request id, authentication, metrics, and the last resort for errors.

    Args:
        app: what answers.
        authenticator: who may ask.
        metrics: where answers are counted; None counts nothing.
        limiter: the limits of every key; default: none.
        audit: where attempts to change the node are recorded; None records nothing.
        tracing: makes a span of each request, but for those that probe the node; None makes none.
        body_timeout_s: from a request's headers to its body's last byte.
        request_timeout_s: from a request's headers to its answer's last byte.
        node: the node's name, sent as `x-mecroute-node`.
        load_of: how busy a model is, sent with what it answers; None where there is nothing to tell.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        authenticator: Authenticator,
        metrics: Metrics | None,
        node: str,
        limiter: RateLimiter | None = None,
        audit: AuditLog | None = None,
        tracing: Tracing | None = None,
        body_timeout_s: float = 60.0,
        request_timeout_s: float = 600.0,
        load_of: Callable[[str], str | None] | None = None,
    ) -> None:
        self._app = app
        self._authenticator = authenticator
        self._metrics = metrics
        self._node = node
        self._limiter = limiter or RateLimiter()
        self._audit = audit
        self._tracing = tracing
        self._body_timeout_s = body_timeout_s
        self._request_timeout_s = request_timeout_s
        self._load_of = load_of

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request; other kinds of scope (lifespan) pass through."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        body = _Body(receive, self._body_timeout_s)
        headers = Headers(scope=scope)
        request_id = headers.get("x-request-id", "")
        if not _REQUEST_ID.fullmatch(request_id):
            request_id = f"req-{uuid4().hex}"
        state = scope.setdefault("state", {})
        state["request_id"] = request_id
        state[SEND_BODY] = send
        dialect = dialect_of(scope["path"], headers)
        status = 0
        streams_events = recorded = False
        caller: ApiKey | None = None
        span: RequestSpan | None = None
        if self._tracing is not None and scope["path"] not in OPEN_PATHS:
            state["span"] = span = self._tracing.begin(scope["method"], headers, request_id)

        def record() -> None:
            nonlocal recorded
            if self._audit is not None and caller is not None and not recorded:
                recorded = True
                self._audit.record(scope, caller, status=status or 499, code=state.get("refused"))

        async def send_with_headers(message: Message) -> None:
            nonlocal status, streams_events
            if message["type"] == "http.response.start":
                status = message["status"]
                record()  # before the caller can know of it
                answer = MutableHeaders(scope=message)
                streams_events = answer.get("content-type", "").startswith("text/event-stream")
                answer["x-request-id"] = request_id
                answer["x-mecroute-node"] = self._node
                # What a client subtracts from the time it waited: the rest was the network's, as is the time
                # in which the request's body was still on its way.
                took_s = time.perf_counter() - started - body.waited_s
                answer["server-timing"] = f"total;dur={took_s * 1000:.1f}"
                model = state.get("model")
                if self._load_of is not None and model and (load := self._load_of(model)) is not None:
                    answer[LOAD_HEADER] = load
            await send(message)

        client = scope.get("client")
        try:
            caller = self._authenticator.check(
                scope["path"], headers, client[0] if client else None, scope["method"]
            )
            state["caller"] = caller
            requester = admit(
                caller, self._limiter, method=scope["method"], path=scope["path"], headers=headers
            )
            limit = asyncio.timeout(self._request_timeout_s)
            try:
                with submitting(requester):
                    async with limit:
                        await self._app(scope, body.receive, send_with_headers)
            except TimeoutError:
                if not limit.expired():
                    raise  # another one, of something the route waited for
                too_late = TimeLimitError(
                    f"the answer took longer than this server's {self._request_timeout_s:g} s",
                    hint="ask for fewer tokens, or raise [server] request_timeout_s",
                )
                if not status:
                    raise too_late from None
                if not streams_events:
                    raise  # uvicorn cuts the connection: an answer that is not whole must not look so
                told = error_in(dialect, error_body(too_late), too_late.status)
                event = encode_named_event(told) if dialect == "anthropic" else encode_event(told)
                await send({"type": "http.response.body", "body": event, "more_body": False})
            finally:
                requester.settle()
        except MecrouteError as error:
            state["refused"] = error.code
            if isinstance(error, MissingScopeError):
                caller = error.key
            await error_response(error, dialect)(scope, receive, send_with_headers)
        except Exception:  # noqa: BLE001 - the edge: the caller gets an answer, the log gets the trace
            _log.exception("request %s failed: %s %s", request_id, scope["method"], scope["path"])
            if not status:
                failure = MecrouteError(
                    f"internal error while answering request {request_id}",
                    hint="the server's log has the details",
                )
                await error_response(failure, dialect)(scope, receive, send_with_headers)
        finally:
            record()
            route = getattr(scope.get("route"), "path", "unmatched")
            model = state.get("model", "")
            if span is not None:
                span.end(route=route, model=model, status=status or 499, code=state.get("refused"))
            if self._metrics is not None:
                seconds = time.perf_counter() - started
                self._metrics.record_request(route, model, status or 499, seconds)
                if status in _REFUSALS and "refused" in state:
                    self._metrics.record_refused(state["refused"])


class _Body:
    """Bounds the time that a whole body may take to arrive, and counts it.

    Attributes:
        waited_s: what was waited for it so far.
    """

    def __init__(self, receive: Receive, within_s: float) -> None:
        self.waited_s = 0.0
        self._receive = receive
        self._within_s = within_s
        self._loop = asyncio.get_running_loop()
        self._ends_at = self._loop.time() + within_s
        self._is_complete = False

    async def receive(self) -> Message:
        """The next message; once the body is complete, whenever that comes."""
        if self._is_complete:  # what comes now is that the caller has left
            return await self._receive()
        limit = asyncio.timeout_at(self._ends_at)
        begun = self._loop.time()
        try:
            async with limit:
                message = await self._receive()
        except TimeoutError:
            if not limit.expired():
                raise
            raise RequestTimeoutError(
                f"the request body was not complete after {self._within_s:g} s",
                hint="send it faster or in smaller requests, or raise [server] body_timeout_s",
            ) from None
        self.waited_s += self._loop.time() - begun
        self._is_complete = message["type"] != "http.request" or not message.get("more_body", False)
        return message


async def answer_error(request: Request, error: Exception) -> JSONResponse:
    """The exception handler for every `MecrouteError`."""
    assert isinstance(error, MecrouteError)
    request.state.refused = error.code
    return error_response(error, dialect_of(request.url.path, request.headers))


async def answer_http_error(request: Request, error: Exception) -> JSONResponse:
    """The exception handler for what the framework refuses: an unknown path, a method that is not allowed."""
    assert isinstance(error, HTTPException)
    headers = dict(error.headers) if error.headers else None
    detail = f"{request.method} {request.url.path}: {error.detail}"
    dialect = dialect_of(request.url.path, request.headers)
    return http_error_response(error.status_code, detail, headers, dialect)
