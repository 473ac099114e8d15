"""A finished request as a few hundred bytes: what the database keeps of it, and back.

`dataclasses.asdict` copies deeply, which took ten times as long; this runs in the process that routes.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from mecroute.outcome import Provenance

#: Of a decision over very many targets, the best ones and the first refusals are kept, with the count of all.
_MOST_TARGETS = 32
_FIELDS: dict[type, tuple[str, ...]] = {}


def encode(provenance: Provenance, **more: Any) -> bytes:
    """The provenance and whatever else is known, compressed. Non-finite numbers become None.

    Args:
        more: JSON types or dataclasses, kept under their names beside the provenance's own.
    """
    decision = provenance.decision
    data = {name: plain(value) for name, value in more.items()}
    data |= {
        "request_id": provenance.request_id,
        "tier": provenance.tier,
        "node": provenance.node,
        "model": provenance.model,
        "cache": provenance.cache,
        "outcome": plain(provenance.outcome),
        "segments": plain(provenance.segments),
        "decision": {
            **{name: plain(getattr(decision, name)) for name in _names(type(decision)) if name not in _LISTS},
            "requirements": plain(decision.requirements.to_dict()),
            "candidates": [_of_target(c) for c in decision.candidates[:_MOST_TARGETS]],
            "rejected": [_of_target(r) for r in decision.rejected[:_MOST_TARGETS]],
            "candidate_count": len(decision.candidates),
            "rejected_count": len(decision.rejected),
        },
    }
    return pack(data)


_LISTS = frozenset({"candidates", "rejected", "requirements"})


def pack(data: Mapping[str, Any]) -> bytes:
    """JSON types as compressed bytes."""
    return zlib.compress(json.dumps(data, separators=(",", ":"), ensure_ascii=False).encode(), 1)


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


def plain(value: Any) -> Any:
    """Dataclasses, sets, mappings and sequences as JSON types; floats to six digits, non-finite ones None."""
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    if isinstance(value, tuple | list):
        return [plain(item) for item in value]
    if isinstance(value, Mapping):
        return {str(name): plain(item) for name, item in value.items()}
    if isinstance(value, frozenset | set):
        return sorted(plain(item) for item in value)
    if is_dataclass(value):
        return {name: plain(getattr(value, name)) for name in _names(type(value))}
    return str(value)


def _of_target(item: Any) -> dict[str, Any]:
    entry: dict[str, Any] = plain(item)
    entry["target"]["id"] = item.target.id
    return entry


def _names(kind: type) -> tuple[str, ...]:
    known = _FIELDS.get(kind)
    if known is None:
        known = _FIELDS[kind] = tuple(field.name for field in fields(kind))
    return known
