"""A directory of nodes in a bucket: one small JSON object per node, written again while the node lives.

The service's own clock decides how old an entry is, so that no node and no client needs the right time.
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from mecroute_registry.errors import MissingExtraError, UsageError

if TYPE_CHECKING:
    from mecroute_registry.remote._bucket import Bucket

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
_MAX_ENTRY_BYTES = 4096
_MAX_ENTRIES = 1000
_TTL_S = (5.0, 3600.0)


@dataclass(frozen=True, slots=True)
class NodeEntry:
    """What a node says of itself.

    Args:
        ttl_s: 5..3600; without another word from it, it counts as gone after so long.
    """

    node: str
    url: str
    ttl_s: float
    zone: str | None = None
    region: str | None = None


class NodeDirectory:
    """The entries under a prefix of a bucket. Thread-safe; nothing is contacted before the first call.

    Args:
        uri: `s3://bucket/prefix`.
        endpoint_url: the URL of an S3-compatible service; AWS itself when None.
        region: the AWS region; the standard AWS configuration decides when None.

    Raises:
        UsageError: the URI is not one.
        MissingExtraError: boto3 is not installed.
    """

    def __init__(self, uri: str, *, endpoint_url: str | None = None, region: str | None = None) -> None:
        try:
            from mecroute_registry.remote._bucket import Bucket
        except ImportError as error:
            raise MissingExtraError("aws", "a directory of nodes in S3") from error
        self._bucket: Bucket = Bucket(uri, endpoint_url, region)
        self._known: dict[str, tuple[str, NodeEntry | None]] = {}

    def put(self, entry: NodeEntry) -> None:
        """Write a node's entry, or write it again: this is its heartbeat.

        Raises:
            RemoteStoreError: the bucket cannot be reached or refuses.
        """
        self._bucket.ensure()
        self._bucket.write(_key(entry.node), json.dumps(asdict(entry)).encode())

    def remove(self, node: str) -> None:
        """Take a node's entry away.

        Raises:
            RemoteStoreError: as `put`.
        """
        self._bucket.delete(_key(node))

    def live(self) -> list[NodeEntry]:
        """The nodes that were heard of within their own time to live, sorted by name.

        Objects that are no entries are left out. An entry is read once and not again until it changes.

        Raises:
            RemoteStoreError: as `put`.
        """
        listed, now = self._bucket.list_objects(_MAX_ENTRIES)
        found: list[NodeEntry] = []
        seen: dict[str, tuple[str, NodeEntry | None]] = {}
        for item in listed:
            if not item.key.endswith(".json") or item.size > _MAX_ENTRY_BYTES:
                continue
            known = self._known.get(item.key)
            if known is None or known[0] != item.etag:
                read = self._bucket.read(item.key, _MAX_ENTRY_BYTES)
                known = (item.etag, _parse(read[0]) if read is not None else None)
            seen[item.key] = known
            entry = known[1]
            if entry is not None and (now - item.modified).total_seconds() <= entry.ttl_s:
                found.append(entry)
        self._known = seen
        return sorted(found, key=lambda entry: entry.node)


def _key(node: str) -> str:
    if not _NAME.fullmatch(node):
        raise UsageError(
            f"'{node}' cannot be listed as a node", hint="use small letters, digits, dots and dashes"
        )
    return f"{node}.json"


def _parse(content: bytes) -> NodeEntry | None:
    try:
        told: Any = json.loads(content)
        node, url, ttl_s = told["node"], told["url"], told["ttl_s"]
    except (ValueError, KeyError, TypeError):
        return None
    if not isinstance(node, str) or not isinstance(url, str) or not _NAME.fullmatch(node):
        return None
    if isinstance(ttl_s, bool) or not isinstance(ttl_s, int | float) or not _TTL_S[0] <= ttl_s <= _TTL_S[1]:
        return None
    zone, region = told.get("zone"), told.get("region")
    return NodeEntry(
        node,
        url,
        float(ttl_s),
        zone if isinstance(zone, str) else None,
        region if isinstance(region, str) else None,
    )
