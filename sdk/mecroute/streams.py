"""Streamed answers: iterators of chunks that know, at their end, where the answer came from."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import suppress
from types import TracebackType
from typing import Any, Self

from pydantic import ValidationError

from mecroute._loop import LoopThread
from mecroute.errors import TierResponseError, UsageError
from mecroute.outcome import Provenance
from mecroute.results import ChatCompletionChunk


class AsyncStream:
    """Iterates over `ChatCompletionChunk`. For one event loop; to be read once.

    Close it (or use `async with`) when you stop reading early: the target is then told to stop.
    """

    def __init__(
        self, first: dict[str, Any] | None, rest: AsyncGenerator[dict[str, Any]], sink: list[Provenance]
    ) -> None:
        self._first = first
        self._rest = rest
        self._sink = sink
        self._items = self._chunks()

    @property
    def mecroute(self) -> Provenance | None:
        """Where the answer came from; None until the stream has ended."""
        return self._sink[0] if self._sink else None

    def __aiter__(self) -> AsyncIterator[ChatCompletionChunk]:
        return self._items

    async def __anext__(self) -> ChatCompletionChunk:
        return await anext(self._items)

    async def close(self) -> None:
        """Stop reading."""
        await self._items.aclose()
        await self._rest.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _chunks(self) -> AsyncGenerator[ChatCompletionChunk]:
        if self._first is not None:
            yield _shape(self._first)
        async for chunk in self._rest:
            yield _shape(chunk)


class Stream:
    """The blocking counterpart of `AsyncStream`."""

    def __init__(self, inner: AsyncStream, loop: LoopThread) -> None:
        self._inner = inner
        self._loop = loop
        self._items = loop.iterate(aiter(inner))

    @property
    def mecroute(self) -> Provenance | None:
        """Where the answer came from; None until the stream has ended."""
        return self._inner.mecroute

    def __iter__(self) -> Iterator[ChatCompletionChunk]:
        return self._items

    def __next__(self) -> ChatCompletionChunk:
        return next(self._items)

    def close(self) -> None:
        """Stop reading. A closed client has ended its streams already."""
        with suppress(UsageError):
            self._loop.run(self._inner.close())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _shape(chunk: dict[str, Any]) -> ChatCompletionChunk:
    try:
        return ChatCompletionChunk.model_validate(chunk)
    except ValidationError as error:
        raise TierResponseError(f"a stream chunk is not what OpenAI's API promises: {error}") from error
