"""A finished request as a few hundred bytes: what the database keeps of it, and back.

This runs in the process that routes and holds the interpreter while it does, so the encoder in C walks the
objects by itself and asks for the fields of a dataclass only; `dataclasses.asdict` copies everything first.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from operator import attrgetter
from typing import Any

from mecroute.decision import Decision
from mecroute.outcome import Provenance
from mecroute.requirements import Requirements
from mecroute.target import Target

#: Of a decision over very many targets, the best ones and the first refusals are kept, with the count of all.
_MOST_TARGETS = 32
_READERS: dict[type, tuple[tuple[str, ...], Callable[[Any], tuple[Any, ...]]]] = {}


def encode(provenance: Provenance, **more: Any) -> bytes:
    """The provenance and whatever else is known, compressed. Non-finite numbers become None.

    Args:
        more: JSON types or dataclasses, kept under their names beside the provenance's own.
    """
    data = _fields(provenance)
    data.update(more)
    try:
        text = _JSON.encode(data)
    except ValueError:  # a number that is none: rare, and then worth a slower walk
        text = _JSON.encode(_finite(data))
    return _compressed(text)


def pack(data: Mapping[str, Any]) -> bytes:
    """JSON types as compressed bytes. Non-finite numbers become None."""
    return _compressed(_JSON.encode(_finite(data)))


def unpack(blob: bytes) -> dict[str, Any]:
    """The reverse of `pack`.

    Raises:
        ValueError: the bytes are damaged.
    """
    try:
        data = json.loads(zlib.decompress(blob))
    except zlib.error as error:
        raise ValueError(str(error)) from error
    if not isinstance(data, dict):
        raise ValueError("not an object")
    return data


def _compressed(text: str) -> bytes:
    # Half of a surrogate pair, as an error message may hold, becomes the escape that JSON has for it.
    return zlib.compress(text.encode("utf-8", "backslashreplace"), 1)


def _fields(item: Any) -> dict[str, Any]:
    """The fields of a dataclass, not followed any deeper; what else the encoder does not know, as text."""
    kind = type(item)
    found = _READERS.get(kind)
    if found is None:
        if isinstance(item, frozenset | set):
            return sorted(item)  # type: ignore[return-value]  # a list is as good to the encoder
        if isinstance(item, Mapping):
            return dict(item)
        if not is_dataclass(item):
            return str(item)  # type: ignore[return-value]
        names = tuple(field.name for field in fields(item))
        found = _READERS[kind] = names, attrgetter(*names)
    data = dict(zip(found[0], found[1](item), strict=True))
    if isinstance(item, Target):
        data["id"] = item.id
    elif kind is Requirements:
        data = {name: value for name, value in data.items() if value is not None}
    elif kind is Decision:
        for name, count in (("candidates", "candidate_count"), ("rejected", "rejected_count")):
            data[count] = len(data[name])
            data[name] = data[name][:_MOST_TARGETS]
    return data


def _finite(value: Any) -> Any:
    """JSON types all the way down, with None for numbers that are none."""
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, tuple | list):
        return [_finite(item) for item in value]
    if isinstance(value, Mapping):
        return {str(name): _finite(item) for name, item in value.items()}
    return _finite(_fields(value))


_JSON = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False, allow_nan=False, default=_fields)
