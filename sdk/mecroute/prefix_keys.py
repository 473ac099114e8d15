"""Names for the beginnings of a conversation, so that a client can tell which node has computed one already.

A client knows messages, a node knows tokens; both can hash the messages. What crosses the wire is the hash.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

#: A longer conversation is named by its first so many messages; what comes after is cheap to compute.
MAX_PREFIXES = 64


def prefix_keys(messages: Sequence[Mapping[str, Any]], *, tools: object = None) -> list[str]:
    """One key per beginning of a conversation: its first message, its first two, and so on.

    Args:
        messages: chat messages, each with `role` and `content`.
        tools: the request's tools, which the chat template puts before everything else.

    Returns:
        16 hexadecimal digits each, at most `MAX_PREFIXES`; two conversations share the first n keys when
        they share the first n messages and the tools.
    """
    digest = hashlib.sha256(_canonical(tools) if tools else b"")
    keys = []
    for message in messages[:MAX_PREFIXES]:
        digest.update(_canonical(message))
        keys.append(digest.hexdigest()[:16])
    return keys


def _canonical(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, ensure_ascii=True, separators=(",", ":"), default=str).encode()
