"""What an answer needs before it can be shaped: all of it, and what it took."""

from __future__ import annotations

from mecroute.engines.llama.engine import Generation, GenerationEvent, Usage
from mecroute.errors import TierUnreachableError


async def read_whole(generation: Generation) -> tuple[str, GenerationEvent, Usage]:
    """Wait for a generation's end; cancels it when the waiting is.

    Returns:
        Its text, its last event and what it took.

    Raises:
        TierUnreachableError: the engine was closed, or the generation cancelled, before the end.
    """
    with generation:
        events = [event async for event in generation]
    if not events or events[-1].usage is None:
        raise TierUnreachableError(
            "the generation was cancelled before its end", hint="send the request again", retryable=True
        )
    return "".join([event.text for event in events]), events[-1], events[-1].usage
