"""A conversation's KV cells as a file: for the disk, and on the way to another node.

    "MECROUTE-KV\\n"  uint32 length of the header  header (JSON)  tokens (int32)  state  SHA-256 of all that

Numbers are little-endian. The state is llama.cpp's own form, which `kv_state` checks.
"""

from __future__ import annotations

import hashlib
import json
import re
import struct
from dataclasses import dataclass
from typing import Any, BinaryIO

from mecroute.errors import InvalidSnapshotError

MAGIC = b"MECROUTE-KV\n"
VERSION = 1
_LENGTH = struct.Struct("<I")
_MAX_HEADER_BYTES = 64 * 1024
_MAX_TOKENS = 1_000_000
_DIGEST_BYTES = 32
_KEY = re.compile(r"[0-9a-f]{16}")
#: What a caller may call a session.
SESSION_NAME = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_MAX_KEYS = 64


@dataclass(frozen=True, slots=True)
class Fit:
    """Where a snapshot fits: into engines of which all of this is equal.

    Attributes:
        model: SHA-256 of the model file, as `sha256:<64 hex digits>`.
        build: the build of llama.cpp.
        layout: fingerprint of the KV cells' types and sizes.
    """

    model: str
    build: str
    layout: str


@dataclass(frozen=True, slots=True)
class KvSnapshot:
    """A conversation's tokens and KV cells.

    Attributes:
        fit: where it came from.
        tokens: its tokens, at least one.
        state: what llama.cpp wrote of its cells.
        keys: names of its beginnings; see `mecroute.prefix_keys`.
        session: its caller's name for it, or None.
    """

    fit: Fit
    tokens: tuple[int, ...]
    state: memoryview
    keys: tuple[str, ...] = ()
    session: str | None = None

    def parts(self) -> list[bytes | memoryview]:
        """Its bytes, in parts to be written one after the other."""
        head = _encode_head(self)
        digest = hashlib.sha256(head)
        digest.update(self.state)
        return [head, self.state, digest.digest()]


@dataclass(frozen=True, slots=True)
class SnapshotHead:
    """What a snapshot says of itself before its state.

    Attributes:
        fit, tokens, keys, session: as in `KvSnapshot`.
        state_bytes: length of the state.
        length: bytes of the head itself.
    """

    fit: Fit
    tokens: tuple[int, ...]
    keys: tuple[str, ...]
    session: str | None
    state_bytes: int
    length: int


def decode(data: bytes) -> KvSnapshot:
    """Read a snapshot, and check that it is whole.

    Raises:
        InvalidSnapshotError: it is not one, or was cut off or changed.
    """
    head = decode_head(data)
    if len(data) != head.length + head.state_bytes + _DIGEST_BYTES:
        raise InvalidSnapshotError(
            f"the snapshot has {len(data):,} bytes and says that it has "
            f"{head.length + head.state_bytes + _DIGEST_BYTES:,}"
        )
    view = memoryview(data)
    if hashlib.sha256(view[:-_DIGEST_BYTES]).digest() != bytes(view[-_DIGEST_BYTES:]):
        raise InvalidSnapshotError("the snapshot's SHA-256 is not that of its content")
    state = view[head.length : -_DIGEST_BYTES]
    return KvSnapshot(head.fit, head.tokens, state, head.keys, head.session)


def read_head(file: BinaryIO) -> SnapshotHead:
    """Read only the head, from the beginning of a file.

    Raises:
        InvalidSnapshotError: it is none.
    """
    start = file.read(len(MAGIC) + _LENGTH.size)
    if len(start) == len(MAGIC) + _LENGTH.size and start.startswith(MAGIC):
        (length,) = _LENGTH.unpack_from(start, len(MAGIC))
        if length <= _MAX_HEADER_BYTES:
            start += file.read(length)
            facts = _facts(start, length)
            start += file.read(4 * facts["tokens"])
    return decode_head(start)


def decode_head(data: bytes) -> SnapshotHead:
    """Read the head at the beginning of these bytes.

    Raises:
        InvalidSnapshotError: there is none.
    """
    start = len(MAGIC) + _LENGTH.size
    if len(data) < start or not data.startswith(MAGIC):
        raise InvalidSnapshotError("this is no snapshot of a conversation")
    (length,) = _LENGTH.unpack_from(data, len(MAGIC))
    if length > _MAX_HEADER_BYTES or len(data) < start + length:
        raise InvalidSnapshotError("the snapshot's header is cut off")
    facts = _facts(data, length)
    end = start + length + 4 * facts["tokens"]
    if len(data) < end:
        raise InvalidSnapshotError("the snapshot's tokens are cut off")
    tokens = struct.unpack_from(f"<{facts['tokens']}i", data, start + length)
    return SnapshotHead(
        Fit(facts["model"], facts["build"], facts["layout"]),
        tokens,
        tuple(facts["keys"]),
        facts["session"],
        facts["state_bytes"],
        end,
    )


def _encode_head(snapshot: KvSnapshot) -> bytes:
    facts = {
        "version": VERSION,
        "model": snapshot.fit.model,
        "build": snapshot.fit.build,
        "layout": snapshot.fit.layout,
        "tokens": len(snapshot.tokens),
        "state_bytes": len(snapshot.state),
        "keys": snapshot.keys,
        "session": snapshot.session,
    }
    header = json.dumps(facts).encode()
    return (
        MAGIC
        + _LENGTH.pack(len(header))
        + header
        + struct.pack(f"<{len(snapshot.tokens)}i", *snapshot.tokens)
    )


def _facts(data: bytes, length: int) -> dict[str, Any]:
    """The header's fields, each checked."""
    start = len(MAGIC) + _LENGTH.size
    try:
        facts = json.loads(data[start : start + length])
    except (ValueError, RecursionError) as error:
        raise InvalidSnapshotError("the snapshot's header is not JSON") from error
    if not isinstance(facts, dict):
        raise InvalidSnapshotError("the snapshot's header is not a JSON object")
    if facts.get("version") != VERSION:
        raise InvalidSnapshotError(
            f"the snapshot is of format version {facts.get('version')!r}, and this node reads {VERSION}"
        )
    whole = {"tokens": (1, _MAX_TOKENS), "state_bytes": (1, 1 << 40)}
    for name, (low, high) in whole.items():
        if type(facts.get(name)) is not int or not low <= facts[name] <= high:
            raise InvalidSnapshotError(f"the snapshot's '{name}' is not a number from {low} to {high}")
    for name in ("model", "build", "layout"):
        if not isinstance(facts.get(name), str) or len(facts[name]) > 256:
            raise InvalidSnapshotError(f"the snapshot's '{name}' is not a short text")
    keys, session = facts.get("keys"), facts.get("session")
    if not isinstance(keys, list) or len(keys) > _MAX_KEYS:
        raise InvalidSnapshotError(f"the snapshot's 'keys' are not a list of at most {_MAX_KEYS}")
    if not all(isinstance(key, str) and _KEY.fullmatch(key) for key in keys):
        raise InvalidSnapshotError("a key of the snapshot is not 16 hexadecimal digits")
    if session is not None and not (isinstance(session, str) and SESSION_NAME.fullmatch(session)):
        raise InvalidSnapshotError("the snapshot's 'session' is not a name")
    return {**facts, "session": session}
