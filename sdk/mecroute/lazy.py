"""Sequences whose items are made when somebody reads them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar, overload

T = TypeVar("T")


class Lazy(Sequence[T]):
    """So many items, each made when it is first read and then kept.

    Args:
        count: how many there are.
        make: makes the one at a place, 0..count-1.
    """

    __slots__ = ("_count", "_made", "_make")

    def __init__(self, count: int, make: Callable[[int], T]) -> None:
        self._count = count
        self._make = make
        self._made: dict[int, T] = {}

    def __reduce__(self) -> tuple[type[tuple[Any, ...]], tuple[Any, ...]]:
        # What is copied or pickled is what it says, and not what it is made from.
        return tuple, (tuple(self),)

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[T, ...]: ...
    def __getitem__(self, index: int | slice) -> T | tuple[T, ...]:
        if isinstance(index, slice):
            return tuple(self[place] for place in range(*index.indices(self._count)))
        place = index + self._count if index < 0 else index
        if not 0 <= place < self._count:
            raise IndexError(f"there are {self._count} items, and none at {index}")
        made = self._made.get(place)
        if made is None:
            made = self._made[place] = self._make(place)
        return made
