"""Ranked targets as columns of numbers: an object is made only of those that somebody looks at."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile
from typing import NamedTuple, overload

from mecroute.target import TargetState
from mecroute_registry.facts import Tier

#: How near a tier is: a tie goes to the nearer one, which needs no network and no shared capacity.
NEARNESS: dict[Tier, int] = {"device": 0, "mec": 1, "cloud": 2}


class Row(NamedTuple):
    """One ranked target.

    Args:
        score: the weighted sum of the factors, 0..1 (or what the policy's code gave).
        place: where its numbers are.
    """

    score: float
    nearness: int
    id: str
    state: TargetState
    p50_ms: float
    cost_usd: float
    cached_tokens: int
    place: int


class Rows(Sequence[Row]):
    """Ranked targets, best first; equal scores go to the nearer tier, then by name.

    Args:
        negative_scores, p50s_ms, costs_usd, cached_tokens: one number per state.
    """

    __slots__ = ("_cached_tokens", "_costs_usd", "_order", "_p50s_ms", "_scores", "_states")

    def __init__(
        self,
        states: list[TargetState],
        negative_scores: list[float],
        p50s_ms: list[float],
        costs_usd: list[float],
        cached_tokens: list[int],
    ) -> None:
        self._states = states
        self._p50s_ms, self._costs_usd, self._cached_tokens = p50s_ms, costs_usd, cached_tokens
        self._sort(negative_scores)

    def _sort(self, negative_scores: list[float]) -> None:
        self._scores = negative_scores
        self._order = order = sorted(range(len(negative_scores)), key=negative_scores.__getitem__)
        # Equal scores keep the order of the input so far, which says nothing.
        if len(set(negative_scores)) < len(order):
            order.sort(key=self._full_order)

    def _full_order(self, place: int) -> tuple[float, int, str]:
        target = self._states[place].target
        return self._scores[place], NEARNESS[target.tier], target.id

    def __len__(self) -> int:
        return len(self._order)

    @overload
    def __getitem__(self, index: int) -> Row: ...
    @overload
    def __getitem__(self, index: slice) -> list[Row]: ...
    def __getitem__(self, index: int | slice) -> Row | list[Row]:
        if isinstance(index, slice):
            return [self._row(place) for place in self._order[index]]
        return self._row(self._order[index])

    def _row(self, place: int) -> Row:
        state = self._states[place]
        target = state.target
        return Row(
            -self._scores[place],
            NEARNESS[target.tier],
            target.id,
            state,
            self._p50s_ms[place],
            self._costs_usd[place],
            self._cached_tokens[place],
            place,
        )

    def within(self, margin: float) -> list[Row]:
        """The rows whose scores are within the margin of the best."""
        if not self._order:
            return []
        most = self._scores[self._order[0]] + margin
        return [
            self._row(place) for place in takewhile(lambda place: self._scores[place] <= most, self._order)
        ]

    def find(self, id: str) -> Row | None:
        """The row of a target; None where it is not ranked."""
        for place in self._order:
            if self._states[place].target.id == id:
                return self._row(place)
        return None

    def put_first(self, row: Row) -> None:
        """Let a row be tried before all others."""
        self._order.remove(row.place)
        self._order.insert(0, row.place)

    def rescore(self, scores: Sequence[float]) -> None:
        """Rank anew by these scores, given in the present order."""
        negative = list(self._scores)
        for place, score in zip(self._order, scores, strict=True):
            negative[place] = -score
        self._sort(negative)
