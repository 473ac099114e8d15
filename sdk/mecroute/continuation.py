"""Continues an answer on another target from exactly what was delivered."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mecroute.outcome import Seam

_INSTRUCTION = (
    "Your answer above was cut off. Continue it from exactly where it stops. "
    "Do not repeat any of it and add no introduction."
)
_OVERLAP_CHARS = 80


def continue_body(
    body: Mapping[str, Any], delivered: str, delivered_tokens: int, *, continues_prefix: bool
) -> tuple[dict[str, Any], Seam]:
    """The request body that asks for the rest of an answer.

    Args:
        delivered: the text the caller already has.
        delivered_tokens: how many tokens it took; they count against `max_tokens`.
        continues_prefix: whether the next target continues a final assistant message; where it does
            not, it is told to in words.

    Returns:
        The body and the kind of seam that it makes.
    """
    rest = dict(body)
    for name in ("max_tokens", "max_completion_tokens"):
        if rest.get(name):
            rest[name] = max(1, int(rest[name]) - delivered_tokens)
    if "prompt" in rest:
        rest["prompt"] = str(rest["prompt"]) + delivered
        return rest, "exact"
    messages = [dict(message) for message in rest["messages"]]
    if messages[-1].get("role") == "assistant" and isinstance(messages[-1].get("content"), str):
        # The caller's own prefix, which was being continued already.
        messages[-1]["content"] += delivered
    else:
        messages.append({"role": "assistant", "content": delivered})
    if not continues_prefix:
        messages.append({"role": "user", "content": _INSTRUCTION})
    rest["messages"] = messages
    return rest, "exact" if continues_prefix else "instructed"


class OverlapTrimmer:
    """Cuts what a merely instructed model repeats of the delivered text.

    Holds text back until it is long enough to tell, then drops the longest start of it with which the
    delivered text ends.
    """

    def __init__(self, delivered: str) -> None:
        self._tail = delivered[-_OVERLAP_CHARS:]
        self._held: str | None = ""

    def feed(self, text: str) -> str:
        """Take the next piece; return what may be delivered now."""
        if self._held is None:
            return text
        self._held += text
        return self.flush() if len(self._held) >= len(self._tail) else ""

    def flush(self) -> str:
        """What is still held back, without the overlap."""
        if self._held is None:
            return ""
        held, self._held = self._held, None
        for size in range(min(len(held), len(self._tail)), 0, -1):
            if self._tail.endswith(held[:size]):
                # One or two equal characters are chance (a space, a letter), not repetition.
                return held[size:] if size >= 3 else held
        return held
