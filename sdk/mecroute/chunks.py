"""What a stream's chunk holds: its text, tool calls, why it ended, and what was counted."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mecroute.continuation import OverlapTrimmer


def whole_usage(usage: Mapping[str, Any], tokens_before: int) -> dict[str, Any]:
    """The usage of the whole answer, from that of its last segment, whose prompt held the ones before."""
    prompt = max(0, int(usage.get("prompt_tokens") or 0) - tokens_before)
    output = int(usage["completion_tokens"]) + tokens_before
    return {**usage, "prompt_tokens": prompt, "completion_tokens": output, "total_tokens": prompt + output}


def computed_tokens(usage: Mapping[str, Any]) -> int | None:
    """Tokens of the prompt that a target computed, less those it held already; None where it tells none."""
    details = usage.get("prompt_tokens_details")
    prompt, held = (
        usage.get("prompt_tokens"),
        details.get("cached_tokens") if isinstance(details, Mapping) else 0,
    )
    if not isinstance(prompt, int) or not isinstance(held or 0, int):
        return None
    computed = prompt - (held or 0)
    return computed if computed > 0 else None


def has_calls(chunk: Mapping[str, Any]) -> bool:
    """Whether a chunk holds a part of a tool call."""
    return any(
        (choice.get("delta") or {}).get("tool_calls")
        for choice in chunk.get("choices") or ()
        if isinstance(choice, Mapping)
    )


def finish_reason(chunk: Mapping[str, Any]) -> str | None:
    """Why the answer ended, in the chunk that says so."""
    choices = chunk.get("choices") or ()
    return choices[0].get("finish_reason") if choices else None


def take_text(chunk: dict[str, Any], trimmer: OverlapTrimmer | None) -> str:
    """The text of a chunk; with a trimmer, the chunk is changed to hold only what may be delivered."""
    choices = chunk.get("choices") or ()
    if not choices or not isinstance(choices[0], dict):
        return ""
    choice = choices[0]
    holder = choice.get("delta") if "delta" in choice else choice
    name = "content" if "delta" in choice else "text"
    if not isinstance(holder, dict):
        return ""
    text = holder.get(name) or ""
    if trimmer is not None:
        text = trimmer.feed(text)
        if choice.get("finish_reason"):
            text += trimmer.flush()
        holder[name] = text
    return str(text)
