"""`client.chat.completions`, `client.embeddings` and `client.models`: the shape of `openai.OpenAI`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Literal, TypeVar, overload

from pydantic import BaseModel, ValidationError

from mecroute._loop import LoopThread
from mecroute.errors import InvalidRequestError, TierResponseError
from mecroute.outcome import Provenance
from mecroute.request import ingest
from mecroute.requirements import Requirements
from mecroute.results import (
    ChatCompletion,
    Classification,
    CreateEmbeddingResponse,
    InferResult,
    Model,
    ModelList,
)
from mecroute.runtime import Runtime
from mecroute.streams import AsyncStream, Stream
from mecroute.target import ANY_MODEL

Messages = Sequence[Mapping[str, Any]]
Asked = Requirements | Mapping[str, Any] | None
GetRuntime = Callable[[], Awaitable[Runtime]]
S = TypeVar("S", bound=BaseModel)


class AsyncCompletions:
    """`client.chat.completions`."""

    def __init__(self, runtime: GetRuntime) -> None:
        self._runtime = runtime

    @overload
    async def create(
        self,
        *,
        messages: Messages,
        model: str = ...,
        requirements: Asked = ...,
        stream: Literal[False] = ...,
        **options: Any,
    ) -> ChatCompletion: ...
    @overload
    async def create(
        self,
        *,
        messages: Messages,
        model: str = ...,
        requirements: Asked = ...,
        stream: Literal[True],
        **options: Any,
    ) -> AsyncStream: ...
    @overload
    async def create(
        self, *, messages: Messages, model: str = ..., requirements: Asked = ...,
        stream: bool, **options: Any,
    ) -> ChatCompletion | AsyncStream: ...  # fmt: skip
    async def create(
        self,
        *,
        messages: Messages,
        model: str = "auto",
        requirements: Asked = None,
        stream: bool = False,
        **options: Any,
    ) -> ChatCompletion | AsyncStream:
        """Answer a conversation on the tier that serves it best.

        Args:
            messages: OpenAI chat messages. A last message of the role `assistant` is continued.
            model: `auto`, `NAME`, `NAME:VERSION`, or either behind a tier, as `mec/smollm2`.
            requirements: what the caller asks of the answer.
            stream: whether to return an `AsyncStream` of chunks.
            options: OpenAI's other request fields (`temperature`, `max_tokens`, `seed`, …).

        Returns:
            The whole answer, or a stream.

        Raises:
            InvalidRequestError: the request is malformed.
            NoEligibleTargetError: the requirements exclude every target.
            AllTargetsFailedError: every ranked target failed.
            DeadlineExceededError: the deadline passed.
        """
        request = ingest(
            "chat",
            model=model,
            body={**options, "messages": messages},
            requirements=requirements,
            stream=stream,
        )
        pipeline = (await self._runtime()).pipeline
        if not stream:
            body, provenance = await pipeline.complete(request)
            answer = _shape(ChatCompletion, body)
            answer._mecroute = provenance
            return answer
        sink: list[Provenance] = []
        chunks = pipeline.stream(request, sink)
        # The first chunk is awaited here, so that a refusal is raised by this call and not later.
        first = await anext(chunks, None)
        return AsyncStream(first, chunks, sink)


class AsyncChat:
    """`client.chat`."""

    def __init__(self, runtime: GetRuntime) -> None:
        self.completions = AsyncCompletions(runtime)


class AsyncEmbeddings:
    """`client.embeddings`."""

    def __init__(self, runtime: GetRuntime) -> None:
        self._runtime = runtime

    async def create(
        self,
        *,
        input: str | Sequence[str],
        model: str = "auto",
        requirements: Asked = None,
        **options: Any,
    ) -> CreateEmbeddingResponse:
        """Turn texts into vectors.

        Vectors of different models cannot be compared: name a model wherever you keep them.

        Args:
            input: a text or several.
            model: as for chat.

        Returns:
            One vector per text, float32 [dim], in the order given.

        Raises: as for chat.
        """
        request = ingest("embed", model=model, body={**options, "input": input}, requirements=requirements)
        body, provenance = await (await self._runtime()).pipeline.complete(request)
        answer = _shape(CreateEmbeddingResponse, body)
        answer._mecroute = provenance
        return answer


async def classify(
    runtime: GetRuntime,
    texts: str | Sequence[str],
    labels: Sequence[str] | None,
    model: str,
    requirements: Asked,
    options: dict[str, Any],
) -> Classification:
    """See `AsyncClient.classify`."""
    body = {**options, "input": texts, "labels": labels}
    request = ingest("classify", model=model, body=body, requirements=requirements)
    answered, provenance = await (await runtime()).pipeline.complete(request)
    answer = _shape(Classification, answered)
    answer._mecroute = provenance
    return answer


async def infer(
    runtime: GetRuntime,
    inputs: Sequence[Mapping[str, Any]],
    outputs: Sequence[str] | None,
    model: str,
    requirements: Asked,
) -> InferResult:
    """See `AsyncClient.infer`."""
    body: dict[str, Any] = {"inputs": inputs}
    if outputs is not None:
        if not isinstance(outputs, list | tuple) or not all(isinstance(name, str) for name in outputs):
            raise InvalidRequestError("outputs must be a list of names")
        body["outputs"] = [{"name": name} for name in outputs]
    request = ingest("infer", model=model, body=body, requirements=requirements)
    answered, provenance = await (await runtime()).pipeline.complete(request)
    answer = _shape(InferResult, answered)
    answer._mecroute = provenance
    return answer


class AsyncModels:
    """`client.models`."""

    def __init__(self, runtime: GetRuntime) -> None:
        self._runtime = runtime

    async def list(self) -> ModelList:
        """Every model that can be asked for now or after a deployment, with its tiers and heat."""
        resource = (await self._runtime()).pipeline.resource
        await resource.refresh()
        tiers: dict[str, list[str]] = {model.ref: [] for model in resource.in_registry()}
        registered = set(tiers)
        for state in resource.targets():
            if state.target.model != ANY_MODEL and state.unavailable is None:
                tiers.setdefault(state.target.model, []).append(state.target.tier)
        return ModelList(
            data=[
                Model(id=ref, tiers=tuple(dict.fromkeys(where)), heat=_heat(where, ref in registered))
                for ref, where in sorted(tiers.items())
            ]
        )


class Completions:
    """The blocking `client.chat.completions`."""

    def __init__(self, inner: AsyncCompletions, loop: LoopThread) -> None:
        self._inner = inner
        self._loop = loop

    @overload
    def create(
        self,
        *,
        messages: Messages,
        model: str = ...,
        requirements: Asked = ...,
        stream: Literal[False] = ...,
        **options: Any,
    ) -> ChatCompletion: ...
    @overload
    def create(
        self,
        *,
        messages: Messages,
        model: str = ...,
        requirements: Asked = ...,
        stream: Literal[True],
        **options: Any,
    ) -> Stream: ...
    @overload
    def create(
        self, *, messages: Messages, model: str = ..., requirements: Asked = ...,
        stream: bool, **options: Any,
    ) -> ChatCompletion | Stream: ...  # fmt: skip
    def create(
        self,
        *,
        messages: Messages,
        model: str = "auto",
        requirements: Asked = None,
        stream: bool = False,
        **options: Any,
    ) -> ChatCompletion | Stream:
        """Answer a conversation; see `AsyncCompletions.create`."""
        answer = self._loop.run(
            self._inner.create(
                messages=messages, model=model, requirements=requirements, stream=stream, **options
            )
        )
        return Stream(answer, self._loop) if isinstance(answer, AsyncStream) else answer


class Chat:
    """The blocking `client.chat`."""

    def __init__(self, inner: AsyncChat, loop: LoopThread) -> None:
        self.completions = Completions(inner.completions, loop)


class Embeddings:
    """The blocking `client.embeddings`."""

    def __init__(self, inner: AsyncEmbeddings, loop: LoopThread) -> None:
        self._inner = inner
        self._loop = loop

    def create(
        self,
        *,
        input: str | Sequence[str],
        model: str = "auto",
        requirements: Asked = None,
        **options: Any,
    ) -> CreateEmbeddingResponse:
        """Turn texts into vectors; see `AsyncEmbeddings.create`."""
        return self._loop.run(
            self._inner.create(input=input, model=model, requirements=requirements, **options)
        )


class Models:
    """The blocking `client.models`."""

    def __init__(self, inner: AsyncModels, loop: LoopThread) -> None:
        self._inner = inner
        self._loop = loop

    def list(self) -> ModelList:
        """Every model that can be asked for; see `AsyncModels.list`."""
        return self._loop.run(self._inner.list())


def _shape(kind: type[S], body: Mapping[str, Any]) -> S:
    try:
        return kind.model_validate(body)
    except ValidationError as error:
        raise TierResponseError(f"an answer is not what OpenAI's API promises: {error}") from error


def _heat(tiers: Sequence[str], registered: bool) -> str:
    if "mec" in tiers:
        return "hot"
    return "warm" if registered else "cold"
