"""`[network]`: what is known of the network that the device cannot tell by itself."""

from __future__ import annotations

from pydantic import Field

from mecroute.config.base import Table


class NetworkConfig(Table):
    """`[network]`."""

    metered: bool | None = Field(
        default=None, description="whether bytes cost; default: what a device probe says, else no"
    )
    metered_max_bytes: int = Field(
        default=1_000_000,
        ge=0,
        description="on a metered network a larger request goes to no remote target",
    )
    probe: bool = Field(
        default=False, description="measure the way to nodes while nothing is asked, every 30 s"
    )
