"""Answers that were cut anywhere, also within a token or before the rest of a character, and go on."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mecroute.engines.llama import LlamaEngine
from mecroute.engines.llama.healing import Pieces, taken_off
from mecroute.engines.llama.openai import chat_completion, parse_chat
from support.tiny_gguf import write_tiny_gguf


def test_what_spells_a_text_its_beginning_or_more() -> None:
    vocabulary = [b"", b"a", b"b", b" ", b" r", b" red", b" re", b"re", b"\xff", b"\xff\xff", b"a", b"ab"]
    pieces = Pieces(vocabulary)

    def compatible(rest: bytes) -> list[int]:
        return sorted(pieces.compatible(rest).tolist())

    for rest in (b" re", b" red", b" redd", b"a", b"ab", b"\xff", b"z", b"b"):
        want = [i for i, p in enumerate(vocabulary) if p and (p.startswith(rest) or rest.startswith(p))]
        assert compatible(rest) == want
    assert pieces.spells(b"ab a")
    assert not pieces.spells(b"are")


@pytest.mark.parametrize(
    ("pieces", "said", "count"),
    [
        ([b"<end>", b"One", b" two"], b"One two", 1),
        ([b"<end>", b"One", b" tw", b"o"], b"One two", 2),
        ([b"A", b".", b" "], b"A. ", 3),  # " " may belong to the next word, and "." to it
        ([b" A", b".", b"\n"], b" A.\n", 3),
        ([b"b", b" A"], b"A", 0),  # what was said begins within this token
        ([b"", b"A"], b"A", 1),
        ([b"x" * 65], b"x" * 65, 0),
        ([], b"", 0),
    ],
)
def test_the_last_word_is_taken_off(pieces: list[bytes], said: bytes, count: int) -> None:
    assert taken_off(pieces, said) == count


def answer(engine: LlamaEngine, said: str | None, question: str, **fields: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": question}]
    if said is not None:
        messages.append({"role": "assistant", "content": said})
    request = parse_chat({"messages": messages, "temperature": 0, **fields}, engine)

    async def run() -> dict[str, Any]:
        return await chat_completion(engine.submit(request), "tiny", "x")

    return asyncio.run(run())


def text_of(reply: dict[str, Any]) -> str:
    text = reply["choices"][0]["message"]["content"]
    assert isinstance(text, str)
    return text


#: Cut within one of these, the rest is no token that the model has ever written.
PIECES = ("in", "▁the", "er", ".", "▁and", "on")


@pytest.mark.parametrize("speculation", ["off", "prompt-lookup"])
def test_an_answer_goes_on_from_any_cut(
    engine: Callable[..., LlamaEngine], tmp_path: Path, speculation: str
) -> None:
    one = engine(write_tiny_gguf(tmp_path / "m.gguf", says=PIECES), n_parallel=2, speculation=speculation)
    uncut = answer(one, None, "Say it", max_tokens=12, logprobs=True)
    whole = text_of(uncut)
    assert whole == "in theer. andon" * 2
    ends = [0]
    for entry in uncut["choices"][0]["logprobs"]["content"]:
        ends.append(ends[-1] + len(entry["token"]))
    for cut in range(1, len(whole)):
        reply = answer(one, whole[:cut], "Say it", max_tokens=sum(end > cut for end in ends))
        assert text_of(reply) == whole[cut:]
        # What is said again counts as the prompt's, as it would if it had stayed there.
        plain = one.tokenize_chat(
            [{"role": "user", "content": "Say it"}, {"role": "assistant", "content": whole[:cut]}]
        )
        assert reply["usage"]["prompt_tokens"] == len(plain)


@pytest.mark.parametrize("speculation", ["off", "prompt-lookup"])
def test_characters_of_several_bytes(
    engine: Callable[..., LlamaEngine], talking_model: Path, says: str, speculation: str
) -> None:
    talking = engine(talking_model, speculation=speculation)
    whole = says * 2
    for cut in range(1, len(whole)):
        left = len(whole[cut:].encode())
        reply = answer(talking, whole[:cut], "Say it", max_tokens=left, logprobs=True)
        assert text_of(reply) == whole[cut:]
        # Only of what is new.
        assert len(reply["choices"][0]["logprobs"]["content"]) == left


def test_a_grammar_goes_on_too(engine: Callable[..., LlamaEngine]) -> None:
    one = engine()
    said = '{"the": "in'
    schema = {"type": "object", "properties": {"the": {"enum": ["inner", "ingot"]}}, "required": ["the"]}
    form = {"type": "json_schema", "json_schema": {"schema": schema, "strict": True}}
    reply = answer(one, said, "x", response_format=form, max_tokens=40)
    assert json.loads(said + text_of(reply))["the"] in ("inner", "ingot")


def test_there_is_room_for_what_is_said_again(
    engine: Callable[..., LlamaEngine], talking_model: Path
) -> None:
    talking = engine(talking_model, n_ctx=128)
    head = len(talking.tokenize_chat([{"role": "user", "content": "x"}]))
    for spare in (1, 2, 63, 64, 65, 66, 70):
        said = "A" * (128 - head - spare)
        reply = answer(talking, said, "x")
        assert 1 <= reply["usage"]["completion_tokens"] <= spare
        assert text_of(reply).startswith("B"[: len(text_of(reply))])
        assert reply["choices"][0]["finish_reason"] == "length"


def test_several_answers_go_on_from_the_same_cut(
    engine: Callable[..., LlamaEngine], talking_model: Path
) -> None:
    talking = engine(talking_model, n_parallel=3)
    reply = answer(talking, "ABC", "x", n=3, max_tokens=2)
    assert [choice["message"]["content"] for choice in reply["choices"]] == ["DE"] * 3
