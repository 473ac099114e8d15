"""The disk behind the prefix cache: what is forgotten is written, and read again where that is faster."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from mecroute.engines.llama.kv_snapshot import Fit, KvSnapshot
from mecroute.engines.llama.kv_state import StateLayout
from mecroute.engines.llama.prefix_folder import PrefixFolder, check_folder
from mecroute.engines.llama.prefix_ram import Taken
from mecroute.engines.llama.radix import RadixTree
from mecroute.engines.llama.rates import Rate
from mecroute.errors import MecrouteError

_log = logging.getLogger(__name__)
#: Conversations that wait to be written take memory; what comes beyond so much is not kept.
MAX_BACKLOG_BYTES = 256 * 1024 * 1024
#: How fast a conversation comes back, until it has been measured.
_UNMEASURED_BYTES_PER_S = 100e6
_CLOSE_PATIENCE_S = 30.0


@dataclass(frozen=True, slots=True)
class PrefixDiskOptions:
    """Where prefixes are kept, and which.

    Attributes:
        folder: holds them.
        max_bytes: of all files in the folder, > 0.
        min_tokens: shorter ones are not worth a file, ≥ 1.
    """

    folder: Path
    max_bytes: int
    min_tokens: int


@dataclass(frozen=True, slots=True, eq=False)
class Stored:
    """A conversation on disk."""

    path: Path
    size_bytes: int


class Fetch:
    """A conversation on its way from the disk; `is_over` once it is there or is not going to come."""

    __slots__ = ("begun_at", "is_over", "is_used", "snapshot", "stored")

    def __init__(self, stored: Stored) -> None:
        self.stored = stored
        self.begun_at = time.perf_counter()
        self.is_over = False
        #: Whether the engine has taken it in, or tried to.
        self.is_used = False
        self.snapshot: KvSnapshot | None = None


class PrefixDisk:
    """Writes and reads in a thread of its own; the engine's thread only leaves work for it.

    Args:
        options: where and what.
        n_vocab: size of the vocabulary.

    Raises:
        ConfigError: the folder cannot be used.

    Thread-safe.
    """

    def __init__(self, options: PrefixDiskOptions, *, n_vocab: int) -> None:
        check_folder(options.folder)
        self._options = options
        self._n_vocab = n_vocab
        self._lock = threading.Lock()
        self._index: RadixTree[Stored] = RadixTree()
        self._by_path: dict[Path, Stored] = {}
        self._fetches: dict[Stored, Fetch] = {}
        self._rate = Rate(memory_s=1.0)
        #: Calls for the own thread; true where the engine is to look again afterwards.
        self._work: queue.SimpleQueue[Callable[[PrefixFolder], bool] | None] = queue.SimpleQueue()
        self._backlog = 0
        self._fit: Fit | None = None
        self._layout: StateLayout | None = None
        self.hits = 0
        self.hit_tokens = 0
        self._thread: threading.Thread | None = None

    def start(
        self, *, prepare: Callable[[], tuple[Fit, StateLayout]], on_fetched: Callable[[], None]
    ) -> None:
        """Begin to look what is there; until that is done nothing is found and nothing is kept.

        Args:
            prepare: called once in the own thread; says which snapshots fit, and how their state looks.
            on_fetched: called in that thread whenever a fetch is over.
        """
        self._thread = threading.Thread(
            target=self._run, args=(prepare, on_fetched), name="mecroute-prefix-disk", daemon=True
        )
        self._thread.start()

    @property
    def is_open(self) -> bool:
        """Whether it is in use."""
        return self._fit is not None

    # The engine thread's side

    def find(self, prompt: Sequence[int], *, beyond: int, prefill_tokens_per_s: float | None) -> Fetch | None:
        """Begin to read the conversation that begins most like a prompt, if that is faster than to compute.

        Args:
            prompt: tokens without the last one, which is always computed.
            beyond: how many of them are in memory.
            prefill_tokens_per_s: how fast prompts are computed; None if nobody knows.

        Returns:
            Its fetch, which others may wait for too; None if nothing is worth reading.
        """
        with self._lock:
            matches = self._index.matches(prompt)
            if not matches or matches[0][0] - beyond < self._options.min_tokens:
                return None
            length, holders = matches[0]
            stored = min(holders, key=lambda one: one.size_bytes)
            if not self._is_faster(stored, length - beyond, prefill_tokens_per_s):
                return None
            fetch = self._fetches.get(stored)
            if fetch is None:
                fetch = self._fetches[stored] = Fetch(stored)
                self._work.put(lambda folder: self._read(folder, fetch))
            return fetch

    def _is_faster(self, stored: Stored, tokens: int, prefill_tokens_per_s: float | None) -> bool:
        """Whether to read a conversation takes less time than to compute so many tokens."""
        if prefill_tokens_per_s is None:
            return True
        rate = self._rate.per_s or _UNMEASURED_BYTES_PER_S
        return stored.size_bytes / rate < tokens / prefill_tokens_per_s

    def used(self, fetch: Fetch, *, tokens: int) -> None:
        """The engine has taken a fetched conversation in; `tokens` is 0 where it could not."""
        with self._lock:
            if tokens:
                self.hits += 1
                self.hit_tokens += tokens
                took_s = time.perf_counter() - fetch.begun_at
                self._rate.add(fetch.stored.size_bytes, took_s)

    def wants(self, tokens: Sequence[int], size_bytes: int) -> bool:
        """Whether to keep a conversation that is about to be forgotten."""
        if not self.is_open or len(tokens) < self._options.min_tokens:
            return False
        if size_bytes > min(self._options.max_bytes, MAX_BACKLOG_BYTES - self._backlog):
            return False
        with self._lock:
            matches = self._index.matches(tokens)
            return not matches or matches[0][0] < len(tokens)

    def keep(self, taken: Taken) -> None:
        """Write a conversation, soon."""
        with self._lock:
            self._backlog += len(taken.state)
        self._work.put(lambda folder: self._write(folder, taken))

    def close(self) -> None:
        """Write what is waiting and end the thread; a second call does nothing.

        A disk that hangs is left to itself after a while.
        """
        if self._thread is not None and self._thread.is_alive():
            self._work.put(None)
            self._thread.join(_CLOSE_PATIENCE_S)

    # The own thread's side

    def _run(self, prepare: Callable[[], tuple[Fit, StateLayout]], on_fetched: Callable[[], None]) -> None:
        try:
            fit, self._layout = prepare()
            folder = PrefixFolder(self._options.folder, max_bytes=self._options.max_bytes, fit=fit)
            for path, head in folder.scan():
                self._add(path, head.tokens)
        except MecrouteError as error:
            _log.warning("prefixes are not kept on disk: %s", error)
            return
        self._fit = fit
        while (work := self._work.get()) is not None:
            if work(folder):
                on_fetched()

    def _write(self, folder: PrefixFolder, taken: Taken) -> bool:
        assert self._fit is not None
        path = folder.write(KvSnapshot(self._fit, taken.tokens, taken.state, taken.keys, taken.session))
        with self._lock:
            self._backlog -= len(taken.state)
            replaced = [one for one in self._index.ending_on(taken.tokens) if one.path != path]
        if path is None:
            return False
        # What the conversation was before it went on is part of what it is now.
        for stored in replaced:
            self._drop(stored)
            folder.remove(stored.path)
        self._add(path, taken.tokens)
        with self._lock:
            gone = [stored for stored in self._by_path.values() if not stored.path.exists()]
        for stored in gone:
            self._drop(stored)
        return False

    def _read(self, folder: PrefixFolder, fetch: Fetch) -> bool:
        snapshot = folder.read(fetch.stored.path)
        if snapshot is not None and (flaw := self._flaw_in(snapshot)) is not None:
            folder.remove(fetch.stored.path, because=ValueError(flaw))
            snapshot = None
        if snapshot is None:
            self._drop(fetch.stored)
        with self._lock:
            self._fetches.pop(fetch.stored, None)
        fetch.snapshot = snapshot
        fetch.is_over = True
        return True

    def _flaw_in(self, snapshot: KvSnapshot) -> str | None:
        assert self._layout is not None
        if min(snapshot.tokens) < 0 or max(snapshot.tokens) >= self._n_vocab:
            return "it has a token outside the vocabulary"
        return self._layout.flaw_in(snapshot.state, len(snapshot.tokens))

    def _add(self, path: Path, tokens: Sequence[int]) -> None:
        try:
            stored = Stored(path, path.stat().st_size)
        except OSError:
            return
        with self._lock:
            before = self._by_path.get(path)
            if before is not None:
                self._index.discard(before)
            self._by_path[path] = stored
            self._index.put(stored, tokens)

    def _drop(self, stored: Stored) -> None:
        with self._lock:
            self._index.discard(stored)
            if self._by_path.get(stored.path) is stored:
                del self._by_path[stored.path]
