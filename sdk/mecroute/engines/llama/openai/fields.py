"""Reads the fields of a request: OpenAI's, and others that are translated into it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from mecroute.errors import InvalidRequestError
from mecroute.numbers import finite

#: Of OpenAI's fields that are not understood, the values that say nothing more than a field's absence.
_EMPTY: dict[str, tuple[Any, ...]] = {
    "functions": ([],),
    "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
}


def known_fields(
    body: Mapping[str, Any],
    names: Collection[str],
    empty: Mapping[str, tuple[Any, ...]] = _EMPTY,
    where: str = "",
) -> dict[str, Any]:
    """The fields that are set: null counts as absent.

    Args:
        body: a JSON object.
        names: those that are understood.
        empty: for other names, the values that say nothing more than the field's absence.
        where: what stands before a name in an error, such as `options.`.

    Raises:
        InvalidRequestError: names a field that would change the answer if it were obeyed.
    """
    fields = {name: value for name, value in body.items() if value is not None}
    for name in fields.keys() - set(names):
        # By type too: 0 is no False, and a list compares with anything.
        if not any(
            type(value) is type(fields[name]) and value == fields[name] for value in empty.get(name, ())
        ):
            raise unsupported(f"'{where}{name}'")
    return {name: value for name, value in fields.items() if name in names}


def unsupported(what: str) -> InvalidRequestError:
    """The error for what this server understands and does not do."""
    return InvalidRequestError(f"{what} is not supported by this server", hint="leave it out")


def flag(fields: Mapping[str, Any], name: str) -> bool:
    """True or false; false where it is absent.

    Raises:
        InvalidRequestError: it is something else.
    """
    value = fields.get(name, False)
    if not isinstance(value, bool):
        raise InvalidRequestError(f"{name} is not true or false")
    return value


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


def integer(
    fields: Mapping[str, Any], name: str, low: int | None, high: int | None = None, where: str = ""
) -> int | None:
    """A whole number within bounds, or None where the field is absent.

    Args:
        fields: of a request.
        name: of the field.
        low, high: the bounds; None: there is none.
        where: what stands before the name in an error, such as `options.`.

    Raises:
        InvalidRequestError: it is something else.
    """
    value = fields.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int):
        raise InvalidRequestError(f"{where}{name} is not a whole number")
    if (low is not None and value < low) or (high is not None and value > high):
        bounds = f"at least {low}" if high is None else f"between {low} and {high}"
        raise InvalidRequestError(f"{where}{name} is {value}", hint=f"it must be {bounds}")
    return value
