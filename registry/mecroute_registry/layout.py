"""An OCI image layout on disk: `oci-layout`, `index.json` and `blobs/sha256/…`, safe between processes."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import secrets
import stat
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from mecroute_registry.digest import sha256_bytes
from mecroute_registry.errors import ArtifactError, DigestMismatchError
from mecroute_registry.oci import (
    INDEX_FILE,
    LAYOUT_BYTES,
    LAYOUT_FILE,
    MAX_DOCUMENT_BYTES,
    MAX_INDEX_BYTES,
    Descriptor,
    Index,
    Manifest,
)

_REPAIR_HINT = "restore it from a backup, or move the folder away and register or pull the models again"

#: `blobs/sha256/.partial-<hex>` is an unfinished download: kept, because the next pull resumes it.
PARTIAL_PREFIX = ".partial-"

_STALE_S = 24 * 3600


class Layout:
    """A content-addressed folder of blobs with one index.

    Blobs and documents appear whole or not at all: they are written beside their place, flushed to the disk
    and renamed. Everything that changes the index runs under an exclusive lock on `.lock`. Thread-safe;
    several processes may share one root.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._index = self.root / INDEX_FILE
        self._blobs = root / "blobs" / "sha256"

    # --- reading ------------------------------------------------------------------------------------------

    def read_index(self) -> Index:
        """Return the index; an empty one when nothing was written yet.

        Raises:
            ArtifactError: it is damaged or cannot be read.
        """
        path = self.root / INDEX_FILE
        with disk_errors("read", path):
            try:
                data = _read_bounded(path, MAX_INDEX_BYTES)
            except FileNotFoundError:
                return Index()
        return Index.parse(data, str(path), _REPAIR_HINT)

    def read_document(self, descriptor: Descriptor) -> bytes:
        """Return a small blob, its size and digest verified.

        Raises:
            ArtifactError: it is missing or cannot be read.
            DigestMismatchError: its bytes are not those of its digest.
        """
        path = self.blob_path(descriptor.digest)
        with disk_errors("read", path):
            try:
                data = _read_bounded(path, MAX_DOCUMENT_BYTES)
            except FileNotFoundError as error:
                raise ArtifactError(f"{path} is missing from the registry", hint=_REPAIR_HINT) from error
        if sha256_bytes(data) != descriptor.digest:
            raise DigestMismatchError(
                f"{path} is damaged: its bytes do not match its name", hint=_REPAIR_HINT
            )
        return data

    def read_manifest(self, descriptor: Descriptor) -> Manifest:
        """Return a manifest, its digest verified; raises as `read_document` does."""
        data = self.read_document(descriptor)
        return Manifest.parse(data, str(self.blob_path(descriptor.digest)), _REPAIR_HINT)

    def blob_path(self, digest: str) -> Path:
        """Return where the blob of a valid digest is or would be."""
        return self._blobs / digest.removeprefix("sha256:")

    def partial_path(self, digest: str) -> Path:
        """Return where an unfinished download of that blob is or would be."""
        return self._blobs / f"{PARTIAL_PREFIX}{digest.removeprefix('sha256:')}"

    def index_stamp(self) -> tuple[int, int, int]:
        """Return what changes whenever the index does: inode, modification time (ns) and size (bytes)."""
        try:  # plainly, since every decision asks for it
            status = self._index.stat()
        except FileNotFoundError:
            return (0, 0, 0)
        except OSError:
            with disk_errors("read", self._index):
                raise
        return (status.st_ino, status.st_mtime_ns, status.st_size)

    # --- writing ------------------------------------------------------------------------------------------

    def create(self) -> None:
        """Make the folders and the `oci-layout` file where they are missing."""
        with disk_errors("create", self.root):
            self._blobs.mkdir(parents=True, exist_ok=True)
            if not (self.root / LAYOUT_FILE).exists():
                self._write(self.root / LAYOUT_FILE, LAYOUT_BYTES)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the exclusive lock of the layout; not reentrant."""
        self.create()
        path = self.root / ".lock"
        with contextlib.ExitStack() as stack:
            with disk_errors("lock", path):
                file = stack.enter_context(path.open("ab"))
                # Each open file has its own lock, so this also holds between threads of one process.
                fcntl.flock(file, fcntl.LOCK_EX)
            yield

    @contextlib.contextmanager
    def incoming(self) -> Iterator[Path]:
        """Give the path of a temporary file beside the blobs; what is left there is deleted at the end."""
        self.create()
        self._sweep()
        path = self._blobs / f".incoming-{os.getpid()}-{secrets.token_hex(8)}"
        try:
            yield path
        finally:
            path.unlink(missing_ok=True)

    def _sweep(self) -> None:
        """Delete what processes that were killed left behind; a copy that still runs has a recent time."""
        oldest = time.time() - _STALE_S
        for path in self._blobs.glob(".incoming-*"):
            with contextlib.suppress(FileNotFoundError):
                if path.stat().st_mtime < oldest:
                    path.unlink()

    def put_document(self, digest: str, data: bytes) -> None:
        """Store a small blob; call under the lock."""
        path = self.blob_path(digest)
        with disk_errors("write", path):
            # A damaged blob of the same name is put right rather than kept.
            if not path.exists() or path.stat().st_size != len(data) or path.read_bytes() != data:
                self._write(path, data)

    def put_file(self, digest: str, file: Path) -> None:
        """Move a file whose digest was verified into its place; call under the lock.

        `file` must lie on the same file system, as `incoming` and `partial_path` do.
        """
        target = self.blob_path(digest)
        with disk_errors("write", target):
            with file.open("rb+") as opened:
                os.fsync(opened.fileno())
            # Read-only, and no more widely readable than the umask made the file.
            file.chmod(stat.S_IMODE(file.stat().st_mode) & 0o444)
            file.replace(target)
            _sync_folder(self._blobs)

    def delete_blobs(self, digests: frozenset[str]) -> None:
        """Delete blobs; call under the lock, after the index no longer needs them."""
        for digest in digests:
            with disk_errors("delete", self.blob_path(digest)):
                self.blob_path(digest).unlink(missing_ok=True)

    def write_index(self, index: Index) -> None:
        """Replace the index; call under the lock, after every blob it names is in place."""
        path = self.root / INDEX_FILE
        with disk_errors("write", path):
            self._write(path, index.encode())

    def commit(self, entries: tuple[Descriptor, ...], documents: Mapping[str, bytes]) -> None:
        """Store small blobs and add index entries; call under the lock."""
        for digest, data in documents.items():
            self.put_document(digest, data)
        index = self.read_index()
        changed = index.adding(entries)
        if changed != index:
            self.write_index(changed)

    def _write(self, path: Path, data: bytes) -> None:
        temporary = path.with_name(f".{path.name}-{os.getpid()}-{secrets.token_hex(8)}")
        try:
            with temporary.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
        _sync_folder(path.parent)


@contextlib.contextmanager
def disk_errors(verb: str, path: Path) -> Iterator[None]:
    """Turn an `OSError` into an `ArtifactError` that names the file and what to do."""
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        hint = "free some disk space" if full else "check the permissions of that folder"
        raise ArtifactError(f"cannot {verb} {path}: {error.strerror or error}", hint=hint) from error


def _read_bounded(path: Path, limit: int) -> bytes:
    with path.open("rb") as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise ArtifactError(f"{path} is damaged: larger than {limit} bytes", hint=_REPAIR_HINT)
    return data


def _sync_folder(folder: Path) -> None:
    # A rename is durable only once its folder is.
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
