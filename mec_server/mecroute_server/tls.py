"""TLS: the certificate a node shows, and the authority whose certificates it asks of its clients."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from mecroute.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Tls:
    """PEM files.

    Args:
        cert: the node's certificate, with the chain that leads to its authority.
        key: the certificate's private key, without a passphrase.
        client_ca: clients must show a certificate of this authority (mTLS); None asks for none.
    """

    cert: Path
    key: Path
    client_ca: Path | None = None

    def context(self) -> ssl.SSLContext:
        """What a server secures connections with; TLS 1.2 is the least it speaks.

        Raises:
            ConfigError: the files cannot be used.
        """
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        try:
            context.load_cert_chain(self.cert, self.key, password=_no_passphrase)
        except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
            raise ConfigError(
                f"cannot use the TLS certificate {self.cert} with the key {self.key}: {_reason(error)}",
                hint="name a PEM certificate and its PEM key, readable and without a passphrase",
            ) from error
        if self.client_ca is not None:
            context.verify_mode = ssl.CERT_REQUIRED
            try:
                context.load_verify_locations(cafile=self.client_ca)
            except (OSError, ValueError) as error:
                raise ConfigError(
                    f"cannot use the client CA {self.client_ca}: {_reason(error)}",
                    hint="name a PEM file with the authority's certificate",
                ) from error
        return context


def _no_passphrase() -> NoReturn:
    # Without this OpenSSL would ask for it on the terminal, and a service would wait there for ever.
    raise ValueError("the key has a passphrase")


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)
