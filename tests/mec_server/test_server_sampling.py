"""Logprobs, several choices, JSON schemas, grammars and tools, as OpenAI's unmodified client sees them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import httpx
import openai
import pytest
from openai.types.chat import ChatCompletionMessageParam, ChatCompletionToolParam
from pydantic import BaseModel

from mecroute_server.run import NodeServer
from support.server import SAYS
from support.tiny_gguf import FIRST_BYTE, write_tiny_gguf

HELLO: list[ChatCompletionMessageParam] = [{"role": "user", "content": "hi"}]
LAMP: ChatCompletionToolParam = {
    "type": "function",
    "function": {
        "name": "lamp",
        "parameters": {
            "type": "object",
            "properties": {"on": {"type": "boolean"}},
            "required": ["on"],
            "additionalProperties": False,
        },
    },
}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model that the others use, with room for a prompt that describes tools."""
    return write_tiny_gguf(tmp_path_factory.mktemp("models") / "tiny.gguf", says=SAYS, context_length=2048)


@pytest.fixture
def client(node: NodeServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{node.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def test_logprobs(client: openai.OpenAI) -> None:
    ask: dict[str, Any] = {"model": "tiny", "messages": HELLO, "temperature": 0, "max_tokens": 4}
    answer = client.chat.completions.create(**ask, logprobs=True, top_logprobs=3)
    assert answer.choices[0].logprobs
    content = answer.choices[0].logprobs.content
    assert content
    assert [entry.token for entry in content] == list(SAYS[:4])
    assert all(entry.bytes == [ord(entry.token)] and len(entry.top_logprobs) == 3 for entry in content)
    stream = client.chat.completions.create(**ask, logprobs=True, stream=True)
    chunks = [chunk.choices[0] for chunk in stream]
    entries = [entry for choice in chunks if choice.logprobs for entry in choice.logprobs.content or []]
    assert [entry.logprob for entry in entries] == pytest.approx(
        [entry.logprob for entry in content], abs=0.01
    )
    legacy = client.completions.create(model="tiny", prompt="x", temperature=0, max_tokens=2, logprobs=1)
    assert legacy.choices[0].logprobs
    assert legacy.choices[0].logprobs.tokens == list(SAYS[:2])


def test_logit_bias(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="tiny",
        messages=HELLO,
        temperature=0,
        max_tokens=2,
        logit_bias={str(FIRST_BYTE + ord("Z")): 100},
    )
    assert answer.choices[0].message.content == "ZZ"


def test_several_choices(client: openai.OpenAI) -> None:
    ask: dict[str, Any] = {"model": "tiny", "messages": HELLO, "temperature": 0, "max_tokens": 4, "n": 3}
    answer = client.chat.completions.create(**ask)
    assert [choice.message.content for choice in answer.choices] == [SAYS[:4]] * 3
    found = ["", "", ""]
    for chunk in client.chat.completions.create(**ask, stream=True):
        found[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert found == [SAYS[:4]] * 3
    legacy = client.completions.create(model="tiny", prompt="x", temperature=0, max_tokens=2, n=2)
    assert [choice.text for choice in legacy.choices] == [SAYS[:2]] * 2


class Answer(BaseModel):
    """What `parse` asks for."""

    mood: Literal["good", "bad"]
    sure: bool


def test_the_clients_own_parse_gets_its_model(client: openai.OpenAI) -> None:
    answer = client.chat.completions.parse(model="tiny", messages=HELLO, response_format=Answer, seed=3)
    assert isinstance(answer.choices[0].message.parsed, Answer)


def test_a_grammar(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="tiny", messages=HELLO, extra_body={"grammar": 'root ::= "up" | "down"'}
    )
    assert answer.choices[0].message.content in ("up", "down")


def test_a_tool_is_called_and_its_result_sent_back(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="tiny", messages=HELLO, tools=[LAMP], tool_choice="required", seed=1
    )
    assert answer.choices[0].finish_reason == "tool_calls"
    message = answer.choices[0].message
    assert message.tool_calls
    (call,) = message.tool_calls
    assert call.type == "function"
    assert json.loads(call.function.arguments) in ({"on": True}, {"on": False})
    history: list[Any] = [*HELLO, message, {"role": "tool", "tool_call_id": call.id, "content": "done"}]
    reply = client.chat.completions.create(
        model="tiny", messages=history, tools=[LAMP], temperature=0, max_tokens=4
    )
    assert reply.choices[0].message.content == SAYS[:4]


def test_a_named_tool_is_streamed(client: openai.OpenAI) -> None:
    with client.chat.completions.stream(
        model="tiny",
        messages=HELLO,
        tools=[LAMP],
        tool_choice={"type": "function", "function": {"name": "lamp"}},
        seed=2,
    ) as stream:
        for _ in stream:
            pass
        calls = stream.get_final_completion().choices[0].message.tool_calls
    assert calls
    assert calls[0].function.name == "lamp"
    assert set(json.loads(calls[0].function.arguments)) == {"on"}


@pytest.mark.parametrize(
    "fields",
    [
        {"grammar": "root ::= " + "(" * 5000},
        {"grammar": "root ::= root"},
        {"grammar": "what?"},
        {"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "alien"}}}},
        {"response_format": {"type": "json_schema", "json_schema": {"schema": {"$ref": "#"}}}},
        {"tools": [{"type": "function", "function": {"name": "f", "parameters": {"$ref": "#/x"}}}]},
    ],
)
def test_what_cannot_be_obeyed_is_refused_and_the_server_lives_on(
    http: httpx.Client, fields: dict[str, Any]
) -> None:
    for stream in (False, True):
        body = {"model": "tiny", "messages": HELLO, "stream": stream, **fields}
        answer = http.post("/v1/chat/completions", json=body)
        assert answer.status_code == 400
        assert next(iter(fields)) in answer.json()["error"]["message"]
    assert http.get("/readyz").status_code == 200
