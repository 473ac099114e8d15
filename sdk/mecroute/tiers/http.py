"""MEC nodes and cloud services: OpenAI-compatible APIs over HTTP."""

from __future__ import annotations

import json
import math
import time
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any, Protocol
from urllib.parse import quote

import httpx

from mecroute.errors import (
    AuthenticationError,
    ConfigError,
    ContextLengthError,
    DeadlineExceededError,
    InvalidRequestError,
    MecrouteError,
    ModelNotFoundError,
    NodeNotFoundError,
    NodeNotReadyError,
    OverloadedError,
    TargetTooSlowError,
    TierResponseError,
    TierUnreachableError,
    UnknownLabelError,
)
from mecroute.network.clients import HttpClients
from mecroute.network.tls import ClientTls, tls_problem
from mecroute.nodes.headers import DEADLINE_HEADER, deadline_value
from mecroute.target import Target
from mecroute.tiers.answer_shape import shape_problem
from mecroute.tiers.base import Call
from mecroute.tiers.plain_http import PlainHttp
from mecroute.tiers.posting import Posting
from mecroute.tracing import CallSpan, call_span
from mecroute_registry.facts import Task, Tier

_PATHS: Mapping[Task, str] = {
    "chat": "/chat/completions",
    "completion": "/completions",
    "embed": "/embeddings",
    "classify": "/classify",
}
_CONNECT_S: Mapping[Tier, float] = {"mec": 2.0, "cloud": 5.0}
#: Longest silence before an answer's first byte and between two chunks of a stream.
_SILENCE_S: Mapping[Tier, float] = {"mec": 30.0, "cloud": 60.0}
_MAX_ERROR_BYTES = 64 * 1024
_DEFAULT_RETRY_AFTER_S = 1.0


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One OpenAI-compatible API.

    Args:
        name: the node's or the provider's name.
        base_url: up to and including `/v1`.
        continues_prefix: whether it continues a final assistant message.
        tls: files for the connections to it; None: the system's authorities, and no certificate is shown.
    """

    tier: Tier
    name: str
    base_url: str
    api_key: str | None = None
    continues_prefix: bool = False
    tls: ClientTls | None = None


class TrafficObserver(Protocol):
    """Hears of every exchange; see `mecroute.network.traffic.Traffic`."""

    def answered(
        self,
        target: Target,
        status: int,
        headers: Mapping[str, str],
        waited_ms: float,
        sent_bytes: int,
    ) -> None:
        """The headers of an answer came."""
        ...

    def received(self, target: Target, size_bytes: int, took_s: float) -> None:
        """A whole body came in."""
        ...

    def streamed(self, target: Target) -> None:
        """A stream ended or was given up."""
        ...

    def lost(self, target: Target) -> None:
        """No connection, or one that broke."""
        ...


class HttpTier:
    """Calls endpoints by the target's node name. For one event loop; connections are kept and shared.

    Args:
        endpoints: by name; read at every call, so that they may come and go while this runs.
        traffic: told of every exchange; default: nobody is.
    """

    def __init__(self, endpoints: Mapping[str, Endpoint], *, traffic: TrafficObserver | None = None) -> None:
        self._endpoints = endpoints
        self._traffic = traffic
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=64, keepalive_expiry=30)
        self._clients = HttpClients(limits=limits, follow_redirects=False, trust_env=True)
        self._plain = PlainHttp()
        self._post = Posting(self._clients.of(None))

    def continues_prefix(self, target: Target) -> bool:
        """Whether this endpoint continues a final assistant message."""
        return self._endpoint(target).continues_prefix

    async def complete(self, call: Call) -> dict[str, Any]:
        """One plain call; see `Tier`."""
        endpoint = self._endpoint(call.target)
        with call_span(call, endpoint.base_url) as span:
            response = await self._send(endpoint, call, span, stream=False)
            await self._read(endpoint, call.target, response)
            try:
                body = response.json()
            except (ValueError, RecursionError) as error:
                raise _nonsense(endpoint, "the answer is not JSON") from error
            if not isinstance(body, dict):
                raise _nonsense(endpoint, "the answer is not a JSON object")
            if (problem := shape_problem(body)) is not None:
                raise _nonsense(endpoint, problem)
            span.used(body.get("usage"))
            return body

    async def stream(self, call: Call) -> AsyncGenerator[dict[str, Any]]:
        """One call answered by server-sent events; see `Tier`."""
        endpoint = self._endpoint(call.target)
        with call_span(call, endpoint.base_url) as span:
            async for chunk in self._chunks(endpoint, call, span):
                span.used(chunk.get("usage"))
                yield chunk

    async def _chunks(self, endpoint: Endpoint, call: Call, span: CallSpan) -> AsyncGenerator[dict[str, Any]]:
        response = await self._send(endpoint, call, span, stream=True)
        finished = False
        ended: set[int] = set()
        try:
            async for line in response.aiter_lines():
                if not line.startswith("data:"):
                    continue
                data = line[5:].strip()
                if data == "[DONE]":
                    finished = True
                    break
                chunk = _parse_chunk(endpoint, data)
                if "error" in chunk:
                    raise TierUnreachableError(
                        f"{endpoint.name} broke off its answer: {_error_message(chunk)}",
                        retryable=True,
                        tier=endpoint.tier,
                    )
                choices = chunk.get("choices") or ()
                ended |= {choice.get("index", 0) for choice in choices if choice.get("finish_reason")}
                finished = finished or len(ended) >= (call.body.get("n") or 1)
                yield chunk
        except httpx.HTTPError as error:
            if not finished:
                self._lost(call.target)
                raise _unreachable(endpoint, error) from error
        finally:
            if self._traffic is not None:
                self._traffic.streamed(call.target)
            await response.aclose()
        if not finished:
            raise TierUnreachableError(
                f"{endpoint.name} closed the stream before the answer was complete",
                retryable=True,
                tier=endpoint.tier,
            )

    async def aclose(self) -> None:
        """Close every connection."""
        await self._plain.aclose()
        await self._clients.aclose()

    def _endpoint(self, target: Target) -> Endpoint:
        assert target.node is not None, "a remote target names its node"
        endpoint = self._endpoints.get(target.node)
        if endpoint is None:
            raise NodeNotFoundError(
                f"'{target.node}' is not there any more",
                hint="`mecroute nodes list` shows the nodes that there are",
                retryable=True,
                tier=target.tier,
            )
        return endpoint

    async def _send(self, endpoint: Endpoint, call: Call, span: CallSpan, *, stream: bool) -> httpx.Response:
        body = {**call.body, "model": call.target.model, "stream": stream}
        if call.task == "infer":
            body = {name: call.body[name] for name in ("inputs", "outputs") if name in call.body}
        elif call.task in ("embed", "classify"):
            del body["stream"]
        elif stream:
            # Token counts are needed for the outcome, whether or not the caller wants them.
            body["stream_options"] = {**(call.body.get("stream_options") or {}), "include_usage": True}
        headers = {"x-request-id": call.request_id}
        if endpoint.api_key:
            headers["authorization"] = f"Bearer {endpoint.api_key}"
        if endpoint.tier == "mec":
            # Our own nodes only: a cloud service needs to know neither.
            headers.update(span.headers)
            if call.deadline_ms is not None:
                headers[DEADLINE_HEADER] = deadline_value(call.deadline_ms)
        silence = _SILENCE_S[endpoint.tier]
        request = self._post(
            _url(endpoint, call),
            body,
            headers,
            httpx.Timeout(silence, connect=_CONNECT_S[endpoint.tier]),
        )
        response = await self._open(endpoint, call.target, request)
        if response.status_code >= 300:
            raise await _refusal(endpoint, response, call.target.model)
        return response

    async def _open(self, endpoint: Endpoint, target: Target, request: httpx.Request) -> httpx.Response:
        begun = time.monotonic()
        try:
            try:
                response = await self._exchange(endpoint, request)
            except httpx.RemoteProtocolError:
                # A kept connection that the server had closed in the meantime: nothing was answered, so
                # the call is made once more on a new one.
                begun = time.monotonic()
                response = await self._exchange(endpoint, request)
        except ConfigError as error:
            # A file for it that could be used when the client began, and is gone: no affair of the others.
            raise TierUnreachableError(
                f"{endpoint.name} at {endpoint.base_url}: {error.message}",
                hint=error.hint,
                retryable=True,
                tier=endpoint.tier,
            ) from error
        except httpx.HTTPError as error:
            self._lost(target)
            if (problem := tls_problem(error, endpoint.base_url, endpoint.tls)) is not None:
                what, hint = problem
                raise TierUnreachableError(
                    f"{endpoint.name} at {endpoint.base_url}: {what}",
                    hint=hint,
                    retryable=True,
                    tier=endpoint.tier,
                ) from error
            raise _unreachable(endpoint, error) from error
        if self._traffic is not None:
            waited_ms = (time.monotonic() - begun) * 1000
            self._traffic.answered(
                target, response.status_code, response.headers, waited_ms, len(request.content)
            )
        return response

    async def _exchange(self, endpoint: Endpoint, request: httpx.Request) -> httpx.Response:
        if self._plain.takes(request.url):
            return await self._plain.handle_async_request(request)
        return await self._clients.of(endpoint.tls).send(request, stream=True)

    async def _read(self, endpoint: Endpoint, target: Target, response: httpx.Response) -> None:
        begun = time.monotonic()
        try:
            content = await response.aread()
        except httpx.HTTPError as error:
            self._lost(target)
            raise _unreachable(endpoint, error) from error
        finally:
            await response.aclose()
        if self._traffic is not None:
            self._traffic.received(target, len(content), time.monotonic() - begun)

    def _lost(self, target: Target) -> None:
        if self._traffic is not None:
            self._traffic.lost(target)


def _url(endpoint: Endpoint, call: Call) -> str:
    base = endpoint.base_url.rstrip("/")
    if call.task == "infer":
        # The Open Inference Protocol stands beside OpenAI's, not below it.
        return f"{base.removesuffix('/v1')}/v2/models/{quote(call.target.model, safe=':/')}/infer"
    return base + _PATHS[call.task]


async def _refusal(endpoint: Endpoint, response: httpx.Response, model: str) -> MecrouteError:
    """The error that an HTTP status other than success stands for."""
    try:
        content = (await response.aread())[:_MAX_ERROR_BYTES]
    except httpx.HTTPError as error:
        return _unreachable(endpoint, error)
    finally:
        await response.aclose()
    try:
        body = json.loads(content)
    except (ValueError, RecursionError):
        body = {}
    status, tier = response.status_code, endpoint.tier
    code = (
        body["error"].get("code") if isinstance(body, dict) and isinstance(body.get("error"), dict) else None
    )
    message = f"{endpoint.name} answered {status}: {_error_message(body)}"
    if status in (401, 403):
        return AuthenticationError(
            message, hint=f"check the API key configured for '{endpoint.name}'", tier=tier
        )
    if status == 404:
        return ModelNotFoundError(message, tier=tier, model=model)
    if status == 429:
        retry_after_s = _retry_after_s(response)
        if retry_after_s is None:
            retry_after_s = _DEFAULT_RETRY_AFTER_S
        return OverloadedError(message, retry_after_s=retry_after_s, tier=tier)
    if status in (400, 413, 422):
        if code == ContextLengthError.code:
            return ContextLengthError(message, tier=tier, model=model)
        if code == UnknownLabelError.code:
            return UnknownLabelError(message, tier=tier, model=model)
        return InvalidRequestError(message, tier=tier, model=model)
    if status == 503:
        return NodeNotReadyError(message, retry_after_s=_retry_after_s(response), retryable=True, tier=tier)
    if status == 504 and code == DeadlineExceededError.code:
        return TargetTooSlowError(message, hint="allow more time, or ask for fewer tokens", tier=tier)
    return TierUnreachableError(message, retryable=status >= 500, tier=tier)


def _retry_after_s(response: httpx.Response) -> float | None:
    """When the service says that it is worth asking again: seconds, or None where it says nothing usable."""
    for name, per_s in (("retry-after-ms", 1000), ("retry-after", 1)):
        try:
            seconds = float(response.headers.get(name, "")) / per_s
        except ValueError:
            continue
        if math.isfinite(seconds):
            return max(0.0, seconds)
    try:
        at = parsedate_to_datetime(response.headers.get("retry-after", ""))
        return max(0.0, at.timestamp() - time.time())
    except (ValueError, OverflowError):
        return None


def _error_message(body: object) -> str:
    error = body.get("error") if isinstance(body, dict) else None
    if isinstance(error, dict):
        return str(error.get("message", error))[:500]
    return str(error)[:500] if error else "no reason given"


def _parse_chunk(endpoint: Endpoint, data: str) -> dict[str, Any]:
    try:
        chunk = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise _nonsense(endpoint, f"a stream chunk is not JSON: {data[:80]!r}") from error
    if not isinstance(chunk, dict):
        raise _nonsense(endpoint, f"a stream chunk is no object: {data[:80]!r}")
    if (problem := shape_problem(chunk)) is not None:
        raise _nonsense(endpoint, f"in a stream chunk, {problem}")
    return chunk


def _nonsense(endpoint: Endpoint, what: str) -> TierResponseError:
    return TierResponseError(
        f"{endpoint.name} ({endpoint.base_url}): {what}",
        hint="check that the URL is an OpenAI-compatible API",
        tier=endpoint.tier,
    )


def _unreachable(endpoint: Endpoint, error: httpx.HTTPError) -> TierUnreachableError:
    if isinstance(error, httpx.ConnectTimeout):
        what = "no connection in time"
    elif isinstance(error, httpx.ConnectError):
        what = "connection refused"
    elif isinstance(error, httpx.TimeoutException):
        what = "no answer in time"
    else:
        what = f"connection lost ({type(error).__name__})"
    return TierUnreachableError(
        f"{endpoint.name} at {endpoint.base_url}: {what}", retryable=True, tier=endpoint.tier
    )
