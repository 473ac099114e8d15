"""Runs a generation for a route, whichever API the route belongs to."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from fastapi import Request
from fastapi.responses import JSONResponse, Response

from mecroute.engines.llama.engine import GenerationRequest, LlamaEngine
from mecroute.engines.llama.generation import Answers
from mecroute.errors import InvalidRequestError
from mecroute_server.disconnect import CallerLeftError, unless_caller_leaves
from mecroute_server.framing import OPENAI_EVENTS, Framing
from mecroute_server.node import Node
from mecroute_server.sessions import session_name
from mecroute_server.slot import Lease
from mecroute_server.sse import EventStream
from mecroute_server.tracing import RequestSpan

_T = TypeVar("_T")
Asked = GenerationRequest | tuple[GenerationRequest, ...]

#: Tokenizing a body larger than this takes long enough to hold up the tokens of other streams.
_LARGE_BODY_CHARS = 16_384
#: How long a stream's status waits for its first token; after that it is 200, and heartbeats keep it alive.
_FIRST_CHUNK_S = 5.0


@dataclass(frozen=True, slots=True)
class Reply:
    """What an answer says beside its text.

    Attributes:
        id: of the answer, in the form of the endpoint's API.
        model: the reference of the model that answers.
        body: the request.
        load_s: how long the request waited for the model to be in memory.
    """

    id: str
    model: str
    body: Mapping[str, Any]
    load_s: float


def wants_stream(body: Mapping[str, Any], default: bool = False) -> bool:
    """The request's `stream`.

    Raises:
        InvalidRequestError: it is neither true nor false.
    """
    stream = body.get("stream")
    if stream is None:
        return default
    if not isinstance(stream, bool):
        raise InvalidRequestError("stream is not true or false")
    return stream


@dataclass(frozen=True, slots=True)
class Endpoint:
    """What makes one endpoint of an engine.

    Attributes:
        id_prefix: what the ids of its answers begin with.
        parse: reads the body of a request; one request to the engine for each prompt.
        whole: waits for the answer and shapes it.
        chunks: shapes the answer piece by piece.
        framing: how the pieces travel.
        wants_stream: whether a request wants them.
    """

    id_prefix: str
    parse: Callable[[Mapping[str, Any], LlamaEngine], Asked]
    whole: Callable[[Answers, Reply], Awaitable[dict[str, Any]]]
    chunks: Callable[[Answers, Reply], AsyncIterator[dict[str, Any]]]
    framing: Framing = OPENAI_EVENTS
    wants_stream: Callable[[Mapping[str, Any]], bool] = wants_stream


async def generate(request: Request, node: Node, endpoint: Endpoint, body: Mapping[str, Any]) -> Response:
    """Answer a request with a generation, whole or streamed; a caller that leaves frees its sequence.

    Args:
        request: a request whose body has been read.
        node: lends the engine and counts.
        endpoint: the API the request came by.
        body: the request's body.

    Raises:
        MecrouteError: what is wrong with the request, or why it cannot be served.
    """
    started_at = asyncio.get_running_loop().time()
    lease = await lend(request, node, body)
    load_s = asyncio.get_running_loop().time() - started_at
    with ExitStack() as held:
        held.callback(lease.release)
        streams = endpoint.wants_stream(body)
        session = session_name(request.headers)
        parsed = await parse_off_loop(endpoint.parse, body, lease.engine)
        asked = parsed if isinstance(parsed, tuple) else (parsed,)
        if asked[0].adapters:
            await asyncio.to_thread(lease.engine.prepare, asked[0])
        if session:
            asked = tuple(replace(one, session=session) for one in asked)
        generation = lease.engine.submit_all(asked)
        held.callback(generation.cancel)
        answer_id = f"{endpoint.id_prefix}{request.state.request_id.removeprefix('req-')}"
        reply = Reply(id=answer_id, model=lease.ref, body=body, load_s=load_s)
        try:
            if not streams:
                answer = await unless_caller_leaves(request, endpoint.whole(generation, reply))
                _count(request, node, lease, generation)
                return JSONResponse(answer)
            chunks = endpoint.chunks(generation, reply)
            first = asyncio.ensure_future(anext(chunks))
            held.callback(_drop, first)
            # A failure before the first token is still an HTTP status, if it comes soon.
            await unless_caller_leaves(request, asyncio.wait((first,), timeout=_FIRST_CHUNK_S))
            if first.done():
                first.result()
        except CallerLeftError:
            node.metrics.record_cancelled(lease.ref)
            return Response(status_code=499)  # nobody reads it; it tells the metrics
        give_back = held.pop_all().close  # now it is the stream that gives engine and sequence back

    def on_end(complete: bool) -> None:
        _count(request, node, lease, generation)
        give_back()
        if not complete:
            node.metrics.record_cancelled(lease.ref)

    return EventStream(chunks, on_end=on_end, first=first, framing=endpoint.framing)


async def lend(request: Request, node: Node, body: Mapping[str, Any]) -> Lease:
    """Lend the engine of the model that a request's body names; the caller releases it.

    Raises:
        InvalidRequestError: it names none.
        MecrouteError: as `EnginePool.acquire`.
    """
    name = body.get("model")
    if not isinstance(name, str) or not name:
        ready = ", ".join(slot.ref for slot in node.pool.ready()) or "none yet"
        raise InvalidRequestError(
            "'model' is missing: which model is asked?", hint=f"this node serves: {ready}"
        )
    lease = await node.pool.acquire(name, getattr(request.state, "keep_alive_s", None))
    request.state.model = lease.ref
    return lease


async def parse_off_loop(
    parse: Callable[[Mapping[str, Any], LlamaEngine], _T],
    body: Mapping[str, Any],
    engine: LlamaEngine,
) -> _T:
    """Read a body, in a thread where that takes long."""
    if len(str(body)) <= _LARGE_BODY_CHARS:
        return parse(body, engine)
    return await asyncio.to_thread(parse, body, engine)


def record_embedding(request: Request, node: Node, ref: str, prompt_tokens: int) -> None:
    """Count an embedding that is complete."""
    node.metrics.record_embedding(ref, prompt_tokens)
    if (span := _span_of(request)) is not None:
        span.embedded(prompt_tokens)


def _count(request: Request, node: Node, lease: Lease, generation: Answers) -> None:
    """Count a generation, if it is complete."""
    if generation.usage is None:
        return
    for one in generation.generations:
        assert one.usage is not None
        node.metrics.record_generation(lease.ref, one.usage)
    if (span := _span_of(request)) is not None:
        span.generated(generation)


def _span_of(request: Request) -> RequestSpan | None:
    """The request's span, where requests are traced."""
    span = getattr(request.state, "span", None)
    assert span is None or isinstance(span, RequestSpan)
    return span


def _drop(task: asyncio.Future[Any]) -> None:
    """Cancel a task nobody waits for any more, and let asyncio not call what it ends with lost."""
    task.cancel()
    task.add_done_callback(lambda done: done.cancelled() or done.exception())
