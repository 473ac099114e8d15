"""The topics of requests that come without instructions; see `topic.py` for what one is."""

from __future__ import annotations

from typing import Protocol

from mecroute.predict.topic import hashed_topic, word_topic


class Encoder(Protocol):
    """A model that tells topics apart.

    Attributes:
        name: of the model; topics of different models have nothing in common.
    """

    name: str

    async def topic(self, text: str) -> str | None:
        """The name of the nearest topic; None where it cannot be had in time."""
        ...


class Topics:
    """Names the topic of a text, as a kind of request.

    Args:
        encoder: a model for it; None: the word vectors that ship with the package.
    """

    def __init__(self, encoder: Encoder | None = None) -> None:
        self._encoder = encoder

    def prepare(self) -> None:
        """Read the word vectors; an encoder is loaded by the first text that it may read."""
        word_topic("what is said here")

    async def kind(self, text: str, *, may_encode: bool) -> str | None:
        """The kind of a request that is about this.

        Args:
            text: what is asked.
            may_encode: whether a model may run for it.
        """
        if self._encoder is not None and may_encode:
            topic = await self._encoder.topic(text)
            if topic is not None:
                return f"topic-{self._encoder.name}-{topic}"
        topic = word_topic(text) or hashed_topic(text)
        return None if topic is None else f"topic-{topic}"
