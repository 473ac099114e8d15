"""Remembered questions, by what of them must be equal, searched by what may be similar."""

from __future__ import annotations

from collections import OrderedDict

from mecroute.caching.embedder import Embedder, Vector

_PER_FRAME = 256
_MAX_FRAMES = 4096


class SimilarQuestions:
    """Vectors of questions, grouped by their frame. For one event loop.

    Args:
        embedder: compares them.
        threshold: least similarity of a hit, as calibrated.
    """

    def __init__(self, embedder: Embedder, threshold: float) -> None:
        self.embedder = embedder
        self.threshold = threshold
        self._frames: OrderedDict[str, OrderedDict[str, Vector]] = OrderedDict()

    def knows(self, frame: str) -> bool:
        """Whether the questions of a frame are here."""
        return frame in self._frames

    def add(self, frame: str, key: str, vector: Vector) -> None:
        """Add a question; the oldest of its frame, and the least recently used frames, go."""
        questions = self._frames.setdefault(frame, OrderedDict())
        questions[key] = vector
        questions.move_to_end(key)
        while len(questions) > _PER_FRAME:
            questions.popitem(last=False)
        self._frames.move_to_end(frame)
        while len(self._frames) > _MAX_FRAMES:
            self._frames.popitem(last=False)

    def remove(self, frame: str, key: str) -> None:
        """Forget a question whose answer is gone."""
        questions = self._frames.get(frame)
        if questions is not None:
            questions.pop(key, None)

    def find(self, frame: str, vector: Vector) -> list[str]:
        """The keys of the questions that are similar enough, the most similar first."""
        questions = self._frames.get(frame)
        if not questions:
            return []
        self._frames.move_to_end(frame)
        scored = [(self.embedder.similarity(vector, other), key) for key, other in questions.items()]
        scored.sort(key=lambda pair: -pair[0])
        return [key for similarity, key in scored if similarity >= self.threshold]
