"""`[[discovery]]`: where MEC nodes are looked for besides those of `[[nodes]]`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints

from mecroute.config.base import HttpUrl, RemoteConfig, S3Uri

_LABEL = r"[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9])?"
Domain = Annotated[str, StringConstraints(pattern=rf"^{_LABEL}(\.{_LABEL})*\.?$", max_length=240)]
HostPort = Annotated[str, StringConstraints(pattern=r"^[^\s/:]+(:[0-9]{1,5})?$")]


class DiscoverySource(RemoteConfig):
    """What every source has. Key, prices and `region` hold for each node that it finds; a node gets no key
    unless one stands here."""

    allow_http: bool = Field(default=False, description="use nodes without TLS that are not of this machine")
    trust_region: bool = Field(
        default=False, description="believe the region that a node tells; otherwise only `region` counts"
    )
    max_nodes: int = Field(default=32, ge=1, le=256, description="no more than so many are used")


class DnsSrvSource(DiscoverySource):
    """`kind = "dns-srv"`: the SRV records of `_mecroute._tcp.DOMAIN`."""

    kind: Literal["dns-srv"]
    domain: Domain
    server: HostPort | None = Field(default=None, description="ask this DNS server, not the system's")


class MdnsSource(DiscoverySource):
    """`kind = "mdns"`: nodes that announce themselves on the local network."""

    kind: Literal["mdns"]
    interfaces: tuple[str, ...] = Field(default=(), description="addresses to listen on; default: all")


class S3Source(DiscoverySource):
    """`kind = "s3"`: nodes that list themselves in a folder of a bucket."""

    kind: Literal["s3"]
    uri: S3Uri
    endpoint_url: HttpUrl | None = Field(default=None, description="default: that of [store]")
    store_region: str | None = Field(default=None, description="AWS region; default: that of [store]")


class CamaraSource(DiscoverySource):
    """`kind = "camara"`: the closest edge zone by a network operator's Simple Edge Discovery (CAMARA)."""

    kind: Literal["camara"]
    root: HttpUrl = Field(description="the operator's API root; /simple-edge-discovery/v2/… follows")
    token_env: str = Field(description="environment variable that holds the bearer token")
    zones: dict[str, HttpUrl] = Field(description="a zone's id or name, and the node that stands there")
    device: dict[str, Any] | None = Field(
        default=None, description="whose closest zone; default: whoever the token is for"
    )
    refresh_s: float = Field(default=300, ge=10, le=86_400)
