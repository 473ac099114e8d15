"""Remembered answers in this process, within a bound of bytes and of age."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from mecroute.outcome import Provenance

#: What an entry costs besides its text: keys, objects, the decision behind it.
_OVERHEAD_BYTES = 4096


@dataclass(frozen=True, slots=True)
class Remembered:
    """An answer given before, as the OpenAI-shaped body, with where it came from.

    `kind` is `exact` for the same request, `semantic` for one that means the same.
    """

    body: Mapping[str, Any]
    provenance: Provenance
    kind: Literal["exact", "semantic"] = "exact"


@dataclass(slots=True)
class _Entry:
    answer: Remembered
    at: float
    wall_at: float
    size_bytes: int


class Answers:
    """Answers by key; the least recently used go first. For one event loop.

    Args:
        ttl_s: age past which an answer is not given any more.
        max_bytes: of all answers together; an answer of more than a tenth of it is not kept.
        clock: monotonic seconds.
        wall_clock: Unix seconds. An answer's age is the larger one of both: the first stands still while a
            machine sleeps, the second may be set back.
    """

    def __init__(
        self,
        *,
        ttl_s: float,
        max_bytes: int,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._wall_clock = wall_clock
        self._ttl_s = ttl_s
        self._max_bytes = max_bytes
        self._clock = clock
        self._entries: OrderedDict[str, _Entry] = OrderedDict()
        self.size_bytes = 0

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: str) -> Remembered | None:
        """The answer of that key, unless it is too old."""
        entry = self._entries.get(key)
        if entry is None:
            return None
        age_s = max(self._clock() - entry.at, self._wall_clock() - entry.wall_at)
        if age_s > self._ttl_s:
            self._drop(key)
            return None
        self._entries.move_to_end(key)
        return entry.answer

    def put(self, key: str, answer: Remembered, text_bytes: int, *, age_s: float = 0.0) -> bool:
        """Keep an answer.

        Args:
            text_bytes: of the question and the answer.
            age_s: how old it is already.

        Returns:
            Whether it was kept.
        """
        size = text_bytes + _OVERHEAD_BYTES
        if size > self._max_bytes / 10 or age_s > self._ttl_s:
            return False
        self._drop(key)
        age_s = max(0.0, age_s)
        self._entries[key] = _Entry(answer, self._clock() - age_s, self._wall_clock() - age_s, size)
        self.size_bytes += size
        while self.size_bytes > self._max_bytes:
            self._drop(next(iter(self._entries)))
        return True

    def _drop(self, key: str) -> None:
        entry = self._entries.pop(key, None)
        if entry is not None:
            self.size_bytes -= entry.size_bytes
