"""What the tables of the configuration have in common."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    StringConstraints,
    ValidationError,
    model_validator,
)

from mecroute.errors import ConfigError
from mecroute.network.tls import ClientTls

Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$")]
HttpUrl = Annotated[str, StringConstraints(pattern=r"^https?://[^\s/?#]+[^\s?#]*$")]
S3Uri = Annotated[str, StringConstraints(pattern=r"^s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/[^\s?#]*)?$")]


class Table(BaseModel):
    """One table of `mecroute.toml`: immutable, and an unknown setting is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    if not TYPE_CHECKING:  # type checkers know the fields, and would then not

        def __init__(self, **settings: Any) -> None:
            """Make it in code.

            Raises:
                ConfigError: a setting is wrong; the message names it.
            """
            try:
                super().__init__(**settings)
            except ValidationError as error:
                place, reason = first_problem(error)
                where = ".".join((type(self).__name__, *place))
                raise ConfigError(f"{where}: {reason}") from error

        # As of the class above: nested tables are validated as ever, and only what is called raises ours.
        __init__.__pydantic_base_init__ = True


class RemoteConfig(Table):
    """What MEC nodes and cloud services have in common."""

    name: Name
    api_key: SecretStr | None = None
    api_key_env: str | None = Field(default=None, description="environment variable that holds the key")
    tls_cert: Path | None = Field(default=None, description="PEM certificate that is shown to it (mTLS)")
    tls_key: Path | None = Field(default=None, description="its PEM key; default: in the same file")
    tls_ca: Path | None = Field(default=None, description="PEM authority of its own; default: the system's")
    region: str | None = Field(default=None, description="where its data stays; compared with residency")
    input_usd_per_mtok: float = Field(default=0, ge=0, description="USD per million prompt tokens")
    output_usd_per_mtok: float = Field(default=0, ge=0, description="USD per million output tokens")

    def key(self) -> str | None:
        """The API key, from the file or from the variable it names; None where there is none."""
        if self.api_key is not None:
            return self.api_key.get_secret_value()
        return os.environ.get(self.api_key_env) if self.api_key_env else None

    def tls(self) -> ClientTls | None:
        """The files for TLS connections to it; None where none is named."""
        files = (self.tls_cert, self.tls_key, self.tls_ca)
        return ClientTls(*files) if any(files) else None

    @model_validator(mode="after")
    def _tls_is_whole(self) -> Self:
        if self.tls_key is not None and self.tls_cert is None:
            raise ValueError("tls_key needs tls_cert")
        url = getattr(self, "url", None) or getattr(self, "base_url", None)
        if self.tls() is not None and url is not None and not url.startswith("https://"):
            raise ValueError(f"tls_cert, tls_key and tls_ca need a URL with https://, and this one is {url}")
        return self


def first_problem(error: ValidationError) -> tuple[list[str], str]:
    """The first thing that is wrong: where, and in words with what was given (unless it may be a secret)."""
    first = error.errors(include_url=False)[0]
    place = [str(part) for part in first["loc"]]
    reason = first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        reason = "there is no such setting"
    secret = "key" in (place[-1] if place else "")
    given = "" if secret or isinstance(first["input"], dict | list) else f" (given: {first['input']!r})"
    return place, reason + given
