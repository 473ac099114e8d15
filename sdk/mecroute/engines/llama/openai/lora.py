"""The `lora` field of a request: which adapters, and how much of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mecroute.errors import InvalidRequestError
from mecroute.numbers import finite

_MAX_ADAPTERS = 8
_MAX_SCALE = 100.0


def parse_lora(value: Any, names: Sequence[str]) -> tuple[tuple[str, float], ...]:
    """Adapters and their scales, sorted by name; those of scale 0 are left out.

    Args:
        value: `[{"name": "…", "scale": 1.0}]`, or with `"id"`, the adapter's place, as llama-server has it;
            the scale is 1 where it is absent. None is none.
        names: the adapters there are, by id.

    Raises:
        InvalidRequestError: it is something else, or names an adapter twice or one that is not there.
    """
    if value is None:
        return ()
    if not isinstance(value, list) or len(value) > _MAX_ADAPTERS:
        raise InvalidRequestError(
            f"lora is not a list of at most {_MAX_ADAPTERS} adapters", hint='[{"name": "…", "scale": 1.0}]'
        )
    found: dict[str, float] = {}
    for at, one in enumerate(value):
        if not isinstance(one, Mapping) or not one.keys() <= {"name", "id", "scale"}:
            raise InvalidRequestError(f"lora[{at}] is not an object of 'name' or 'id', and 'scale'")
        name = _name(one, at, names)
        scale = finite(one.get("scale", 1.0))
        if scale is None:
            raise InvalidRequestError(f"lora[{at}].scale is not a number")
        if abs(scale) > _MAX_SCALE:
            raise InvalidRequestError(f"lora[{at}].scale is {scale}", hint=f"it must be within {_MAX_SCALE}")
        if name in found:
            raise InvalidRequestError(f"lora names the adapter '{name}' twice", hint="add up their scales")
        found[name] = scale
    return tuple(sorted((name, scale) for name, scale in found.items() if scale))


def _name(one: Mapping[str, Any], at: int, names: Sequence[str]) -> str:
    name, place = one.get("name"), one.get("id")
    if (name is None) == (place is None):
        raise InvalidRequestError(f"lora[{at}] needs either 'name' or 'id'")
    known = f"adapters: {', '.join(names)}" if names else "this server has none"
    if place is not None:
        if isinstance(place, bool) or not isinstance(place, int) or not 0 <= place < len(names):
            raise InvalidRequestError(f"lora[{at}].id is {str(place)[:80]!r}", hint=known)
        return names[place]
    if not isinstance(name, str) or name not in names:
        raise InvalidRequestError(f"there is no adapter {str(name)[:80]!r}", hint=known)
    return name
