"""Requests built from prepared parts are those that httpx itself would build."""

from __future__ import annotations

import asyncio
import math
from typing import Any

import httpx
import pytest

from mecroute.errors import InvalidRequestError
from mecroute.tiers.posting import Posting

URL = "http://127.0.0.1:8100/v1/chat/completions"
TIMEOUT = httpx.Timeout(30, connect=2)


def build(body: Any, headers: dict[str, str]) -> tuple[httpx.Request, httpx.Request]:
    async def both() -> tuple[httpx.Request, httpx.Request]:
        async with httpx.AsyncClient() as http:
            posting = Posting(http)
            ours = [posting(URL, body, headers, TIMEOUT) for _ in range(2)][1]
            return ours, http.build_request("POST", URL, json=body, headers=headers, timeout=TIMEOUT)

    return asyncio.run(both())


def test_headers_body_and_time_limits_are_httpxs_own() -> None:
    body = {"model": "m", "messages": [{"role": "user", "content": "Größe — 大きさ"}], "stream": False}
    ours, theirs = build(body, {"x-request-id": "req-1", "authorization": "Bearer key"})
    assert ours.content == theirs.content
    assert dict(ours.headers) == dict(theirs.headers)
    assert ours.url == theirs.url
    assert ours.extensions == theirs.extensions


@pytest.mark.parametrize("value", [math.nan, object(), {1, 2}, "\ud800", b"bytes"])
def test_what_is_no_json_is_the_callers_mistake(value: Any) -> None:
    with pytest.raises(InvalidRequestError, match="cannot be written as JSON"):
        build({"seed": value}, {})
