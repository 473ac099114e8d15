"""Reads the fields of an OpenAI request."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mecroute.errors import InvalidRequestError
from mecroute.numbers import finite

#: Values with which a field this server has no support for says nothing more than its absence.
_EMPTY: dict[str, tuple[Any, ...]] = {
    "functions": ([],),
    "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
}


def known(body: Mapping[str, Any], names: frozenset[str]) -> dict[str, Any]:
    """The fields that are set; refuses those that would change the answer if they were obeyed."""
    fields = {name: value for name, value in body.items() if value is not None}
    for name in fields.keys() - names:
        if fields[name] not in _EMPTY.get(name, ()):
            raise unsupported(f"'{name}'")
    return fields


def unsupported(what: str) -> InvalidRequestError:
    """The error for what this server understands and does not do."""
    return InvalidRequestError(f"{what} is not supported yet by this server", hint="leave it out")


def number(fields: Mapping[str, Any], name: str, low: float, high: float) -> float | None:
    """A number within bounds, or None where the field is absent.

    Raises:
        InvalidRequestError: it is something else.
    """
    if fields.get(name) is None:
        return None
    value = finite(fields[name])
    if value is None:
        raise InvalidRequestError(f"{name} is not a number")
    if not low <= value <= high:
        raise InvalidRequestError(f"{name} is {value:g}", hint=f"it must be between {low:g} and {high:g}")
    return value


def integer(fields: Mapping[str, Any], name: str, low: int | None, high: int | None) -> int | None:
    """A whole number within bounds, or None where the field is absent.

    Raises:
        InvalidRequestError: it is something else.
    """
    value = fields.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int):
        raise InvalidRequestError(f"{name} is not a whole number")
    if (low is not None and value < low) or (high is not None and value > high):
        bounds = f"at least {low}" if high is None else f"between {low} and {high}"
        raise InvalidRequestError(f"{name} is {value}", hint=f"it must be {bounds}")
    return value
