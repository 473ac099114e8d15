from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from openai.types import Completion
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from mecroute.engines.llama import GenerationRequest, LlamaEngine, SamplingParams
from mecroute.engines.llama.openai import (
    chat_chunks,
    chat_completion,
    parse_chat,
    parse_completion,
    text_chunks,
    text_completion,
    wants_usage,
)
from mecroute.errors import InvalidRequestError, TierUnreachableError

MESSAGES = [{"role": "user", "content": "Hello"}]


@pytest.fixture
def talking(engine: Callable[..., LlamaEngine], talking_model: Path) -> LlamaEngine:
    return engine(talking_model)


def chat(engine: LlamaEngine, **fields: Any) -> GenerationRequest:
    return parse_chat({"messages": MESSAGES, **fields}, engine)


# Requests


def test_all_supported_fields_are_read(talking: LlamaEngine) -> None:
    request = chat(
        talking,
        model="x",
        max_completion_tokens=7,
        max_tokens=9,
        temperature=0.5,
        top_p=0.6,
        top_k=5,
        min_p=0.1,
        seed=-1,
        frequency_penalty=0.1,
        presence_penalty=-0.2,
        repeat_penalty=1.1,
        stop=["a", "b"],
        stream=True,
        user="me",
        n=1,
    )
    assert request.prompt == talking.tokenize_chat(MESSAGES)
    assert request.max_tokens == 7
    assert request.stop == ("a", "b")
    assert request.sampling == SamplingParams(0.5, 0.6, 5, 0.1, 2**32 - 2, 0.1, -0.2, 1.1)


def test_fields_that_are_absent_null_or_say_nothing_leave_the_defaults(talking: LlamaEngine) -> None:
    empty = {"tools": [], "logprobs": False, "response_format": {"type": "text"}, "temperature": None}
    request = chat(talking, logit_bias=None, n=None, **empty)
    assert request.sampling == SamplingParams()
    assert request.max_tokens == talking.n_ctx


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"messages": None}, "messages"),
        ({"messages": []}, "messages is empty"),
        ({"messages": "hello"}, "messages"),
        ({"messages": ["hello"]}, r"messages\[0\]"),
        ({"messages": [{"role": "alien", "content": "x"}]}, r"messages\[0\]\.role"),
        ({"messages": [*MESSAGES, {"role": "user"}]}, r"messages\[1\]"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "image_url"),
        ({"messages": [{"role": "tool", "content": "x"}]}, r"messages\[0\]\.tool_call_id"),
        ({"messages": [{"role": "function", "content": "x"}]}, r"messages\[0\]\.role"),
        ({"n": 0}, "n is 0"),
        ({"n": 129}, "n is 129"),
        ({"n": True}, "n is not a whole number"),
        ({"functions": [{"name": "f"}]}, "'functions' is not supported by this server"),
        ({"logprobs": 3}, "logprobs"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs is 21"),
        ({"logit_bias": [1]}, "logit_bias"),
        ({"logit_bias": {"x": 1}}, "logit_bias"),
        ({"logit_bias": {"-1": 1}}, "logit_bias"),
        ({"logit_bias": {"1": 101}}, "logit_bias is 101"),
        ({"logit_bias": {"1": None}}, "logit_bias"),
        ({"response_format": "json"}, "response_format"),
        ({"response_format": {"type": "xml"}}, "response_format.type is 'xml'"),
        ({"response_format": {"type": "json_schema"}}, r"response_format\.json_schema\.schema is missing"),
        ({"grammar": 5}, "grammar"),
        ({"grammar": 'root ::= "a"', "response_format": {"type": "json_object"}}, "both"),
        ({"temprature": 0}, "'temprature'"),
        ({"temperature": 3}, "temperature is 3"),
        ({"temperature": float("nan")}, "temperature"),
        ({"temperature": True}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"top_p": -0.1}, "top_p"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"max_completion_tokens": -1}, "max_completion_tokens"),
        ({"stop": [""]}, "stop"),
        ({"stop": [1]}, "stop"),
        ({"stop": ["x"] * 17}, "17"),
        ({"seed": "x"}, "seed"),
    ],
)
def test_a_wrong_field_is_named(talking: LlamaEngine, fields: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidRequestError, match=said):
        chat(talking, **fields)


def test_a_developer_speaks_as_the_system(talking: LlamaEngine) -> None:
    parsed = chat(talking, messages=[{"role": "developer", "content": "Be brief"}, *MESSAGES])
    assert parsed.prompt == talking.tokenize_chat([{"role": "system", "content": "Be brief"}, *MESSAGES])


def test_usage_is_asked_for_in_stream_options() -> None:
    assert wants_usage({"stream_options": {"include_usage": True}})
    assert not wants_usage({"stream_options": {}})
    assert not wants_usage({})
    with pytest.raises(InvalidRequestError, match="stream_options"):
        wants_usage({"stream_options": True})


# Answers


def test_a_chat_completion_is_one_for_openais_types(talking: LlamaEngine) -> None:
    request = chat(talking, temperature=0, max_tokens=5)

    async def run() -> dict[str, Any]:
        return await chat_completion(talking.submit(request), "tiny:1", "chatcmpl-1")

    answer = asyncio.run(run())
    reply = ChatCompletion.model_validate(answer, strict=True)
    assert (reply.id, reply.model, reply.object) == ("chatcmpl-1", "tiny:1", "chat.completion")
    assert reply.choices[0].message.content == "ABCDE"
    assert reply.choices[0].finish_reason == "length"
    assert reply.usage
    assert reply.usage.prompt_tokens == len(request.prompt)
    assert (reply.usage.completion_tokens, reply.usage.total_tokens) == (5, len(request.prompt) + 5)
    assert reply.usage.prompt_tokens_details
    cached = reply.usage.prompt_tokens_details.cached_tokens
    timings = answer["timings"]
    assert (timings["prompt_n"], timings["predicted_n"]) == (len(request.prompt) - cached, 5)
    assert timings["prompt_per_second"] > 0
    assert timings["predicted_per_second"] > 0
    assert timings["ttft_ms"] >= timings["prompt_ms"] > 0


@pytest.mark.parametrize("include_usage", [True, False])
def test_chat_chunks_are_those_of_openais_types(talking: LlamaEngine, include_usage: bool) -> None:
    request = chat(talking, temperature=0, max_tokens=5)

    async def run() -> list[dict[str, Any]]:
        chunks = chat_chunks(talking.submit(request), "tiny:1", include_usage, "chatcmpl-1")
        return [chunk async for chunk in chunks]

    raw = asyncio.run(run())
    chunks = [ChatCompletionChunk.model_validate(chunk, strict=True) for chunk in raw]
    assert chunks[0].choices[0].delta.role == "assistant"
    assert all(chunk.choices[0].delta.role is None for chunk in chunks[1:] if chunk.choices)
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == "ABCDE"
    reasons = [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices]
    assert reasons == [None] * (len(reasons) - 1) + ["length"]
    assert [chunk.usage is not None for chunk in chunks] == [False] * len(reasons) + [True] * include_usage
    assert raw[-1]["timings"]["predicted_n"] == 5


def test_text_completions_come_whole_and_in_chunks(talking: LlamaEngine) -> None:
    body = {"prompt": "x", "temperature": 0, "max_tokens": 4, "stop": "C"}
    (request,) = parse_completion(body, talking)

    async def whole() -> dict[str, Any]:
        return await text_completion(talking.submit(request), "tiny", "cmpl-1")

    async def streamed() -> list[dict[str, Any]]:
        return [chunk async for chunk in text_chunks(talking.submit(request), "tiny", True, "cmpl-1")]

    answer = asyncio.run(whole())
    reply = Completion.model_validate(answer, strict=True)
    assert (reply.choices[0].text, reply.choices[0].finish_reason) == ("AB", "stop")
    assert reply.usage
    assert reply.usage.completion_tokens == 3
    raw = asyncio.run(streamed())
    assert "".join(chunk["choices"][0]["text"] for chunk in raw if chunk["choices"]) == "AB"
    assert raw[-2]["choices"][0]["finish_reason"] == "stop"
    assert raw[-1]["usage"]["completion_tokens"] == 3


def test_leaving_a_stream_early_stops_the_generation(talking: LlamaEngine) -> None:
    generation = talking.submit(chat(talking, max_tokens=4000))

    async def run() -> None:
        chunks = chat_chunks(generation, "tiny", False, "x")
        await anext(chunks)
        await chunks.aclose()  # type: ignore[attr-defined]

    asyncio.run(run())
    assert generation.cancelled
    # The only slot is free again.
    assert asyncio.run(chat_completion(talking.submit(chat(talking, max_tokens=1)), "tiny", "y"))


def test_an_answer_that_was_cancelled_is_an_error(talking: LlamaEngine) -> None:
    generation = talking.submit(chat(talking, max_tokens=4000))
    generation.cancel()
    with pytest.raises(TierUnreachableError, match="cancelled"):
        asyncio.run(chat_completion(generation, "tiny", "x"))
