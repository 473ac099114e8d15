"""Configuration: `mecroute.toml`, `MECROUTE_*` and flags, each value with its source."""

from mecroute.config.load import FILE_NAME, LoadedConfig, find_project_file, load_config
from mecroute.config.schema import (
    CloudConfig,
    Config,
    DeviceConfig,
    NodeConfig,
    RegistryConfig,
    RouterConfig,
    ServerConfig,
    StateConfig,
    StoreConfig,
)

__all__ = [
    "FILE_NAME",
    "CloudConfig",
    "Config",
    "DeviceConfig",
    "LoadedConfig",
    "NodeConfig",
    "RegistryConfig",
    "RouterConfig",
    "ServerConfig",
    "StateConfig",
    "StoreConfig",
    "find_project_file",
    "load_config",
]
