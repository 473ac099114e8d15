"""Drafts the rest of an answer from what it repeats: the prompt, or itself."""

from __future__ import annotations

from collections.abc import Sequence as Line

#: So many equal tokens in a row are taken for the beginning of a repetition.
NGRAM = 3


class PromptLookup:
    """The tokens of one request so far, and where each run of `NGRAM` of them was last.

    Not thread-safe.
    """

    __slots__ = ("_follows", "_tokens")

    def __init__(self) -> None:
        self._tokens: list[int] = []
        #: The position after the last occurrence of a run, unless that is the end.
        self._follows: dict[tuple[int, ...], int] = {}

    def __len__(self) -> int:
        return len(self._tokens)

    def extend(self, tokens: Line[int]) -> None:
        """Add what has been read or chosen since the last time."""
        first = max(0, len(self._tokens) - NGRAM)
        self._tokens.extend(tokens)
        new = self._tokens[first:]
        runs = zip(*(new[at:] for at in range(NGRAM)), strict=False)
        self._follows.update(zip(runs, range(first + NGRAM, len(self._tokens)), strict=False))

    def draft(self, limit: int) -> list[int]:
        """What followed the last tokens when they were there before; at most `limit`, or nothing."""
        tokens = self._tokens
        at = self._follows.get(tuple(tokens[-NGRAM:]))
        if at is None or limit < 1:
            return []
        found = tokens[at : at + limit]
        # What repeats itself with a short period goes on doing so.
        while len(found) < limit:
            found += found[: limit - len(found)]
        return found
