"""Several answers to one request."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from mecroute.engines.llama import GREEDY, GenerationRequest, LlamaEngine, SamplingParams
from mecroute.engines.llama.openai import chat_chunks, chat_completion, parse_chat
from mecroute.errors import InvalidRequestError, OverloadedError, TierUnreachableError

PROMPT = tuple(range(265, 305))


def texts(engine: LlamaEngine, request: GenerationRequest) -> list[str]:
    found = [""] * request.n
    for event in engine.submit(request):
        found[event.index] += event.text
    return found


@pytest.mark.parametrize("n_parallel", [1, 2, 4])
def test_choices_are_what_each_seed_gives_alone(engine: Callable[..., LlamaEngine], n_parallel: int) -> None:
    one = engine(n_parallel=n_parallel)
    request = GenerationRequest(
        PROMPT, max_tokens=1, sampling=SamplingParams(temperature=2, top_k=0, seed=5), n=4
    )
    alone = [
        texts(one, GenerationRequest(PROMPT, max_tokens=1, sampling=request.choice(at).sampling))[0]
        for at in range(4)
    ]
    assert texts(one, request) == alone


def test_greedy_choices_are_the_same_and_do_not_disturb_others(
    engine: Callable[..., LlamaEngine], decided: list[tuple[tuple[int, ...], str]]
) -> None:
    one = engine(n_parallel=8)
    running = [
        one.submit(GenerationRequest(prompt, max_tokens=16, sampling=GREEDY, n=1 + at % 3))
        for at, (prompt, _) in enumerate(decided)
    ]
    for generation, (_, answer) in zip(running, decided, strict=True):
        found = [""] * generation.request.n
        for event in generation:
            found[event.index] += event.text
        assert found == [answer] * generation.request.n


def test_the_prompt_is_computed_once(engine: Callable[..., LlamaEngine]) -> None:
    one = engine(n_parallel=3)
    texts(one, GenerationRequest(PROMPT, max_tokens=4, sampling=GREEDY, n=3))
    stats = one.stats()
    assert stats.prompt_tokens_total == 3 * len(PROMPT)
    assert stats.prefix_hit_tokens == 2 * (len(PROMPT) - 1)


def test_choices_have_openais_shape_whole_and_streamed(
    engine: Callable[..., LlamaEngine], talking_model: Path
) -> None:
    one = engine(talking_model, n_parallel=2)
    body = {"messages": [{"role": "user", "content": "x"}], "temperature": 0, "max_tokens": 4, "n": 3}

    async def run() -> tuple[dict[str, Any], list[dict[str, Any]]]:
        answer = await chat_completion(one.submit(parse_chat(body, one)), "tiny", "x")
        generation = one.submit(parse_chat(body, one))
        return answer, [chunk async for chunk in chat_chunks(generation, "tiny", True, "x")]

    answer, raw = asyncio.run(run())
    reply = ChatCompletion.model_validate(answer, strict=True)
    assert [(c.index, c.message.content) for c in reply.choices] == [(at, "ABCD") for at in range(3)]
    assert reply.usage
    assert reply.usage.completion_tokens == 12
    prompt = len(parse_chat(body, one).prompt)
    assert reply.usage.prompt_tokens == prompt
    chunks = [ChatCompletionChunk.model_validate(chunk, strict=True) for chunk in raw]
    for index in range(3):
        mine = [c.choices[0] for c in chunks if c.choices and c.choices[0].index == index]
        assert mine[0].delta.role == "assistant"
        assert "".join(choice.delta.content or "" for choice in mine) == "ABCD"
        assert mine[-1].finish_reason == "length"
    assert chunks[-1].usage
    assert chunks[-1].usage.completion_tokens == 12
    assert len([chunk for chunk in raw if "timings" in chunk and chunk["choices"]]) == 1


def test_cancelling_stops_every_choice(engine: Callable[..., LlamaEngine], talking_model: Path) -> None:
    one = engine(talking_model, n_parallel=2)
    generation = one.submit(GenerationRequest(PROMPT, max_tokens=4000, sampling=GREEDY, n=4))
    with generation:
        next(iter(generation))
    assert all(branch.cancelled for branch in generation.branches)
    assert texts(one, GenerationRequest(PROMPT, max_tokens=2, sampling=GREEDY, n=2)) == ["AB", "AB"]
    assert one.stats().queued == 0


def test_choices_count_against_the_queue(engine: Callable[..., LlamaEngine], talking_model: Path) -> None:
    one = engine(talking_model, n_parallel=1, max_queue=4)
    with pytest.raises(InvalidRequestError, match="n is 6"):
        one.submit(GenerationRequest(PROMPT, max_tokens=1, n=6))
    with one.submit(GenerationRequest(PROMPT, max_tokens=4000, sampling=GREEDY, n=4)):
        with pytest.raises(OverloadedError):
            one.submit(GenerationRequest(PROMPT, max_tokens=1, n=2))
        one.submit(GenerationRequest(PROMPT, max_tokens=1)).cancel()


def test_closing_the_engine_fails_every_choice(
    engine: Callable[..., LlamaEngine], talking_model: Path
) -> None:
    one = engine(talking_model, n_parallel=2)
    generation = one.submit(GenerationRequest(PROMPT, max_tokens=8000, sampling=GREEDY, n=4))
    one.close()
    with pytest.raises(TierUnreachableError, match="closed"):
        for _ in generation:
            pass
