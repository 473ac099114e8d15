"""Holds what a remote answers to the shape in which it is read, before anything else sees it.

A target whose answer has another shape has not answered: the next one is asked. Token counts that cannot be
are left out of an answer that is otherwise sound.
"""

from __future__ import annotations

from typing import Any

#: More tokens than any answer has; what is beyond is a mistake or a lie.
_MOST_TOKENS = 10**12


def shape_problem(body: dict[str, Any]) -> str | None:
    """What is wrong with a whole answer or a chunk of one; None where nothing is.

    `usage` is put right in place: counts that are no whole numbers of at least 0 are removed.
    """
    _clean_usage(body)
    choices = body.get("choices")
    if choices is None:
        return None
    if not isinstance(choices, list):
        return "'choices' is no list"
    for choice in choices:
        if not isinstance(choice, dict):
            return "a choice is no object"
        index, finish = choice.get("index", 0), choice.get("finish_reason")
        if isinstance(index, bool) or not isinstance(index, int):
            return "'index' of a choice is no whole number"
        if finish is not None and not isinstance(finish, str):
            return "'finish_reason' is no text"
        for name in ("message", "delta"):
            problem = _said_problem(name, choice.get(name))
            if problem is not None:
                return problem
        if not isinstance(choice.get("text", ""), str | None):
            return "'text' of a choice is no text"
    return None


def _said_problem(name: str, said: object) -> str | None:
    if said is None:
        return None
    if not isinstance(said, dict):
        return f"'{name}' is no object"
    if not isinstance(said.get("content"), str | None):
        return f"'content' of the {name} is no text"
    calls = said.get("tool_calls")
    if calls is not None and not (isinstance(calls, list) and all(isinstance(c, dict) for c in calls)):
        return f"'tool_calls' of the {name} is no list of objects"
    return None


def _clean_usage(body: dict[str, Any]) -> None:
    usage = body.get("usage")
    if usage is None:
        return
    if not isinstance(usage, dict):
        del body["usage"]
        return
    for name in ("prompt_tokens", "completion_tokens", "total_tokens"):
        count = usage.get(name, 0)
        if isinstance(count, bool) or not isinstance(count, int) or not 0 <= count <= _MOST_TOKENS:
            del usage[name]
