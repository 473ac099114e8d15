"""Token probabilities and logit_bias, against the model's own logits."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from openai.types import Completion
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from mecroute.engines.llama import GREEDY, GenerationRequest, LlamaEngine, SamplingParams
from mecroute.engines.llama.lane import MIN_OUTPUTS
from mecroute.engines.llama.openai import (
    chat_chunks,
    chat_completion,
    parse_chat,
    parse_completion,
    text_chunks,
    text_completion,
)
from mecroute.errors import InvalidRequestError
from support.oracle import Oracle
from support.tiny_gguf import FIRST_BYTE, IM_END

ASK: dict[str, Any] = {"messages": [{"role": "user", "content": "Hello"}], "temperature": 0}


@pytest.fixture
def talking(engine: Callable[..., LlamaEngine], talking_model: Path) -> LlamaEngine:
    return engine(talking_model, n_parallel=2)


def whole(engine: LlamaEngine, **fields: Any) -> ChatCompletion:
    async def run() -> dict[str, Any]:
        return await chat_completion(engine.submit(parse_chat({**ASK, **fields}, engine)), "tiny", "x")

    return ChatCompletion.model_validate(asyncio.run(run()), strict=True)


def test_logprobs_are_the_log_softmax_of_the_models_logits(
    engine: Callable[..., LlamaEngine], oracle: Oracle, decided: list[tuple[tuple[int, ...], str]]
) -> None:
    prompt, _ = decided[0]
    request = GenerationRequest(prompt, max_tokens=1, sampling=GREEDY, top_logprobs=3)
    (entry,) = [e for event in engine().submit(request) for e in event.logprobs]
    expected = oracle.logprobs(prompt)
    best = sorted(range(len(expected)), key=lambda token: -expected[token])[:3]
    assert entry.token == best[0]
    assert [candidate.token for candidate in entry.top] == best
    assert [c.logprob for c in entry.top] == pytest.approx([expected[token] for token in best], abs=1e-3)
    assert entry.logprob == entry.top[0].logprob


@pytest.mark.parametrize("n_parallel", [1, 3])
def test_a_scored_prompt_has_the_log_softmax_of_each_of_its_tokens(
    engine: Callable[..., LlamaEngine], oracle: Oracle, n_parallel: int
) -> None:
    one = engine(n_parallel=n_parallel, n_ctx=512)
    prompts = [
        tuple(np.random.default_rng(length).integers(IM_END + 1, 320, length).tolist())
        for length in (1, 2, MIN_OUTPUTS + 1, 5 * MIN_OUTPUTS)
    ]
    ask = {"max_tokens": 2, "sampling": GREEDY, "top_logprobs": 2, "scores_prompt": True}
    for _ in range(2):  # the second time all of them are in memory already
        asked = [one.submit(GenerationRequest(prompt, **ask)) for prompt in prompts]
        for prompt, generation in zip(prompts, asked, strict=True):
            events = list(generation)
            scored = events[0].prompt
            assert [entry.token for entry in scored] == list(prompt)
            assert math.isnan(scored[0].logprob)
            assert sum(len(event.prompt) for event in events) == len(prompt)
            assert len([entry for event in events for entry in event.logprobs]) == 2
            for at in {1, len(prompt) // 2, len(prompt) - 1} & set(range(1, len(prompt))):
                expected = oracle.logprobs(prompt[:at])
                assert scored[at].logprob == pytest.approx(expected[prompt[at]], abs=0.02)
                best = sorted(expected, reverse=True)[:2]
                assert [top.logprob for top in scored[at].top] == pytest.approx(best, abs=0.02)
            assert events[-1].usage
            assert events[-1].usage.cached_tokens == 0
    # Others find what a scored prompt has left in memory.
    events = list(one.submit(GenerationRequest(prompts[-1], max_tokens=1, sampling=GREEDY)))
    assert events[-1].usage
    assert events[-1].usage.cached_tokens == len(prompts[-1]) - 1


def test_chat_logprobs_have_openais_shape(talking: LlamaEngine, says: str) -> None:
    reply = whole(talking, max_tokens=len(says.encode()), logprobs=True, top_logprobs=2)
    assert reply.choices[0].logprobs
    content = reply.choices[0].logprobs.content
    assert content
    assert b"".join(bytes(entry.bytes or []) for entry in content) == says.encode()
    assert content[0].token == "A"
    assert all(len(entry.top_logprobs) == 2 for entry in content)
    assert all(entry.top_logprobs[0].logprob == entry.logprob < 0 for entry in content)


def test_nobody_else_gets_logprobs(talking: LlamaEngine) -> None:
    assert whole(talking, max_tokens=3).choices[0].logprobs is None


def test_streamed_logprobs_are_those_of_the_whole_answer(talking: LlamaEngine, says: str) -> None:
    fields = {"max_tokens": len(says.encode()), "logprobs": True, "top_logprobs": 1}
    want = whole(talking, **fields).choices[0].logprobs

    async def run() -> list[dict[str, Any]]:
        generation = talking.submit(parse_chat({**ASK, **fields}, talking))
        return [chunk async for chunk in chat_chunks(generation, "tiny", False, "x")]

    chunks = [ChatCompletionChunk.model_validate(chunk, strict=True) for chunk in asyncio.run(run())]
    got = [entry for c in chunks if c.choices[0].logprobs for entry in c.choices[0].logprobs.content or []]
    assert want
    assert [entry.token for entry in got] == [entry.token for entry in want.content or []]


def test_what_a_stop_string_cuts_off_has_no_logprobs(talking: LlamaEngine) -> None:
    reply = whole(talking, max_tokens=9, logprobs=True, stop="CD")
    assert reply.choices[0].message.content == "AB"
    assert reply.choices[0].logprobs
    assert [entry.token for entry in reply.choices[0].logprobs.content or []] == ["A", "B"]


def test_legacy_logprobs_say_where_each_token_begins(talking: LlamaEngine) -> None:
    body = {"prompt": "x", "temperature": 0, "max_tokens": 9, "logprobs": 2}

    async def run() -> tuple[dict[str, Any], list[dict[str, Any]]]:
        one = await text_completion(talking.submit_all(parse_completion(body, talking)), "tiny", "x")
        generation = talking.submit_all(parse_completion(body, talking))
        return one, [chunk async for chunk in text_chunks(generation, "tiny", False, "x")]

    answer, chunks = asyncio.run(run())
    found = Completion.model_validate(answer, strict=True).choices[0].logprobs
    assert found
    assert found.tokens
    # É is two tokens: the second begins within the character, which is then shown as unfinished.
    assert found.tokens[:7] == list("ABCDEFG")
    assert found.text_offset == [0, 1, 2, 3, 4, 5, 6, 7, 8]
    assert found.top_logprobs
    assert all(len(top) == 2 for top in found.top_logprobs[:7])
    streamed = [chunk["choices"][0]["logprobs"] for chunk in chunks]
    assert [offset for part in streamed if part for offset in part["text_offset"]] == found.text_offset


def test_a_bias_forbids_or_forces_a_token(talking: LlamaEngine) -> None:
    a, z = FIRST_BYTE + ord("A"), FIRST_BYTE + ord("Z")
    forced = whole(talking, max_tokens=3, logit_bias={str(z): 100}).choices[0].message.content
    assert forced == "ZZZ"
    forbidden = whole(talking, max_tokens=3, logit_bias={str(a): -100}).choices[0].message.content
    assert forbidden is not None
    assert not forbidden.startswith("A")


def test_a_bias_of_no_token_of_the_model_is_refused(talking: LlamaEngine) -> None:
    for token in (-1, 10**6):
        sampling = SamplingParams(logit_bias=((token, 1.0),))
        with pytest.raises(InvalidRequestError, match="logit_bias"):
            talking.submit(GenerationRequest((5,), max_tokens=1, sampling=sampling))
