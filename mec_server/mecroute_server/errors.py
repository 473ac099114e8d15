"""How an error becomes an HTTP answer, in the shape of the API that was asked."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from fastapi.responses import JSONResponse

from mecroute.errors import (
    ArtifactError,
    AuthenticationError,
    DeadlineExceededError,
    InvalidRequestError,
    MecrouteError,
    ModelNotFoundError,
    NodeNotReadyError,
    OverloadedError,
    RequestRefusedError,
    TierError,
    UsageError,
)
from mecroute_server.budget import MemoryBudget
from mecroute_server.dialects import Dialect, error_in
from mecroute_server.footprint import Footprint
from mecroute_server.keys import ApiKey


class BodyTooLargeError(InvalidRequestError):
    """The request body is larger than the server accepts."""

    status = 413
    code = "request_too_large"


class RequestTimeoutError(InvalidRequestError):
    """The request's body did not arrive in time."""

    status = 408
    code = "request_timeout"


class TimeLimitError(DeadlineExceededError):
    """Answering took longer than the server allows any request."""

    code = "time_limit_exceeded"


class NotLocalError(RequestRefusedError):
    """A node without an API key was asked from another machine, or by a page of another origin."""

    status = 403
    code = "forbidden"


class RateLimitedError(OverloadedError):
    """The API key has used up what it may ask per minute."""

    code = "rate_limited"


class MissingScopeError(RequestRefusedError):
    """The API key is known and may not do this."""

    status = 403
    code = "missing_scope"

    def __init__(self, message: str, *, key: ApiKey, hint: str) -> None:
        super().__init__(message, hint=hint)
        self.key = key


class ModelBusyError(RequestRefusedError):
    """The model answers requests, so that what was asked of it cannot be done now."""

    status = 409
    code = "model_busy"


class InsufficientMemoryError(RequestRefusedError):
    """A model does not fit into the node's memory budget, whatever else leaves it."""

    status = 507
    code = "insufficient_memory"

    def __init__(self, ref: str, need: Footprint, budget: MemoryBudget, *, pinned: Sequence[str]) -> None:
        wants, has = [f"{need.ram_bytes:,} bytes of RAM"], [f"{budget.ram_bytes:,}"]
        if need.vram_bytes:
            wants.append(f"{need.vram_bytes:,} of GPU memory")
            has.append("no bound" if budget.vram_bytes is None else f"{budget.vram_bytes:,}")
        kept = f", part of which pinned models hold ({', '.join(pinned)})" if pinned else ""
        super().__init__(
            f"'{ref}' needs about {' and '.join(wants)}, and this node's budget is {' and '.join(has)}{kept}",
            hint=("unpin a model, " if pinned else "")
            + "serve it with a smaller [server] context or parallel, deploy a smaller quantization, or raise "
            "[server] memory_budget_bytes",
        )


#: First match wins, so a class stands before its parents. The HTTP status and the code are the class's own.
_TYPES: tuple[tuple[type[MecrouteError], str], ...] = (
    (AuthenticationError, "authentication_error"),
    (ModelNotFoundError, "not_found_error"),
    (UsageError, "invalid_request_error"),
    (OverloadedError, "rate_limit_error"),
    (MissingScopeError, "permission_error"),
    (NodeNotReadyError, "service_unavailable_error"),
    (TierError, "upstream_error"),
    (ArtifactError, "model_error"),
    (RequestRefusedError, "request_refused_error"),
)


def error_body(error: MecrouteError) -> dict[str, Any]:
    """The OpenAI error object for an error, with mecroute's `hint`."""
    kind = next((kind for cls, kind in _TYPES if isinstance(error, cls)), "server_error")
    return {
        "error": {
            "message": error.message,
            "type": kind,
            "param": getattr(error, "param", None),
            "code": error.code,
            "hint": error.hint,
        }
    }


def error_response(error: MecrouteError, dialect: Dialect = "openai") -> JSONResponse:
    """The whole HTTP answer for an error: status, headers and body."""
    headers = {}
    if isinstance(error, AuthenticationError):
        headers["www-authenticate"] = "Bearer"
    if isinstance(error, RequestTimeoutError):
        headers["connection"] = "close"  # what still comes of the body is not the next request
    retry_after_s = getattr(error, "retry_after_s", None)
    if retry_after_s is None and isinstance(error, NodeNotReadyError) and error.retryable:
        retry_after_s = 1.0
    if retry_after_s is not None:
        headers["retry-after"] = str(max(1, math.ceil(retry_after_s)))
        # Not rounded up to a second: OpenAI's clients prefer it where both are given.
        headers["retry-after-ms"] = str(max(1, math.ceil(retry_after_s * 1000)))
    body = error_in(dialect, error_body(error), error.status)
    return JSONResponse(body, status_code=error.status, headers=headers)


def http_error_response(
    status: int, detail: str, headers: dict[str, str] | None = None, dialect: Dialect = "openai"
) -> JSONResponse:
    """The same shape for what the router itself refuses: an unknown path, a method that is not allowed."""
    code = {404: "not_found", 405: "method_not_allowed"}.get(status, "http_error")
    kind = "invalid_request_error" if status < 500 else "server_error"
    body = {"error": {"message": detail, "type": kind, "param": None, "code": code, "hint": None}}
    return JSONResponse(error_in(dialect, body, status), status_code=status, headers=headers)
