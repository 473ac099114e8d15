"""Where MEC nodes are found: DNS, the local network, a bucket, a network operator."""

from mecroute.nodes.discovery.base import Discovery, Found, FoundNode, open_discovery

__all__ = ["Discovery", "Found", "FoundNode", "open_discovery"]
