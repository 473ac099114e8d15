"""MEC nodes and cloud services: OpenAI-compatible APIs over HTTP."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass
from typing import Any

import httpx

from mecroute.errors import (
    AuthenticationError,
    ContextLengthError,
    InvalidRequestError,
    MecrouteError,
    ModelNotFoundError,
    NodeNotReadyError,
    OverloadedError,
    TierResponseError,
    TierUnreachableError,
)
from mecroute.target import Target
from mecroute.tiers.base import Call
from mecroute.tiers.posting import Posting
from mecroute_registry.facts import Task, Tier

_PATHS: Mapping[Task, str] = {
    "chat": "/chat/completions",
    "completion": "/completions",
    "embed": "/embeddings",
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
    """

    tier: Tier
    name: str
    base_url: str
    api_key: str | None = None
    continues_prefix: bool = False


class HttpTier:
    """Calls endpoints by the target's node name. For one event loop; connections are kept and shared."""

    def __init__(self, endpoints: Mapping[str, Endpoint]) -> None:
        self._endpoints = dict(endpoints)
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=64, keepalive_expiry=30)
        self._http = httpx.AsyncClient(limits=limits, follow_redirects=False, trust_env=True)
        self._post = Posting(self._http)

    def continues_prefix(self, target: Target) -> bool:
        """Whether this endpoint continues a final assistant message."""
        return self._endpoint(target).continues_prefix

    async def complete(self, call: Call) -> dict[str, Any]:
        """One plain call; see `Tier`."""
        endpoint = self._endpoint(call.target)
        response = await self._send(endpoint, call, stream=False)
        try:
            body = response.json()
        except ValueError as error:
            raise _nonsense(endpoint, "the answer is not JSON") from error
        if not isinstance(body, dict):
            raise _nonsense(endpoint, "the answer is not a JSON object")
        return body

    async def stream(self, call: Call) -> AsyncGenerator[dict[str, Any]]:
        """One call answered by server-sent events; see `Tier`."""
        endpoint = self._endpoint(call.target)
        response = await self._send(endpoint, call, stream=True)
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
                raise _unreachable(endpoint, error) from error
        finally:
            await response.aclose()
        if not finished:
            raise TierUnreachableError(
                f"{endpoint.name} closed the stream before the answer was complete",
                retryable=True,
                tier=endpoint.tier,
            )

    async def aclose(self) -> None:
        """Close every connection."""
        await self._http.aclose()

    def _endpoint(self, target: Target) -> Endpoint:
        assert target.node is not None, "a remote target names its node"
        return self._endpoints[target.node]

    async def _send(self, endpoint: Endpoint, call: Call, *, stream: bool) -> httpx.Response:
        body = {**call.body, "model": call.target.model, "stream": stream}
        if call.task == "embed":
            del body["stream"]
        elif stream:
            # Token counts are needed for the outcome, whether or not the caller wants them.
            body["stream_options"] = {**(call.body.get("stream_options") or {}), "include_usage": True}
        headers = {"x-request-id": call.request_id}
        if endpoint.api_key:
            headers["authorization"] = f"Bearer {endpoint.api_key}"
        silence = _SILENCE_S[endpoint.tier]
        request = self._post(
            endpoint.base_url.rstrip("/") + _PATHS[call.task],
            body,
            headers,
            httpx.Timeout(silence, connect=_CONNECT_S[endpoint.tier]),
        )
        response = await self._open(endpoint, request, stream=stream)
        if response.status_code >= 300:
            raise await _refusal(endpoint, response, call.target.model)
        return response

    async def _open(self, endpoint: Endpoint, request: httpx.Request, *, stream: bool) -> httpx.Response:
        try:
            return await self._http.send(request, stream=stream)
        except httpx.RemoteProtocolError:
            # A kept connection that the server had closed in the meantime: nothing was answered, so
            # the call is made once more on a new one.
            try:
                return await self._http.send(request, stream=stream)
            except httpx.HTTPError as error:
                raise _unreachable(endpoint, error) from error
        except httpx.HTTPError as error:
            raise _unreachable(endpoint, error) from error


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
    except ValueError:
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
        return OverloadedError(message, retry_after_s=_retry_after(response), tier=tier)
    if status in (400, 413, 422):
        if code == ContextLengthError.code:
            return ContextLengthError(message, tier=tier, model=model)
        return InvalidRequestError(message, tier=tier, model=model)
    if status == 503:
        return NodeNotReadyError(message, retryable=True, tier=tier)
    return TierUnreachableError(message, retryable=status >= 500, tier=tier)


def _retry_after(response: httpx.Response) -> float:
    try:
        return max(0.0, float(response.headers.get("retry-after", "")))
    except ValueError:
        return _DEFAULT_RETRY_AFTER_S


def _error_message(body: object) -> str:
    error = body.get("error") if isinstance(body, dict) else None
    if isinstance(error, dict):
        return str(error.get("message", error))[:500]
    return str(error)[:500] if error else "no reason given"


def _parse_chunk(endpoint: Endpoint, data: str) -> dict[str, Any]:
    try:
        chunk = json.loads(data)
    except ValueError as error:
        raise _nonsense(endpoint, f"a stream chunk is not JSON: {data[:80]!r}") from error
    if not isinstance(chunk, dict):
        raise _nonsense(endpoint, f"a stream chunk is no object: {data[:80]!r}")
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
