"""GGUF files put together byte by byte, so that a test can make each number wrong."""

from __future__ import annotations

import random
import struct
from collections.abc import Sequence
from pathlib import Path

U32, F32, STRING, ARRAY, U64 = 4, 6, 8, 9, 10


def text(value: str) -> bytes:
    """A length and the UTF-8 bytes."""
    data = value.encode()
    return struct.pack("<Q", len(data)) + data


def entry(key: str, kind: int, value: bytes) -> bytes:
    """One metadata key with its type and its encoded value."""
    return text(key) + struct.pack("<I", kind) + value


def tensor(name: str, shape: Sequence[int], kind: int = 0, offset: int = 0) -> bytes:
    """One tensor's name, shape, type and offset."""
    return (
        text(name)
        + struct.pack("<I", len(shape))
        + struct.pack(f"<{len(shape)}Q", *shape)
        + struct.pack("<IQ", kind, offset)
    )


ARCHITECTURE = entry("general.architecture", STRING, text("llama"))


def gguf_bytes(
    entries: Sequence[bytes] = (ARCHITECTURE,),
    tensors: Sequence[bytes] = (tensor("w", [32]),),
    data: bytes = bytes(128),
    *,
    magic: bytes = b"GGUF",
    version: int = 3,
    tensor_count: int | None = None,
    key_count: int | None = None,
) -> bytes:
    """A whole file; the counts are right unless they are given."""
    header = magic + struct.pack(
        "<IQQ",
        version,
        len(tensors) if tensor_count is None else tensor_count,
        len(entries) if key_count is None else key_count,
    )
    header += b"".join(entries) + b"".join(tensors)
    return header + bytes(-len(header) % 32) + data


def write_model(path: Path, *, seed: int = 0, size_bytes: int = 4096, license_name: str = "mit") -> Path:
    """Write a file with a valid header and about `size_bytes` of seeded noise as its one tensor."""
    count = max(size_bytes // 4, 1)
    entries = (
        ARCHITECTURE,
        entry("general.license", STRING, text(license_name)),
        entry("general.file_type", U32, struct.pack("<I", 0)),
        entry("llama.context_length", U32, struct.pack("<I", 2048)),
    )
    noise = random.Random(seed).randbytes(count * 4)
    path.write_bytes(gguf_bytes(entries, (tensor("w", [count]),), noise))
    return path
