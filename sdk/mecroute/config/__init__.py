"""Configuration: `mecroute.toml`, `MECROUTE_*` and flags, each value with its source."""

from mecroute.config.base import RemoteConfig
from mecroute.config.caching import CacheConfig, PlacementConfig
from mecroute.config.discovery import CamaraSource, DiscoverySource, DnsSrvSource, MdnsSource, S3Source
from mecroute.config.load import FILE_NAME, LoadedConfig, find_project_file, load_config
from mecroute.config.network import NetworkConfig
from mecroute.config.prices import PriceConfig
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
    TextModelConfig,
)

__all__ = [
    "FILE_NAME",
    "BudgetConfig",
    "CacheConfig",
    "CamaraSource",
    "CloudConfig",
    "Config",
    "DeviceConfig",
    "DiscoverySource",
    "DnsSrvSource",
    "LoadedConfig",
    "MdnsSource",
    "MonitorConfig",
    "NetworkConfig",
    "NodeConfig",
    "PlacementConfig",
    "PriceConfig",
    "RegistryConfig",
    "RemoteConfig",
    "RouterConfig",
    "S3Source",
    "ServerConfig",
    "StateConfig",
    "StoreConfig",
    "TextModelConfig",
    "find_project_file",
    "load_config",
]
