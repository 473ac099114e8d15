"""Download a blob into a layout: resumed after an interruption, verified, never half there."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import time
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import BinaryIO

from mecroute_registry.digest import CHUNK_BYTES, Progress
from mecroute_registry.errors import DigestMismatchError, RemoteStoreError
from mecroute_registry.layout import Layout, disk_errors

#: Yields the bytes of the blob from an offset on.
Source = Callable[[int], Generator[bytes]]

# A connection that breaks is taken up again at once, but not for ever: three times without a new byte.
_RETRIES = 3
_RETRY_PAUSE_S = 0.2


class Download:
    """One blob on its way into a layout.

    Args:
        layout: where it goes.
        digest: what its bytes must hash to.
        size_bytes: its size.
        source: where its bytes come from.
        what: what it is and whence, for error messages.
    """

    def __init__(self, layout: Layout, digest: str, size_bytes: int, source: Source, what: str) -> None:
        self._layout = layout
        self._digest = digest
        self._size = size_bytes
        self._source = source
        self._what = what

    @contextlib.contextmanager
    def claim(self) -> Iterator[Path]:
        """Hold this blob's partial file; another process that wants the same blob waits here.

        Yields the path of the partial file, which may have been moved into place when this ends.
        """
        self._layout.create()
        path = self._layout.partial_path(self._digest)
        while True:
            with contextlib.ExitStack() as stack:
                with disk_errors("write", path):
                    file = stack.enter_context(path.open("ab"))
                    fcntl.flock(file, fcntl.LOCK_EX)
                # Who held the lock before us may have moved the file into place: it is not ours then.
                if not _is_at(file, path):
                    continue
                try:
                    yield path
                finally:
                    if _is_at(file, path) and os.fstat(file.fileno()).st_size == 0:
                        path.unlink()
                return

    def run(self, path: Path, progress: Progress | None) -> None:
        """Complete the partial file and verify it; call while it is claimed.

        What is already there is kept when a call fails half-way, and the next one goes on from it.

        Raises:
            RemoteStoreError: the source failed; a later call resumes.
            DigestMismatchError: the bytes are not those of the digest; they are discarded.
        """
        with disk_errors("write", path), path.open("r+b") as file:
            for last in (False, True):
                resumed = self._fetch(file, progress)
                if resumed is None:
                    return
                file.truncate(0)
                # Bytes left by an earlier call may be what is wrong: then one fresh download decides.
                if last or not resumed:
                    break
        raise DigestMismatchError(
            f"{self._what} is damaged: its bytes do not match {self._digest}",
            hint="delete that object in the store and push the model again",
        )

    def _fetch(self, file: BinaryIO, progress: Progress | None) -> bool | None:
        """Download what is missing; None when the digest is right, else whether old bytes were used."""
        if os.fstat(file.fileno()).st_size > self._size:
            file.truncate(0)
        digest = hashlib.sha256()
        at = 0
        file.seek(0)
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
            at += len(chunk)
        resumed = at > 0
        if progress is not None:
            progress(at, self._size)
        retries = _RETRIES
        while at < self._size:
            try:
                with contextlib.closing(self._source(at)) as chunks:
                    for chunk in chunks:
                        file.write(chunk)
                        digest.update(chunk)
                        at += len(chunk)
                        retries = _RETRIES
                        if at > self._size:
                            return resumed
                        if progress is not None:
                            progress(at, self._size)
                if at < self._size:
                    message = f"{self._what} ended after {at} of {self._size} bytes"
                    raise RemoteStoreError(message, hint="pull it again to resume", retryable=True)
            except RemoteStoreError as error:
                file.flush()
                if not error.retryable or retries == 0:
                    raise
                retries -= 1
                time.sleep(_RETRY_PAUSE_S)
        return None if f"sha256:{digest.hexdigest()}" == self._digest else resumed


def _is_at(file: BinaryIO, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False
