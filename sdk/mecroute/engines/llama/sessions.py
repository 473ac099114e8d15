"""Conversations that move between engines: out as bytes, and in again after every check that can be made."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any, TypeVar

from mecroute.engines.llama.kv_snapshot import Fit, KvSnapshot, decode
from mecroute.engines.llama.kv_state import StateLayout
from mecroute.engines.llama.kv_transfer import KvTransfer
from mecroute.errors import InvalidSnapshotError, SessionConflictError

T = TypeVar("T")


class ModelFile:
    """The file an engine was loaded from, and its digest. Thread-safe.

    Args:
        path: the file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stamp = _stamp(path)
        self._lock = threading.Lock()
        self._digest: str | None = None

    def digest(self) -> str:
        """`sha256:<64 hex digits>`; the first call reads the whole file.

        Raises:
            SessionConflictError: the file is not the one any more that was loaded.
        """
        with self._lock:
            if self._digest is None:
                found = ""
                try:
                    with self._path.open("rb") as file:
                        found = hashlib.file_digest(file, "sha256").hexdigest()
                    unchanged = _stamp(self._path) == self._stamp
                except OSError:
                    unchanged = False
                if not unchanged:
                    raise SessionConflictError(
                        f"'{self._path.name}' has changed since it was loaded, so nothing tells which model "
                        "its conversations belong to",
                        hint="load the model again",
                    )
                self._digest = f"sha256:{found}"
            return self._digest


class Sessions:
    """The conversations of one engine, for whoever moves them. Thread-safe; every call may take seconds.

    Args:
        file: the model's file.
        transfer: reads and writes the KV memory on the engine's thread.
        on_engine: has something done on that thread.
        n_vocab: size of the model's vocabulary.
    """

    def __init__(
        self,
        file: ModelFile,
        transfer: KvTransfer,
        on_engine: Callable[[Callable[[], Any]], Future[Any]],
        n_vocab: int,
    ) -> None:
        self._file = file
        self._transfer = transfer
        self._on_engine = on_engine
        self._n_vocab = n_vocab

    def fit(self) -> Fit:
        """Which snapshots fit.

        Raises:
            SessionConflictError: this model's conversations cannot be moved.
        """
        return self.fit_and_layout()[0]

    def fit_and_layout(self) -> tuple[Fit, StateLayout]:
        """The same, and how their state looks."""
        layout = self._do(self._transfer.layout)
        return Fit(self._file.digest(), llama_build(), layout.fingerprint), layout

    def export(self, name: str) -> KvSnapshot:
        """A copy of the conversation of that name, which stays where it is.

        Args:
            name: a session's name, or a key of `mecroute.prefix_keys`.

        Raises:
            SessionNotFoundError: there is none.
            SessionConflictError: it is being answered, or this model's conversations cannot be moved.
        """
        fit = self.fit()
        taken = self._do(lambda: self._transfer.take_named(name))
        return KvSnapshot(fit, taken.tokens, taken.state, taken.keys, taken.session)

    def admit(self, data: bytes, session: str | None) -> KvSnapshot:
        """Take in a conversation that another engine exported.

        Args:
            data: a snapshot. Nothing of it reaches llama.cpp before its digest, its origin, its tokens and
                the form of its state have been checked. Numbers within the state cannot be: whoever made it
                can make the answers to this conversation say anything, though to no other.
            session: the name it gets; None: the one in the snapshot.

        Raises:
            InvalidSnapshotError: it is not whole, or not what it says.
            SessionConflictError: it comes from another model, build or configuration.
            InsufficientRoomError: it does not fit.
        """
        snapshot, (fit, layout) = decode(data), self.fit_and_layout()
        for what, theirs, ours in (
            ("model file", snapshot.fit.model, fit.model),
            ("build of llama.cpp", snapshot.fit.build, fit.build),
            ("form of KV cells", snapshot.fit.layout, fit.layout),
        ):
            if theirs != ours:
                raise SessionConflictError(
                    f"the snapshot comes from another {what}: {theirs}, and here it is {ours}",
                    hint="serve the same model with the same release on both nodes",
                )
        if min(snapshot.tokens) < 0 or max(snapshot.tokens) >= self._n_vocab:
            raise InvalidSnapshotError(f"a token is outside the vocabulary of {self._n_vocab}")
        if (flaw := layout.flaw_in(snapshot.state, len(snapshot.tokens))) is not None:
            raise InvalidSnapshotError(f"the snapshot's state is not one of this model: {flaw}")
        self._do(
            lambda: self._transfer.put(
                snapshot.tokens,
                snapshot.state,
                keys=snapshot.keys,
                session=session or snapshot.session,
            )
        )
        return snapshot

    def _do(self, work: Callable[[], T]) -> T:
        result: T = self._on_engine(work).result()
        return result


def llama_build() -> str:
    """Names the build of llama.cpp: states are moved between equal builds only."""
    from importlib.metadata import version

    return f"llama-cpp-python {version('llama-cpp-python')}"


def _stamp(path: Path) -> tuple[int, ...]:
    stat = path.stat()
    return stat.st_ino, stat.st_size, stat.st_mtime_ns
