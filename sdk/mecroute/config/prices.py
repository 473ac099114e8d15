"""`[[prices]]`: the user's own table of prices, for cloud models whose entry states none."""

from __future__ import annotations

from fnmatch import fnmatchcase

from pydantic import Field

from mecroute.config.base import Table


class PriceConfig(Table):
    """One line of the table. None ship with mecroute: prices change, so they are stated by who pays them."""

    model: str = Field(min_length=1, description="a model's name; * and ? stand for what they do in a shell")
    input_usd_per_mtok: float = Field(ge=0, description="USD per million prompt tokens")
    output_usd_per_mtok: float = Field(ge=0, description="USD per million output tokens")
    note: str | None = Field(default=None, description="where the price is from, and as of when")

    def names(self, model: str) -> bool:
        """Whether this line is about a model; names are told apart by case."""
        return fnmatchcase(model, self.model)
