"""What a client shows and trusts over TLS, and why a connection was not made."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from mecroute.errors import ConfigError

if TYPE_CHECKING:
    import ssl

    import httpx


@dataclass(frozen=True, slots=True)
class ClientTls:
    """PEM files of one remote; they are read when the first connection to it is made.

    Args:
        cert: the certificate that this client shows, with its chain (mTLS); None shows none.
        key: its private key, without a passphrase; None where `cert` holds it.
        ca: the authority that the remote's certificate must be of; None trusts those of the system.
    """

    cert: Path | None = None
    key: Path | None = None
    ca: Path | None = None

    def context(self) -> ssl.SSLContext:
        """The context for connections.

        Raises:
            ConfigError: a file cannot be used.
        """
        import ssl

        import httpx

        if self.ca is None:
            context = httpx.create_ssl_context()
        else:
            try:
                context = ssl.create_default_context(cafile=self.ca.expanduser())
            except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
                raise ConfigError(
                    f"cannot use the authority {self.ca}: {_reason(error)}",
                    hint="name a PEM file with its certificate in tls_ca",
                ) from error
        if self.cert is not None:
            key = self.key.expanduser() if self.key is not None else None
            try:
                context.load_cert_chain(self.cert.expanduser(), key, password=_no_passphrase)
            except (OSError, ValueError) as error:
                raise ConfigError(
                    f"cannot use the client certificate {self.cert} with the key {self.key or self.cert}: "
                    f"{_reason(error)}",
                    hint="tls_cert is to name a PEM certificate, tls_key its PEM key without a passphrase",
                ) from error
        return context


def tls_problem(error: httpx.HTTPError, url: str, tls: ClientTls | None) -> tuple[str, str] | None:
    """What was wrong with TLS, and what to do; None where it was something else.

    Args:
        error: why there was no answer.
        url: of the remote.
        tls: the files that were used.
    """
    import ssl

    import httpx

    cause: BaseException | None = error
    for _ in range(8):
        if cause is None or isinstance(cause, ssl.SSLError):
            break
        cause = cause.__cause__ or cause.__context__
    if isinstance(cause, ssl.SSLCertVerificationError):
        return (
            f"its certificate is not trusted ({cause.verify_message})",
            "set tls_ca to its authority's file",
        )
    if isinstance(cause, ssl.SSLError):
        reason = (cause.reason or str(cause)).replace("_", " ").lower()
        return f"no TLS connection ({reason})", "check its URL, and tls_cert and tls_key if it asks for them"
    # From TLS 1.3 on a server judges the client's certificate once the client takes the connection for made,
    # and some (asyncio's) then close it without a word.
    if url.startswith("https:") and isinstance(error, httpx.RemoteProtocolError | httpx.ReadError):
        if tls is None or tls.cert is None:
            hint = "if it asks for a client certificate (mTLS), set tls_cert and tls_key"
        else:
            hint = f"it may not accept {tls.cert}: set tls_cert and tls_key to files of its authority"
        return "it closed the connection without an answer", hint
    return None


def _no_passphrase() -> NoReturn:
    # Without this OpenSSL would ask for it on the terminal, and a service would wait there for ever.
    raise ValueError("the key has a passphrase")


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)
