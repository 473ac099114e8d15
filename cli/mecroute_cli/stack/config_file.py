"""Writes a `Config` as TOML: only what differs from the defaults, readable by the owner alone."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, SecretStr

from mecroute.config import Config


def write_config(config: Config, path: Path) -> None:
    """Write `config` to `path` with mode 0600; keys are written in the clear, as the file needs them."""
    lines: list[str] = []
    for table in type(config).model_fields:
        value = getattr(config, table)
        if isinstance(value, BaseModel):
            lines += _table(f"[{table}]", _set_fields(value))
        else:
            for item in value:
                lines += _table(f"[[{table}]]", _set_fields(item))
    temporary = path.with_name(f".{path.name}.part")
    temporary.unlink(missing_ok=True)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write("\n".join(lines))
    temporary.replace(path)


def _set_fields(table: BaseModel) -> dict[str, Any]:
    return {name: value for name, value in _fields(table) if value is not None}


def _fields(table: BaseModel) -> Iterator[tuple[str, Any]]:
    for name in type(table).model_fields:
        if name in table.model_fields_set:
            yield name, getattr(table, name)


def _table(heading: str, fields: Mapping[str, Any]) -> list[str]:
    if not fields:
        return []
    return [heading, *(f"{name} = {_value(value)}" for name, value in fields.items()), ""]


def _value(value: Any) -> str:
    if isinstance(value, SecretStr):
        return _value(value.get_secret_value())
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    # A JSON string is a TOML basic string, as long as nothing is escaped as a surrogate pair.
    return json.dumps(str(value), ensure_ascii=False)
