"""Which API a request is meant for, and how that API tells of an error.

Three APIs share this server. Where they disagree about the same thing (the body of an error, the header a
key comes in, what `GET /v1/models` answers) it is settled here and in `auth.sent_key`, for every route.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

Dialect = Literal["openai", "anthropic", "ollama"]

#: Anthropic's name for each HTTP status; see `_anthropic_type` for the rest.
_ANTHROPIC_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}


def dialect_of(path: str, headers: Mapping[str, str]) -> Dialect:
    """The API that a request speaks.

    Args:
        path: the request's path.
        headers: its headers, with lower-case names. Anthropic's clients always send `anthropic-version`, and
            use paths that OpenAI's use too.
    """
    if path.startswith("/api/"):
        return "ollama"
    if path == "/v1/messages" or path.startswith("/v1/messages/"):
        return "anthropic"
    if path.startswith("/v1/") and "anthropic-version" in headers:
        return "anthropic"
    return "openai"


def error_in(dialect: Dialect, body: dict[str, Any], status: int) -> dict[str, Any]:
    """An error's body in an API's own shape.

    Args:
        dialect: the API.
        body: the error in OpenAI's shape, as `errors.error_body` makes it.
        status: the HTTP status it is answered with, or would be.
    """
    if dialect == "openai":
        return body
    error = body["error"]
    # The other two have no place for a hint but the message.
    message = f"{error['message']} ({error['hint']})" if error["hint"] else error["message"]
    if dialect == "ollama":
        return {"error": message}
    return {"type": "error", "error": {"type": _anthropic_type(status), "message": message}}


def _anthropic_type(status: int) -> str:
    return _ANTHROPIC_TYPES.get(status, "invalid_request_error" if status < 500 else "api_error")
