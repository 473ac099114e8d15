"""Who may ask: callers with an API key, or, where none is configured, this machine only."""

from __future__ import annotations

import hmac
from collections.abc import Iterable, Mapping
from hashlib import sha256
from urllib.parse import urlsplit

from mecroute.errors import AuthenticationError
from mecroute_server.errors import NotLocalError
from mecroute_server.settings import is_loopback

#: What probes and scrapers read; nothing about a request's content is in it.
OPEN_PATHS = frozenset({"/healthz", "/readyz", "/metrics", "/v2/health/live", "/v2/health/ready"})


class Authenticator:
    """Checks each request's API key; stateless after construction, so safe from any thread.

    Args:
        api_keys: the accepted keys; only their SHA-256 is kept. Empty: local callers only.
    """

    def __init__(self, api_keys: Iterable[str]) -> None:
        self._digests = tuple(sha256(key.encode()).digest() for key in api_keys)

    def check(self, path: str, headers: Mapping[str, str], client_host: str | None) -> None:
        """Let the request pass, or raise.

        Args:
            path: the request's path.
            headers: its headers, with lower-case names.
            client_host: the caller's address; None for a UNIX socket.

        Raises:
            AuthenticationError: a key is needed, and none or another one was sent.
            NotLocalError: no key is configured and the caller is not of this machine.
        """
        if path in OPEN_PATHS:
            return
        if self._digests:
            self._check_key(headers.get("authorization", ""))
        else:
            self._check_local(headers, client_host)

    def _check_key(self, authorization: str) -> None:
        scheme, _, key = authorization.partition(" ")
        if scheme.lower() != "bearer" or not key.strip():
            raise AuthenticationError(
                "this server needs an API key", hint="send it as 'Authorization: Bearer <key>'"
            )
        sent = sha256(key.strip().encode()).digest()
        # Every digest is compared, each in constant time, so that the time taken says nothing about the keys.
        matches = [hmac.compare_digest(sent, known) for known in self._digests]
        if not any(matches):
            raise AuthenticationError(
                "the API key is not accepted by this server", hint="check the key configured for this node"
            )

    @staticmethod
    def _check_local(headers: Mapping[str, str], client_host: str | None) -> None:
        hint = "configure an API key on the server to open it to others"
        if client_host is not None and not is_loopback(client_host):
            raise NotLocalError(f"this server has no API key, so it does not serve {client_host}", hint=hint)
        # A web page can make its visitor's browser call loopback: by name (DNS rebinding) or across origins.
        host = _host_in(f"//{headers.get('host', '')}")
        if host and not is_loopback(host):
            raise NotLocalError(f"this server has no API key, so it is not served as '{host}'", hint=hint)
        origin = headers.get("origin")
        if origin is not None and not is_loopback(_host_in(origin)):
            raise NotLocalError(f"this server has no API key, so pages of {origin} may not use it", hint=hint)


def _host_in(url: str) -> str:
    try:
        return urlsplit(url).hostname or ""
    except ValueError:  # unbalanced brackets: no host of ours, whatever it is
        return url
