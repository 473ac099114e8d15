"""Texts as vectors whose similarity says whether they mean the same."""

from __future__ import annotations

import itertools
import math
import re
import zlib
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, Protocol

#: An embedder's own kind of vector; only that embedder compares it.
Vector = Any

_WORD = re.compile(r"\w+", re.UNICODE)
_BUCKETS = 1 << 20
#: A word says more than a piece of one, and one that every question holds says next to nothing.
_WORD_WEIGHT, _PAIR_WEIGHT, _PIECE_WEIGHT, _COMMON_WEIGHT = 1.0, 0.6, 0.25, 0.2
_COMMON_WORDS = (
    "a an and are as at be by can could d did do does for from give have how i if in is it its ll m me my of "
    "on or please re s should so some tell that the there this to up us ve want was we what when where which "
    "who why will with would you your"
)
_COMMON = frozenset(_COMMON_WORDS.split())


class Embedder(Protocol):
    """Turns texts into vectors. Thread-safe.

    Attributes:
        name: identifies it; a threshold that was calibrated for one holds for no other.
        is_fast: whether embedding a text takes well under a millisecond.
    """

    @property
    def name(self) -> str: ...

    @property
    def is_fast(self) -> bool: ...

    def embed(self, texts: Sequence[str]) -> list[Vector]:
        """One vector per text."""
        ...

    def similarity(self, one: Vector, other: Vector) -> float:
        """Cosine of two vectors, at most 1; 1 for equal texts."""
        ...

    def nearest(self, queries: Sequence[Vector], known: Sequence[Vector]) -> list[tuple[int, float]]:
        """The index of the most similar known vector for each query, and its similarity; `known` is not
        empty."""
        ...

    def close(self) -> None:
        """Release what it holds."""
        ...


class HashingEmbedder:
    """Hashed words, pairs of words and pieces of words (Weinberger et al. 2009, "Feature Hashing"). Needs
    nothing, and knows no synonyms: a model knows more."""

    name = "hashed-ngrams-1"
    is_fast = True

    def embed(self, texts: Sequence[str]) -> list[Vector]:
        """Sparse unit vectors, as dicts; see `Embedder`."""
        return [_hash(text) for text in texts]

    def similarity(self, one: Vector, other: Vector) -> float:
        """See `Embedder`."""
        if len(other) < len(one):
            one, other = other, one
        total: float = sum(value * other[key] for key, value in one.items() if key in other)
        return min(1.0, total)

    def nearest(self, queries: Sequence[Vector], known: Sequence[Vector]) -> list[tuple[int, float]]:
        """See `Embedder`."""
        postings: dict[int, list[tuple[int, float]]] = {}
        for index, vector in enumerate(known):
            for key, value in vector.items():
                postings.setdefault(key, []).append((index, value))
        found = []
        for query in queries:
            scores: dict[int, float] = {}
            for key, value in query.items():
                for index, other in postings.get(key, ()):
                    scores[index] = scores.get(index, 0.0) + value * other
            best = max(scores, key=lambda index: (scores[index], -index), default=0)
            found.append((best, min(1.0, scores.get(best, 0.0))))
        return found

    def close(self) -> None:
        """Nothing is held."""


def _hash(text: str) -> dict[int, float]:
    words = [word.lower() for word in _WORD.findall(text)]
    weights: defaultdict[str, float] = defaultdict(float)
    for word in words:
        if word in _COMMON:
            weights[f"w {word}"] += _COMMON_WEIGHT
            continue
        weights[f"w {word}"] += _WORD_WEIGHT
        padded = f"<{word}>"
        for start in range(len(padded) - 2):
            weights[f"p {padded[start : start + 3]}"] += _PIECE_WEIGHT
    for first, second in itertools.pairwise(words):
        if not (first in _COMMON and second in _COMMON):
            weights[f"b {first} {second}"] += _PAIR_WEIGHT
    vector: dict[int, float] = {}
    for feature, weight in weights.items():
        bucket = zlib.crc32(feature.encode()) % _BUCKETS
        vector[bucket] = vector.get(bucket, 0.0) + weight
    norm = math.sqrt(sum(value * value for value in vector.values()))
    return {key: value / norm for key, value in vector.items()} if norm else {}
