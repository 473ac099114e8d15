"""API keys: what each may do, and the file that keeps their digests.

Only a digest of each key is kept, and it is plain SHA-256. A salt and a slow hash protect passwords, which
are few enough to be tried; a key here is 256 random bits, which no one can search, and a plain digest is
looked up in one step however many keys there are, where a slow hash would cost every request its time.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import secrets
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from enum import StrEnum
from hashlib import sha256
from pathlib import Path
from typing import Any

from mecroute.errors import ConfigError, InvalidRequestError, UsageError

_FORMAT = 1
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,62}")
_MAX_FILE_BYTES = 16_000_000


class KeyScope(StrEnum):
    """What a key may do: ask models, bring models onto the node, or look after it."""

    INFER = "infer"
    DEPLOY = "deploy"
    ADMIN = "admin"


ALL_SCOPES = frozenset(KeyScope)


@dataclass(frozen=True, slots=True)
class ApiKey:
    """One key, without its secret.

    Attributes:
        id: names it in logs and to `revoke`; no secret.
        name: whose it is, in words.
        scopes: what it may do.
        digest: SHA-256 of the key, in hex.
        created: when it was made, ISO 8601 in UTC.
        requests_per_minute: > 0; None: the server's own limit.
        output_tokens_per_minute: > 0; None: the server's own limit.
    """

    id: str
    name: str
    scopes: frozenset[KeyScope]
    digest: str
    created: str = ""
    requests_per_minute: int | None = None
    output_tokens_per_minute: int | None = None

    @classmethod
    def of_secret(cls, secret: str, *, id: str) -> ApiKey:
        """A key with every scope, known by its secret: the one of a setting rather than of the file."""
        return cls(id=id, name=id, scopes=ALL_SCOPES, digest=digest_of(secret))

    def to_dict(self) -> dict[str, Any]:
        """The key as JSON values."""
        return {
            "id": self.id,
            "name": self.name,
            "scopes": sorted(self.scopes),
            "sha256": self.digest,
            "created": self.created,
            "requests_per_minute": self.requests_per_minute,
            "output_tokens_per_minute": self.output_tokens_per_minute,
        }


def digest_of(secret: str) -> str:
    """The digest under which a key is kept."""
    return sha256(secret.encode()).hexdigest()


class KeyFile:
    """The keys of one JSON file, mode 0600; changes replace the file as a whole, one process at a time.

    Args:
        path: the file; it need not exist yet.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> list[ApiKey]:
        """Every key, oldest first; none when there is no file.

        Raises:
            ConfigError: the file is not one of ours, or others than its owner may read or change it.
        """
        try:
            with self.path.open("rb") as file:
                mode = os.fstat(file.fileno()).st_mode & 0o777
                text = file.read(_MAX_FILE_BYTES + 1)
        except FileNotFoundError:
            return []
        except OSError as error:
            raise ConfigError(f"cannot read the keys file {self.path}: {error.strerror}") from error
        if mode & 0o077:
            raise ConfigError(
                f"the keys file {self.path} is open to others (mode {mode:03o})",
                hint=f"chmod 600 {self.path}",
            )
        if len(text) > _MAX_FILE_BYTES:
            raise ConfigError(f"the keys file {self.path} is larger than {_MAX_FILE_BYTES:,} bytes")
        try:
            document = json.loads(text)
            if document["format"] != _FORMAT:
                raise ValueError(f"its format is {document['format']!r}, not {_FORMAT}")
            keys = [_parse(entry) for entry in document["keys"]]
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise ConfigError(
                f"{self.path} is not a keys file: {error}", hint="`mecroute keys create` writes one"
            ) from error
        if len({key.id for key in keys}) != len(keys):
            raise ConfigError(f"the keys file {self.path} has two keys of one id")
        return keys

    def create(
        self,
        name: str,
        scopes: Iterable[KeyScope],
        *,
        requests_per_minute: int | None = None,
        output_tokens_per_minute: int | None = None,
    ) -> tuple[ApiKey, str]:
        """Make a key.

        Returns:
            The key, and its secret, which is kept nowhere.

        Raises:
            InvalidRequestError: the name, the scopes or a limit are not possible.
            ConfigError: see `read`.
        """
        wanted = frozenset(scopes)
        if not _NAME.fullmatch(name):
            raise InvalidRequestError(
                f"'{name}' cannot name a key", hint="1 to 63 letters, digits and . _ @ -, a letter first"
            )
        if not wanted:
            raise InvalidRequestError("a key needs at least one scope", hint="infer, deploy or admin")
        for limit in (requests_per_minute, output_tokens_per_minute):
            if limit is not None and limit < 1:
                raise InvalidRequestError(f"a limit must be at least 1, not {limit}")
        with self._locked():
            keys = self.read()
            taken = {key.id for key in keys}
            id = next(id for id in iter(lambda: secrets.token_hex(4), "") if id not in taken)
            secret = f"mrk-{id}-{secrets.token_urlsafe(32)}"
            key = ApiKey(
                id=id,
                name=name,
                scopes=wanted,
                digest=digest_of(secret),
                created=datetime.now(UTC).isoformat(timespec="seconds"),
                requests_per_minute=requests_per_minute,
                output_tokens_per_minute=output_tokens_per_minute,
            )
            self._write([*keys, key])
        return key, secret

    def revoke(self, id: str) -> ApiKey:
        """Take a key out; a running server refuses it from its next request on.

        Raises:
            UsageError: there is no key of that id.
            ConfigError: see `read`.
        """
        with self._locked():
            keys = self.read()
            for key in keys:
                if key.id == id:
                    self._write([other for other in keys if other is not key])
                    return key
        raise UsageError(f"{self.path} has no key '{id}'", hint="`mecroute keys list` shows their ids")

    @contextmanager
    def _locked(self) -> Iterator[None]:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        # A file of its own: the keys file is replaced, and a lock on it would be on the old one.
        lock = os.open(self.path.with_name(f".{self.path.name}.lock"), os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        finally:
            os.close(lock)

    def _write(self, keys: Iterable[ApiKey]) -> None:
        document = {"format": _FORMAT, "keys": [key.to_dict() for key in keys]}
        part = self.path.with_name(f".{self.path.name}.{secrets.token_hex(4)}.part")
        file = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with os.fdopen(file, "w", encoding="utf-8") as out:
                json.dump(document, out, indent=2)
                out.write("\n")
                out.flush()
                os.fsync(out.fileno())
            part.replace(self.path)
        except BaseException:
            part.unlink(missing_ok=True)
            raise


def _parse(entry: Mapping[str, Any]) -> ApiKey:
    limits: dict[str, Any] = {}
    key = ApiKey(
        id=entry["id"],
        name=entry["name"],
        scopes=frozenset(KeyScope(scope) for scope in entry["scopes"]),
        digest=entry["sha256"],
        created=entry.get("created", ""),
    )
    if not all(isinstance(value, str) for value in (key.id, key.name, key.digest, key.created)):
        raise ValueError("a key's id, name, sha256 or created is not text")
    if not re.fullmatch(r"[0-9a-f]{64}", key.digest):
        raise ValueError(f"the digest of key '{key.id}' is not SHA-256 in hex")
    for field in ("requests_per_minute", "output_tokens_per_minute"):
        limits[field] = limit = entry.get(field)
        if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int) or limit < 1):
            raise ValueError(f"{field} of key '{key.id}' is {limit!r}")
    return replace(key, **limits)
