"""Conversations as files in a folder of bounded size: written whole or not at all, checked when read."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO
from uuid import uuid4

from mecroute.engines.llama.kv_snapshot import Fit, KvSnapshot, SnapshotHead, decode, read_head
from mecroute.errors import ConfigError, InvalidSnapshotError

_log = logging.getLogger(__name__)
_NAME = re.compile(r"[0-9a-f]{40}\.kv")
_UNFINISHED = re.compile(r"\.([0-9]{1,10})-[0-9a-f]{32}\.part")


class PrefixFolder:
    """The files of one model in a folder that several models and processes may share.

    Each file has mode 0600 and appears under its name only once it is complete. When the folder is over its
    bound, the files least recently written or read go, whichever model they are of.

    Args:
        root: the folder; made with mode 0700 if it is not there.
        max_bytes: of all files in it together, > 0.
        fit: which snapshots belong here.

    Raises:
        ConfigError: the folder cannot be used.

    One thread uses it at a time; other processes may use the same folder.
    """

    def __init__(self, root: Path, *, max_bytes: int, fit: Fit) -> None:
        check_folder(root)
        self._root = root
        self._max_bytes = max_bytes
        self._fit = fit
        name = hashlib.sha256(repr((fit.model, fit.build, fit.layout)).encode()).hexdigest()[:32]
        self._folder = root / name
        self._folder.mkdir(mode=0o700, exist_ok=True)

    def scan(self) -> Iterator[tuple[Path, SnapshotHead]]:
        """What is there, the least recently used first. Damaged files are removed, others ignored."""
        self._remove_unfinished()
        for path in _by_age(self._folder.iterdir()):
            if not _NAME.fullmatch(path.name):
                continue
            try:
                with _open(path) as file:
                    head = read_head(file)
                if head.fit != self._fit:
                    raise InvalidSnapshotError("it is of another model")
            except (OSError, InvalidSnapshotError) as error:
                self.remove(path, because=error)
                continue
            yield path, head

    def read(self, path: Path) -> KvSnapshot | None:
        """A file's content; None if it is gone or damaged, and then it is removed."""
        try:
            with _open(path) as file:
                data = file.read()
            snapshot = decode(data)
            if snapshot.fit != self._fit:
                raise InvalidSnapshotError("it is of another model")
        except FileNotFoundError:
            return None
        except (OSError, InvalidSnapshotError) as error:
            self.remove(path, because=error)
            return None
        with contextlib.suppress(OSError):
            os.utime(path)
        return snapshot

    def write(self, snapshot: KvSnapshot) -> Path | None:
        """Keep a conversation; None if it is too large for the folder, or the disk does not take it."""
        parts = snapshot.parts()
        size = sum(map(len, parts))
        if size > self._max_bytes:
            return None
        digest = hashlib.sha256(struct.pack(f"<{len(snapshot.tokens)}i", *snapshot.tokens)).hexdigest()
        path = self._folder / f"{digest[:40]}.kv"
        unfinished = self._folder / f".{os.getpid()}-{uuid4().hex}.part"
        try:
            self._trim(self._max_bytes - size)
            # No fsync: after a power failure the digest tells whether all of it came to the disk.
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
            with os.fdopen(os.open(unfinished, flags, 0o600), "wb") as file:
                for part in parts:
                    file.write(part)
            unfinished.replace(path)
        except OSError as error:
            _log.warning("a prefix cannot be kept in %s: %s", self._folder, error.strerror or error)
            unfinished.unlink(missing_ok=True)
            return None
        return path

    def remove(self, path: Path, *, because: Exception | None = None) -> None:
        """Delete a file, and say so where something is wrong with it."""
        if because is not None:
            _log.warning("removing %s from the prefix cache: %s", path, because)
        with contextlib.suppress(OSError):
            path.unlink()

    def size_bytes(self) -> int:
        """Bytes of all files in the folder, of any model."""
        return sum(size for _, size, _ in self._files())

    def _trim(self, room: int) -> None:
        files = sorted(self._files(), key=lambda file: file[2])
        held = sum(size for _, size, _ in files)
        for path, size, _ in files:
            if held <= room:
                break
            self.remove(path)
            held -= size

    def _files(self) -> Iterator[tuple[Path, int, int]]:
        for path in self._root.glob("*/*.kv"):
            with contextlib.suppress(OSError):
                stat = path.lstat()
                yield path, stat.st_size, stat.st_mtime_ns

    def _remove_unfinished(self) -> None:
        """Delete what processes left that are gone."""
        for path in self._folder.iterdir():
            part = _UNFINISHED.fullmatch(path.name)
            if part and not _is_running(int(part[1])):
                self.remove(path)


def check_folder(root: Path) -> None:
    """Make the folder if need be, and check that nobody else could put files into it.

    Raises:
        ConfigError: it cannot be used.
    """
    try:
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        stat = root.stat()
        usable = os.access(root, os.R_OK | os.W_OK | os.X_OK)
    except OSError as error:
        raise ConfigError(f"prefix_cache_dir {root} cannot be used: {error.strerror}") from error
    if not usable:
        raise ConfigError(f"prefix_cache_dir {root} may not be written by this user")
    # What is read from it goes into native code; a digest tells damage from content, not friend from foe.
    if stat.st_mode & 0o022 or stat.st_uid != os.geteuid():
        raise ConfigError(
            f"prefix_cache_dir {root} can be written by other users",
            hint="give it to the server's user alone: mode 0700",
        )


def _open(path: Path) -> BinaryIO:
    return os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW), "rb")


def _by_age(paths: Iterator[Path]) -> list[Path]:
    aged = []
    for path in paths:
        with contextlib.suppress(OSError):
            aged.append((path.lstat().st_mtime_ns, path))
    return [path for _, path in sorted(aged)]


def _is_running(pid: int) -> bool:
    if pid == os.getpid():
        return False  # of a process before with the same number: this one has only begun
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
