"""SHA-256 digests in OCI's notation, `sha256:<64 hex digits>`."""

from __future__ import annotations

import fcntl
import hashlib
import sys
from collections.abc import Callable
from pathlib import Path

#: Called with the bytes done so far and the bytes in all.
Progress = Callable[[int, int], None]

#: Linux's ioctl that shares the blocks of a file on file systems that can (btrfs, XFS, bcachefs).
_FICLONE = 0x40049409

#: Large enough that hashing releases the GIL for long stretches, small enough for smooth progress.
CHUNK_BYTES = 1 << 20


def part_of(progress: Progress | None, before: int, total: int) -> Progress | None:
    """Return the progress of one file of several.

    Args:
        progress: of all of them.
        before: bytes of the files that are done.
        total: bytes of all files.
    """
    if progress is None:
        return None
    return lambda done, _: progress(before + done, total)


def sha256_bytes(data: bytes) -> str:
    """Return the digest of some bytes."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def sha256_file(path: Path, progress: Progress | None = None) -> str:
    """Return the digest of a file.

    Args:
        path: the file to read.
        progress: called after each chunk, in the calling thread.

    Raises:
        OSError: the file cannot be read.

    Safe to call from several threads at once.
    """
    digest = hashlib.sha256()
    chunk = memoryview(bytearray(CHUNK_BYTES))
    with path.open("rb", buffering=0) as file:
        total = path.stat().st_size
        done = 0
        while count := file.readinto(chunk):
            digest.update(chunk[:count])
            done += count
            if progress is not None:
                progress(done, total)
    return f"sha256:{digest.hexdigest()}"


def copy_file(source: Path, target: Path, progress: Progress | None = None) -> str:
    """Copy a file and return the digest of the bytes that were copied.

    The copy shares the blocks of the original where the file system can do that; it is never a link, so that
    changing the original does not change the copy.

    Args:
        source: the file to read.
        target: the file to write; it must not exist.
        progress: called after each chunk, in the calling thread.

    Raises:
        OSError: one of the two cannot be read or written.
    """
    digest = hashlib.sha256()
    chunk = memoryview(bytearray(CHUNK_BYTES))
    with source.open("rb", buffering=0) as reader, target.open("xb", buffering=0) as writer:
        total = source.stat().st_size
        cloned = _clone(reader.fileno(), writer.fileno())
        done = 0
        with target.open("rb", buffering=0) if cloned else reader as file:
            while count := file.readinto(chunk):
                digest.update(chunk[:count])
                written = count if cloned else 0
                while written < count:
                    written += writer.write(chunk[written:count])
                done += count
                if progress is not None:
                    progress(done, total)
    return f"sha256:{digest.hexdigest()}"


def _clone(source: int, target: int) -> bool:
    if not sys.platform.startswith("linux"):
        return False
    try:
        fcntl.ioctl(target, _FICLONE, source)
    except OSError:
        return False
    return True
