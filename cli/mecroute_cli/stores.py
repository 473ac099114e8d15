"""Which remote store a command means: its own options first, then `[store]`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mecroute_cli.session import Session

if TYPE_CHECKING:
    from mecroute.config import StoreConfig
    from mecroute_registry.remote.base import RemoteStore


def remote_store(
    session: Session, uri: str | None, endpoint_url: str | None, region: str | None
) -> RemoteStore:
    """Open the remote store.

    Raises:
        ConfigError: neither the command nor the configuration names one.
    """
    from mecroute.errors import ConfigError
    from mecroute_registry.remote import open_remote

    configured = session.config.store
    wanted = uri or configured.uri
    if wanted is None:
        raise ConfigError(
            "no model store is configured",
            hint="give --to or --from s3://bucket/prefix, or set uri under [store] in mecroute.toml",
        )
    return open_remote(
        wanted,
        endpoint_url=endpoint_url or configured.endpoint_url,
        region=region or configured.region,
    )


def open_store(store: StoreConfig) -> RemoteStore:
    """Open the store that a configuration names; it must name one."""
    from mecroute_registry.remote import open_remote

    assert store.uri is not None
    return open_remote(store.uri, endpoint_url=store.endpoint_url, region=store.region)
