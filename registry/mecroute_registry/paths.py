"""Where mecroute keeps its files: the XDG base directories, on every platform."""

from __future__ import annotations

import os
from pathlib import Path


def _base(variable: str, fallback: tuple[str, ...]) -> Path:
    value = os.environ.get(variable, "")
    # The XDG specification says to ignore a relative path.
    return Path(value) if value and Path(value).is_absolute() else Path.home().joinpath(*fallback)


def data_dir() -> Path:
    """Return the folder for data that must survive, such as models (`$XDG_DATA_HOME/mecroute`)."""
    return _base("XDG_DATA_HOME", (".local", "share")) / "mecroute"


def config_dir() -> Path:
    """Return the folder of the user's configuration (`$XDG_CONFIG_HOME/mecroute`)."""
    return _base("XDG_CONFIG_HOME", (".config",)) / "mecroute"


def state_dir() -> Path:
    """Return the folder for history and measurements (`$XDG_STATE_HOME/mecroute`)."""
    return _base("XDG_STATE_HOME", (".local", "state")) / "mecroute"


def cache_dir() -> Path:
    """Return the folder for what may be deleted at any time (`$XDG_CACHE_HOME/mecroute`)."""
    return _base("XDG_CACHE_HOME", (".cache",)) / "mecroute"


def default_registry_dir() -> Path:
    """Return the root of the local model registry when none is named."""
    return data_dir() / "registry"
