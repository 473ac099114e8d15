"""What every tier does: answer a call, whole or as a stream, in OpenAI's shapes."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from mecroute.request import Payer
from mecroute.target import Target
from mecroute_registry.facts import Task


@dataclass(frozen=True, slots=True)
class Call:
    """One attempt at one target.

    `body` holds the OpenAI request fields except `model` and `stream`, which the tier sets. `deadline_ms` is
    what is left, from now, until nobody wants the answer; None without a deadline. `payer` says whose budgets
    it counts against.
    """

    task: Task
    target: Target
    body: Mapping[str, Any]
    request_id: str
    deadline_ms: float | None = None
    payer: Payer = field(default_factory=Payer)


class Tier(Protocol):
    """One tier. For one event loop.

    Raises (both calls):
        TierError: the target cannot be reached or answered with nonsense.
        OverloadedError: it refuses for lack of room.
        DeadlineExceededError: it says that it could not meet the deadline with nothing else to do.
        InvalidRequestError: the request is wrong for any target.
        ArtifactError: the model is missing or damaged there.
    """

    async def complete(self, call: Call) -> dict[str, Any]:
        """The whole answer, as OpenAI's response body."""
        ...

    def stream(self, call: Call) -> AsyncGenerator[dict[str, Any]]:
        """The answer as OpenAI's stream chunks; ends after the chunk with a `finish_reason`."""
        ...

    def continues_prefix(self, target: Target) -> bool:
        """Whether a final assistant message is continued, rather than answered anew."""
        ...

    async def aclose(self) -> None:
        """Release what the tier holds."""
        ...
