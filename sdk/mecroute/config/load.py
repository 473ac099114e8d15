"""Loads the configuration in layers and remembers where each value came from.

Precedence: flag > `MECROUTE_*` > project file > user file > default.
"""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from mecroute.config.base import first_problem
from mecroute.config.schema import Config
from mecroute.errors import ConfigError
from mecroute_registry.paths import config_dir

FILE_NAME = "mecroute.toml"

#: Variables that steer the program itself and are no settings.
_CONTROL = {"MECROUTE_CONFIG", "MECROUTE_DEBUG"}
_PREFIX = "MECROUTE_"
#: Tables of which there may be several, written as [[table]].
_LISTS = ("nodes", "cloud", "discovery", "prices", "budgets")


@dataclass(frozen=True)
class LoadedConfig:
    """A configuration together with the source of each value.

    `sources` maps a dotted setting (`device.threads`) to the layer that set it; a setting that is not
    in it has its default.
    """

    config: Config
    sources: Mapping[str, str]

    def settings(self) -> Iterator[tuple[str, Any, str]]:
        """Every setting as (dotted name, value, source); secrets are masked."""
        for table in type(self.config).model_fields:
            value = getattr(self.config, table)
            if isinstance(value, BaseModel):
                for field, item in value.model_dump(mode="json").items():
                    name = f"{table}.{field}"
                    yield name, item, self.sources.get(name, "default")
            else:
                items = [item.model_dump(mode="json", exclude_none=True, by_alias=True) for item in value]
                yield table, items, self.sources.get(table, "default")


def find_project_file(start: Path | None = None) -> Path | None:
    """The `mecroute.toml` of this folder or the nearest one above it, up to the repository's root."""
    folder = (start or Path.cwd()).resolve()
    for candidate in (folder, *folder.parents):
        if (candidate / FILE_NAME).is_file():
            return candidate / FILE_NAME
        if (candidate / ".git").exists():
            return None
    return None


def load_config(
    path: Path | str | None = None,
    *,
    overrides: Mapping[str, Any] | None = None,
    environ: Mapping[str, str] | None = None,
) -> LoadedConfig:
    """Load the configuration.

    Args:
        path: read this file in place of the project and user files (also: `MECROUTE_CONFIG`).
        overrides: dotted settings that win over everything, as a command line's flags do.
        environ: the environment to read; default: the process's own.

    Raises:
        ConfigError: a file, variable or flag is wrong; the message names which one.
    """
    environ = os.environ if environ is None else environ
    layers: list[tuple[str, dict[str, Any]]] = []
    if path is not None and not isinstance(path, str | Path):
        raise ConfigError(f"the path of a configuration is a text or a Path, not a {type(path).__name__}")
    named = path or environ.get("MECROUTE_CONFIG")
    explicit = Path(named) if named else None
    if explicit is not None:
        layers.append((str(explicit), _read_file(explicit)))
    else:
        user, project = config_dir() / FILE_NAME, find_project_file()
        if user.is_file():
            layers.append((str(user), _read_file(user)))
        if project is not None and project != user:
            layers.append((str(project), _read_file(project)))
    layers.append(("environment", _read_environment(environ)))
    layers.append(("flag", _nest(overrides or {})))

    merged: dict[str, Any] = {}
    sources: dict[str, str] = {}
    for source, layer in layers:
        for table, value in layer.items():
            if isinstance(value, dict):
                merged.setdefault(table, {}).update(value)
                for field in value:
                    sources[f"{table}.{field}"] = _setting_source(source, table, field)
            else:
                merged[table] = value
                sources[table] = _setting_source(source, table, None)
    try:
        config = Config.model_validate(merged)
    except ValidationError as error:
        raise _explain(error, sources) from error
    return LoadedConfig(config=config, sources=sources)


def _setting_source(source: str, table: str, field: str | None) -> str:
    if source == "environment":
        return _PREFIX + "_".join(part.upper() for part in (table, field) if part)
    return source


def _read_file(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            content = tomllib.load(file)
    except FileNotFoundError as error:
        raise ConfigError(
            f"no configuration file at {path}", hint="check --config or MECROUTE_CONFIG"
        ) from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path} is not valid TOML: {error}", hint="mend that line") from error
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"cannot read {path}: {error}", hint="check its permissions and encoding"
        ) from error
    for table, value in content.items():
        known = Config.model_fields.get(table)
        if known is None:
            raise ConfigError(f"{path}: unknown table [{table}]{_did_you_mean(table, Config.model_fields)}")
        expected = list if table in _LISTS else dict
        if not isinstance(value, expected):
            brackets = f"[[{table}]]" if expected is list else f"[{table}]"
            raise ConfigError(f"{path}: '{table}' must be written as {brackets}")
    return content


def _read_environment(environ: Mapping[str, str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for variable, text in environ.items():
        if not variable.startswith(_PREFIX) or variable in _CONTROL:
            continue
        table, _, field = variable.removeprefix(_PREFIX).lower().partition("_")
        if table in _LISTS and not field:
            try:
                found[table] = json.loads(text)
            except json.JSONDecodeError as error:
                raise ConfigError(f"{variable} is not valid JSON: {error}") from error
            if not isinstance(found[table], list):
                raise ConfigError(f"{variable} must be a JSON list of objects")
            continue
        model = Config.model_fields[table].annotation if table in Config.model_fields else None
        if not (isinstance(model, type) and issubclass(model, BaseModel)) or field not in model.model_fields:
            raise ConfigError(
                f"unknown environment variable {variable}{_did_you_mean(variable, _variables())}",
                hint="`mecroute config show` lists every setting",
            )
        found.setdefault(table, {})[field] = text
    return found


def _variables() -> list[str]:
    names = [f"{_PREFIX}{table.upper()}" for table in _LISTS]
    for table, info in Config.model_fields.items():
        if isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel):
            names += [f"{_PREFIX}{table}_{field}".upper() for field in info.annotation.model_fields]
    return names


def _nest(overrides: Mapping[str, Any]) -> dict[str, Any]:
    nested: dict[str, Any] = {}
    for dotted, value in overrides.items():
        if value is None:
            continue
        table, _, field = dotted.partition(".")
        if field:
            nested.setdefault(table, {})[field] = value
        else:
            nested[table] = value
    return nested


def _did_you_mean(word: str, known: Any) -> str:
    close = get_close_matches(word, list(known), n=1)
    return f"; did you mean {close[0]}?" if close else ""


def _explain(error: ValidationError, sources: Mapping[str, str]) -> ConfigError:
    """Say of the first problem which setting it is, what was given and which layer set it."""
    place, reason = first_problem(error)
    source = _source_of(place, sources)
    return ConfigError(
        f"{source}: {'.'.join(place) or 'configuration'}: {reason}",
        hint="`mecroute config show` lists every setting and its source",
    )


def _source_of(place: list[str], sources: Mapping[str, str]) -> str:
    """The layers that set what an error is about: one setting, or several of a table."""
    exact = sources.get(".".join(place[:2])) or (sources.get(place[0]) if place else None)
    if exact is not None:
        return exact
    table = [layer for name, layer in sources.items() if place and name.startswith(f"{place[0]}.")]
    return ", ".join(dict.fromkeys(table)) or "the configuration"
