"""What the tables of the configuration have in common."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, SecretStr, StringConstraints, model_validator

from mecroute.network.tls import ClientTls

Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$")]
HttpUrl = Annotated[str, StringConstraints(pattern=r"^https?://[^\s/?#]+[^\s?#]*$")]
S3Uri = Annotated[str, StringConstraints(pattern=r"^s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/[^\s?#]*)?$")]


class Table(BaseModel):
    """One table of `mecroute.toml`: immutable, and an unknown setting is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


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
