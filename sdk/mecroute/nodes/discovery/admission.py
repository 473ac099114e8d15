"""Which of the nodes that were found may be used, under which name and with which trust."""

from __future__ import annotations

import re
from ipaddress import ip_address
from urllib.parse import urlsplit

from mecroute.config.discovery import DiscoverySource
from mecroute.config.schema import NodeConfig
from mecroute.nodes.discovery.base import FoundNode

_MAX_NAME = 63


def admitted(source: DiscoverySource, found: FoundNode) -> NodeConfig | str:
    """The configuration of a found node, or why it is not used.

    Its name begins with the source's, so that none can take the name, and with it the key, of another. It
    gets the source's own key and prices, and the source's region unless its own word is to be trusted.
    """
    try:
        parts = urlsplit(found.url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        return f"'{found.url[:200]}' is not a URL"
    if parts.scheme not in ("http", "https") or not host or parts.username is not None:
        return f"'{found.url[:200]}' is not the URL of a node"
    if parts.query or parts.fragment or re.search(r"[\s\x00-\x1f]", found.url):
        return f"'{found.url[:200]}' is not the URL of a node"
    if parts.scheme == "http" and not is_loopback(host) and not source.allow_http:
        return (
            f"{found.url} has no TLS, so anybody on the way could read requests and answer them; "
            "allow_http = true would use it"
        )
    name = re.sub(r"[^a-z0-9._-]+", "-", found.name.lower()).strip("-._") or "node"
    return NodeConfig(
        name=f"{source.name}.{name}"[:_MAX_NAME],
        url=found.url.rstrip("/"),
        zone=found.zone,
        region=source.region or (found.region if source.trust_region else None),
        api_key=source.api_key,
        api_key_env=source.api_key_env,
        # Unset prices stay unset; a node without TLS takes no files for it.
        **source.model_dump(
            include={"input_usd_per_mtok", "output_usd_per_mtok"}
            | ({"tls_cert", "tls_key", "tls_ca"} if parts.scheme == "https" else set()),
            exclude_unset=True,
        ),
    )


def is_loopback(host: str) -> bool:
    """Whether a host's name or address means this machine."""
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False
