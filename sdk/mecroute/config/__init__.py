"""Configuration: `mecroute.toml`, `MECROUTE_*` and flags, each value with its source."""

from mecroute.config.load import FILE_NAME, LoadedConfig, find_project_file, load_config
from mecroute.config.schema import (
    BudgetConfig,
    CloudConfig,
    Config,
    DeviceConfig,
    MonitorConfig,
    NodeConfig,
    RegistryConfig,
    RouterConfig,
    ServerConfig,
    StateConfig,
    StoreConfig,
)

__all__ = [
    "FILE_NAME",
    "BudgetConfig",
    "CloudConfig",
    "Config",
    "DeviceConfig",
    "LoadedConfig",
    "MonitorConfig",
    "NodeConfig",
    "RegistryConfig",
    "RouterConfig",
    "ServerConfig",
    "StateConfig",
    "StoreConfig",
    "find_project_file",
    "load_config",
]
