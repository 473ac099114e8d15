"""The most tokens that a call can take: what is reserved for it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mecroute_registry.facts import Task

#: Reserved for an answer to which the request sets no limit.
UNLIMITED_OUTPUT_TOKENS = 4096
#: Assumed for an image or a recording, whose tokens no text tells.
_PART_TOKENS = 4096
#: Role and turn markers of a message, those around a gap to fill in, punctuation of a tool's definition.
_MARKERS = 16
_READ = ("messages", "prompt", "suffix", "input", "tools", "functions", "response_format")
#: Bytes to a token of ordinary text, on the safe side; for calls whose usage nobody reported.
_BYTES_PER_TOKEN = 3


def worst_case_tokens(task: Task, body: Mapping[str, Any], context_length: int) -> tuple[int, int]:
    """Most prompt and output tokens of a call.

    A token of a byte-level vocabulary stands for at least one byte, so the bytes of a prompt bound its tokens
    from above (by about four times in English; the difference is given back when the call is settled).
    """
    prompt = sum(_bytes(body.get(name)) for name in _READ)
    if task in ("embed", "classify"):
        return prompt, 0
    if body.get("suffix"):
        prompt += _MARKERS
    limit = body.get("max_completion_tokens") or body.get("max_tokens")
    output = int(limit) if isinstance(limit, int) else min(UNLIMITED_OUTPUT_TOKENS, context_length)
    answers = max(1, _count(body.get("n")), _count(body.get("best_of")))
    return prompt, output * answers


def likely_prompt_tokens(worst: int) -> int:
    """Prompt tokens of a call whose usage was not reported, from their upper bound."""
    return -(-worst // _BYTES_PER_TOKEN)


def _count(value: object) -> int:
    return value if isinstance(value, int) else 1


def _bytes(value: Any) -> int:
    if isinstance(value, str):
        if value.startswith("data:"):
            return _PART_TOKENS
        return len(value) if value.isascii() else len(value.encode("utf-8", "surrogatepass"))
    if isinstance(value, Mapping):
        if "input_audio" in value:
            return _PART_TOKENS
        if "image_url" in value:
            return _PART_TOKENS
        return _MARKERS + sum(_bytes(name) + _bytes(item) for name, item in value.items())
    if isinstance(value, list | tuple):
        return sum(_bytes(item) for item in value)
    return 8 if value is not None else 0
