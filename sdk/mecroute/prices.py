"""What tokens cost: what an entry states itself, else the user's own table `[[prices]]`, else nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mecroute.config.base import RemoteConfig
from mecroute.config.prices import PriceConfig
from mecroute.config.schema import CloudConfig


@dataclass(frozen=True, slots=True)
class Price:
    """USD per million tokens, and where that is stated."""

    input_usd_per_mtok: float = 0.0
    output_usd_per_mtok: float = 0.0
    source: str = "not stated: reckoned as free"


FREE = Price(source="the device")


def price_of(remote: RemoteConfig, table: Sequence[PriceConfig]) -> Price:
    """The price of a node or a cloud model.

    Args:
        table: the user's prices, of which the first line that names a cloud's model counts.
    """
    if {"input_usd_per_mtok", "output_usd_per_mtok"} & remote.model_fields_set:
        return Price(remote.input_usd_per_mtok, remote.output_usd_per_mtok, "its own entry")
    if isinstance(remote, CloudConfig):
        for line in table:
            if line.names(remote.model):
                return Price(line.input_usd_per_mtok, line.output_usd_per_mtok, f"[[prices]] {line.model}")
    return Price()
