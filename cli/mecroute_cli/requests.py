"""What `route` and `chat` have in common: the prompt and the requirements, as typed."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from mecroute_cli.arguments import Floor

if TYPE_CHECKING:
    from mecroute import Requirements


def read_prompt(prompt: str) -> str:
    """The prompt; `-` reads it from stdin.

    Raises:
        InvalidRequestError: there is nothing in it.
    """
    from mecroute.errors import InvalidRequestError

    text = sys.stdin.read() if prompt == "-" else prompt
    if not text.strip():
        raise InvalidRequestError("the prompt is empty", hint='mecroute chat "What is an edge server?"')
    return text


def requirements(
    privacy: Floor,
    max_latency_ms: float | None,
    min_quality: float | None,
    max_cost_usd: float | None,
    residency: str | None,
    deadline_ms: float | None,
    policy: str | None = None,
    zone: str | None = None,
    cascade: bool | None = None,
) -> Requirements:
    """The requirements that the flags state."""
    from mecroute import Requirements

    return Requirements(
        privacy=privacy.value,
        max_latency_ms=max_latency_ms,
        min_quality=min_quality,
        max_cost_usd=max_cost_usd,
        residency=residency,
        deadline_ms=deadline_ms,
        policy=policy,
        zone=zone,
        cascade=cascade,
    )
