"""Who may ask for what: callers with an API key of the right scope, or, without keys, this machine only."""

from __future__ import annotations

import hmac
import logging
from collections.abc import Iterable, Mapping
from urllib.parse import urlsplit

from mecroute.errors import AuthenticationError, ConfigError
from mecroute_server.errors import MissingScopeError, NotLocalError
from mecroute_server.keys import ALL_SCOPES, ApiKey, KeyFile, KeyScope, digest_of
from mecroute_server.settings import is_loopback

_log = logging.getLogger(__name__)

#: What probes and scrapers read; nothing about a request's content is in it.
OPEN_PATHS = frozenset({"/healthz", "/readyz", "/metrics", "/v2/health/live", "/v2/health/ready"})
#: Whoever asks a node without keys: somebody on this machine.
LOCAL = ApiKey(id="local", name="local", scopes=ALL_SCOPES, digest="")
#: Whoever reads an open path.
ANYONE = ApiKey(id="anyone", name="anyone", scopes=frozenset(), digest="")

_INFER = frozenset({KeyScope.INFER})
_DEPLOY = frozenset({KeyScope.DEPLOY})
_ADMIN = frozenset({KeyScope.ADMIN})
#: Ollama's ways to change which models there are; the rest of its API only asks them.
_OLLAMA_DEPLOYS = frozenset({"/api/pull", "/api/push", "/api/create", "/api/copy", "/api/delete"})


class Authenticator:
    """Checks each request's API key and its scope. Belongs to one event loop.

    Args:
        api_keys: keys of the settings, which may do everything; only their SHA-256 is kept.
        key_file: more keys, read again when the file changes; a warning in the log says when nobody has one.
            Neither: local callers only.
        origins: web pages of these may use a node without keys, from a browser on this machine.

    Raises:
        ConfigError: the file cannot be used.
    """

    def __init__(
        self, api_keys: Iterable[str], key_file: KeyFile | None = None, *, origins: Iterable[str] = ()
    ) -> None:
        self._settled = tuple(
            ApiKey.of_secret(key, id=f"setting-{number}") for number, key in enumerate(api_keys, 1)
        )
        self._file = key_file
        self._origins = frozenset(origins)
        self._seen: tuple[int, ...] | None = None
        self._by_digest: dict[str, ApiKey] = {key.digest: key for key in self._settled}
        if key_file is not None:
            self._seen = self._look()
            self._index(key_file.read())

    def check(
        self, path: str, headers: Mapping[str, str], client_host: str | None, method: str = "GET"
    ) -> ApiKey:
        """Let the request pass, or raise.

        Args:
            path: the request's path.
            headers: its headers, with lower-case names.
            client_host: the caller's address; None for a UNIX socket.
            method: its method.

        Returns:
            The caller's key.

        Raises:
            AuthenticationError: a key is needed, and none or another one was sent.
            MissingScopeError: the key may not do this.
            NotLocalError: no key is configured and the caller is not of this machine.
        """
        if path in OPEN_PATHS:
            return ANYONE
        if self._file is None and not self._settled:
            self._check_local(headers, client_host)
            return LOCAL
        key = self._find(headers)
        needed = scopes_for(method, path)
        if not key.scopes & needed:
            raise MissingScopeError(
                f"key '{key.id}' has no scope '{min(needed)}', which {method} {path} needs",
                key=key,
                hint=f"its scopes: {', '.join(sorted(key.scopes)) or 'none'}; "
                f"`mecroute keys create --scope {min(needed)}` makes a key that has it",
            )
        return key

    def _find(self, headers: Mapping[str, str]) -> ApiKey:
        secret = sent_key(headers)
        if secret is None:
            raise AuthenticationError(
                "this server needs an API key",
                hint="send it as 'Authorization: Bearer <key>' or as 'x-api-key: <key>'",
            )
        self._refresh()
        sent = digest_of(secret)
        # Found by its digest: how long that takes could only tell of digests, which lead back to no key.
        key = self._by_digest.get(sent)
        if key is None or not hmac.compare_digest(sent, key.digest):
            raise AuthenticationError(
                "the API key is not accepted by this server", hint="check the key configured for this node"
            )
        return key

    def _refresh(self) -> None:
        """Read the keys file again if it is another one than before; a look costs a microsecond."""
        if self._file is None or (seen := self._look()) == self._seen:
            return
        self._seen = seen
        try:
            self._index(self._file.read())
            _log.info("read the keys file %s again", self._file.path)
        except ConfigError as error:
            # A slip of the editor must not lock everybody out; a file taken away does.
            _log.error("the keys of before stay in force: %s", error)

    def _look(self) -> tuple[int, ...] | None:
        assert self._file is not None
        try:
            stat = self._file.path.stat()
        except OSError:
            return None
        return stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_mode

    def _index(self, keys: Iterable[ApiKey]) -> None:
        self._by_digest = {key.digest: key for key in (*keys, *self._settled)}
        if self._file is not None and not self._by_digest:
            _log.warning(
                "the keys file %s holds no key, so nobody is admitted: "
                "`mecroute keys create --name app --file %s` makes one",
                self._file.path,
                self._file.path,
            )

    def _check_local(self, headers: Mapping[str, str], client_host: str | None) -> None:
        hint = "configure an API key on the server to open it to others"
        if client_host is not None and not is_loopback(client_host):
            raise NotLocalError(f"this server has no API key, so it does not serve {client_host}", hint=hint)
        # A web page can make its visitor's browser call loopback: by name (DNS rebinding) or across origins.
        host = _host_in(f"//{headers.get('host', '')}")
        if host and not is_loopback(host):
            raise NotLocalError(f"this server has no API key, so it is not served as '{host}'", hint=hint)
        origin = headers.get("origin")
        if origin is not None and origin not in self._origins and not is_loopback(_host_in(origin)):
            raise NotLocalError(f"this server has no API key, so pages of {origin} may not use it", hint=hint)


def sent_key(headers: Mapping[str, str]) -> str | None:
    """The API key that a request carries, however its client sends it.

    Args:
        headers: with lower-case names. `Authorization: Bearer` is what OpenAI's and Ollama's clients send,
            `x-api-key` what Anthropic's does; the first wins where both are there.
    """
    scheme, _, key = headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not key.strip():
        key = headers.get("x-api-key", "")
    return key.strip() or None


def scopes_for(method: str, path: str) -> frozenset[KeyScope]:
    """The scopes of which a key needs one. A path that is not listed here needs `admin`."""
    if path == "/admin/node" and method in ("GET", "HEAD"):
        return ALL_SCOPES  # clients route by it, and a deployment is watched with it
    if path == "/admin/models" or path.startswith("/admin/models/"):
        return _DEPLOY if method == "POST" else _ADMIN
    if path in _OLLAMA_DEPLOYS or path.startswith(("/v2/repository/models/", "/api/blobs/")):
        return _DEPLOY
    return _INFER if path.startswith(("/v1/", "/v2/", "/api/")) or path == "/v2" else _ADMIN


def _host_in(url: str) -> str:
    try:
        return urlsplit(url).hostname or ""
    except ValueError:  # unbalanced brackets: no host of ours, whatever it is
        return url
