"""How the pieces of a streamed answer travel, in each API's way."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from mecroute.errors import MecrouteError
from mecroute_server.dialects import Dialect, error_in
from mecroute_server.errors import error_body


@dataclass(frozen=True, slots=True)
class Framing:
    """One way to send a stream of JSON objects.

    Attributes:
        media_type: of the whole answer.
        encode: one object's bytes.
        failure: the object that tells of an error in mid-stream, given how many went before it; it is the
            last one.
        heartbeat: what may be sent between two objects and changes nothing.
        end: what follows the last object of a complete answer.
    """

    media_type: str
    encode: Callable[[dict[str, Any]], bytes]
    failure: Callable[[MecrouteError, int], dict[str, Any]]
    heartbeat: bytes
    end: bytes = b""


#: `json.dumps` with such arguments makes an encoder at every call.
_encode = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False).encode


def encode_json(value: dict[str, Any]) -> bytes:
    """Compact JSON in UTF-8."""
    return _encode(value).encode()


def encode_event(value: dict[str, Any]) -> bytes:
    """A server-sent event without a name."""
    return b"data: " + encode_json(value) + b"\n\n"


def encode_named_event(value: dict[str, Any]) -> bytes:
    """A server-sent event with the name of its `type`."""
    return f"event: {value['type']}\n".encode() + encode_event(value)


#: A comment line is no event: every SSE client passes over it.
COMMENT = b": waiting\n\n"


def failure_in(dialect: Dialect) -> Callable[[MecrouteError, int], dict[str, Any]]:
    """The `failure` of an API whose streams tell of errors in the same shape as its answers do."""
    return lambda error, _number: error_in(dialect, error_body(error), error.status)


OPENAI_EVENTS = Framing(
    "text/event-stream",
    encode_event,
    failure=failure_in("openai"),
    heartbeat=COMMENT,
    end=b"data: [DONE]\n\n",
)
