"""Reads a request's JSON body, within bounds."""

from __future__ import annotations

import json
from typing import Any, NoReturn

from fastapi import Request

from mecroute.errors import InvalidRequestError
from mecroute_server.errors import BodyTooLargeError


async def read_json_object(request: Request, max_bytes: int) -> dict[str, Any]:
    """The request's body as a JSON object; see `read_body` and `parse_json_object`."""
    return parse_json_object(await read_body(request, max_bytes))


async def read_body(request: Request, max_bytes: int, setting: str = "max_body_bytes") -> bytes:
    """The request's body.

    Args:
        request: a request whose body has not been read.
        max_bytes: the largest body accepted; reading stops there.
        setting: names that bound in `[server]`.

    Raises:
        BodyTooLargeError: it is larger.
    """
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > max_bytes:
        raise too_large(max_bytes, setting)
    parts: list[bytes] = []
    size = 0
    async for part in request.stream():
        size += len(part)
        if size > max_bytes:
            raise too_large(max_bytes, setting)
        parts.append(part)
    return b"".join(parts)


def parse_json_object(body: bytes) -> dict[str, Any]:
    """A JSON object from its text.

    Raises:
        InvalidRequestError: it is not valid JSON, or not an object.
    """
    if not body:
        raise InvalidRequestError("the request has no body", hint="send a JSON object")
    try:
        value = json.loads(body, parse_constant=_no_constant)
    except RecursionError as error:
        raise InvalidRequestError("the request body is nested too deeply") from error
    except ValueError as error:  # also: not UTF-8, or a number with thousands of digits
        raise InvalidRequestError(
            f"the request body is not valid JSON: {error}", hint="check its quotes, commas and encoding"
        ) from error
    if not isinstance(value, dict):
        raise InvalidRequestError("the request body must be a JSON object")
    if b"\\u" in body:
        _refuse_lone_surrogates(value)
    return value


def _refuse_lone_surrogates(value: dict[str, Any]) -> None:
    """JSON may escape half a character (`\\ud800`); nothing that tokenizes or answers could encode it."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise InvalidRequestError("the request body has a lone surrogate, which is no character") from error


def too_large(max_bytes: int, setting: str = "max_body_bytes") -> BodyTooLargeError:
    """The error for a body of more than `max_bytes`, which `setting` of `[server]` bounds."""
    return BodyTooLargeError(
        f"the request body is larger than this server's {max_bytes:,} bytes",
        hint=f"send less, or raise [server] {setting}",
    )


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")
