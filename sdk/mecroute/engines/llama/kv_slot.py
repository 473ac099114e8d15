"""One sequence of the KV memory, and how many cells several of them take that share some."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


class Run:
    """Cells that one sequence computed in a row. Others may come to hold some of them too."""

    __slots__ = ()


class Slot:
    """One sequence of the KV memory.

    Attributes:
        id: llama.cpp's sequence id.
        tokens: what the memory holds for it, in order from position 0.
        busy: whether a running request owns it. An idle slot's tokens are a cache.
        last_used: when it was last given to or back by a request; larger is later.
        session: the caller's name for the conversation, or None.
    """

    __slots__ = (
        "_earlier",
        "_keys",
        "_named_length",
        "_runs",
        "busy",
        "id",
        "last_used",
        "session",
        "tokens",
    )

    def __init__(self, slot_id: int) -> None:
        self.id = slot_id
        self.tokens: list[int] = []
        self.busy = False
        self.last_used = 0
        self._keys: tuple[str, ...] = ()
        self._named_length = 0
        self._earlier: tuple[str, ...] = ()
        self.session: str | None = None
        #: Whose cells its tokens lie in: a run and the position from which on. The last one is its own, which
        #: nobody else adds to.
        self._runs: list[tuple[Run, int]] = [(Run(), 0)]

    @property
    def resident_keys(self) -> tuple[str, ...]:
        """Names of the conversation's beginnings (see `mecroute.prefix_keys`), the shortest first."""
        return self._keys if len(self.tokens) >= self._named_length else self._earlier

    def name(self, keys: tuple[str, ...], length: int) -> None:
        """Give it names that count once it holds `length` tokens; until then the earlier ones do."""
        self._earlier = self.resident_keys
        self._keys, self._named_length = keys, length

    def cut(self, length: int) -> None:
        """Its tokens from position `length` on are gone from the memory."""
        del self.tokens[length:]
        self._hold(self._runs, length)

    def share(self, source: Slot, length: int) -> None:
        """It holds the first `length` tokens of another one, in the very same cells."""
        self.tokens = source.tokens[:length]
        self._hold(source._runs, length)

    def clear(self) -> None:
        """It holds nothing any more, and belongs to no conversation."""
        self.tokens = []
        self._runs = [(Run(), 0)]
        self._keys = self._earlier = ()
        self._named_length = 0
        self.session = None

    def _hold(self, runs: Sequence[tuple[Run, int]], length: int) -> None:
        # What comes next needs cells of its own, even where another one has computed on from here.
        self._runs = [(run, start) for run, start in runs if start < length] + [(Run(), length)]

    def spans(self) -> Iterable[tuple[Run, int, int]]:
        """The cells it holds: a run, and the positions from and up to which."""
        ends = [start for _, start in self._runs[1:]] + [len(self.tokens)]
        return ((run, start, end) for (run, start), end in zip(self._runs, ends, strict=True))


def cells_of(slots: Iterable[Slot]) -> int:
    """How many KV cells slots hold together, each counted once."""
    # All holders of a run hold it from its first cell on, so the longest hold says how much of it there is.
    longest: dict[Run, int] = {}
    for slot in slots:
        for run, start, end in slot.spans():
            longest[run] = max(longest.get(run, 0), end - start)
    return sum(longest.values())
