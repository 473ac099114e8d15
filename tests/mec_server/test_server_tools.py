"""Tools and forms of answers in the APIs beside OpenAI's chat, as their own clients see them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anthropic
import httpx
import ollama
import openai
import pytest

from mecroute.engines.llama.engine import Generation, GenerationEvent, GenerationRequest, Usage
from mecroute_server.formats import anthropic as anthropic_format
from mecroute_server.formats import ollama as ollama_format
from mecroute_server.formats import responses as responses_format
from mecroute_server.generation import Reply
from mecroute_server.run import NodeServer
from mecroute_server.settings import ServerSettings
from support.server import running_node

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"town": {"enum": ["Ulm", "Bonn"]}, "celsius": {"type": "boolean"}},
    "required": ["town", "celsius"],
    "additionalProperties": False,
}
#: What a model says that calls the tool by itself; a real one would be far too large for a test.
CALL_FORM: dict[str, Any] = {
    "type": "object",
    "properties": {"name": {"const": "weather"}, "arguments": SCHEMA},
    "required": ["name", "arguments"],
    "additionalProperties": False,
}
FLAT = {
    "type": "function",
    "name": "weather",
    "description": "of a town",
    "parameters": SCHEMA,
    "strict": True,
}
NESTED = {
    "type": "function",
    "function": {"name": "weather", "description": "of a town", "parameters": SCHEMA},
}
THEIRS = {"name": "weather", "description": "of a town", "input_schema": SCHEMA}
QUESTION = [{"role": "user", "content": "The weather in Ulm?"}]


@pytest.fixture(scope="module")
def node(endless: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[NodeServer]:
    settings = ServerSettings(
        port=0,
        registry_root=tmp_path_factory.mktemp("registry"),
        model_files=(endless,),
        context=4096,
        threads=1,
        parallel=2,
    )
    with running_node(settings) as server:
        yield server


@pytest.fixture
def responses(node: NodeServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{node.url}/v1", api_key="none", max_retries=0, timeout=60) as client:
        yield client


@pytest.fixture
def messages(node: NodeServer) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=node.url, api_key="none", max_retries=0, timeout=60) as client:
        yield client


@pytest.fixture
def chats(node: NodeServer) -> Iterator[ollama.Client]:
    with ollama.Client(node.url, timeout=60) as client:
        yield client


def fits(arguments: Any) -> bool:
    return (
        set(arguments) == {"town", "celsius"}
        and arguments["town"] in ("Ulm", "Bonn")
        and isinstance(arguments["celsius"], bool)
    )


# Responses


def test_a_response_calls_a_function_and_takes_its_result(responses: openai.OpenAI) -> None:
    ask: dict[str, Any] = {"model": "endless", "tools": [FLAT]}
    choice: Any = {"type": "function", "name": "weather"}
    first = responses.responses.create(input="The weather in Ulm?", tool_choice=choice, **ask)
    (call,) = first.output
    assert call.type == "function_call"
    assert call.name == "weather"
    assert call.call_id
    assert fits(json.loads(call.arguments))
    assert first.status == "completed"
    assert first.tools[0].type == "function"
    answered = {"type": "function_call_output", "call_id": call.call_id, "output": "sunny"}
    history: list[Any] = [*QUESTION, call.to_dict(), answered]
    second = responses.responses.create(input=history, max_output_tokens=4, **ask)
    assert second.output[0].type == "message"
    assert first.usage
    assert second.usage
    assert second.usage.input_tokens > first.usage.input_tokens


def test_a_response_streams_a_call(responses: openai.OpenAI) -> None:
    tools: Any = [FLAT]
    with responses.responses.stream(
        model="endless", input="weather?", tools=tools, tool_choice="required"
    ) as stream:
        kinds = [event.type.removeprefix("response.") for event in stream]
        final = stream.get_final_response()
    assert kinds == [
        "created", "in_progress", "output_item.added", "function_call_arguments.delta",
        "function_call_arguments.done", "output_item.done", "completed",
    ]  # fmt: skip
    assert final.output[0].type == "function_call"
    assert fits(json.loads(final.output[0].arguments))


@pytest.mark.parametrize("stream", [False, True])
def test_a_response_has_the_form_that_was_asked_for(responses: openai.OpenAI, stream: bool) -> None:
    form: Any = {"format": {"type": "json_schema", "name": "w", "schema": SCHEMA, "strict": True}}
    ask: dict[str, Any] = {"model": "endless", "input": "weather?", "text": form}
    if stream:
        *_, last = responses.responses.create(stream=True, **ask)
        assert last.type == "response.completed"
        answer = last.response
    else:
        answer = responses.responses.create(**ask)
    assert fits(json.loads(answer.output_text))
    assert answer.text
    assert answer.text.format
    assert answer.text.format.type == "json_schema"


# Anthropic


def test_a_message_uses_a_tool_and_takes_its_result(messages: anthropic.Anthropic) -> None:
    ask: dict[str, Any] = {"model": "endless", "max_tokens": 200, "tools": [THEIRS]}
    first = messages.messages.create(messages=QUESTION, tool_choice={"type": "any"}, **ask)
    (use,) = first.content
    assert use.type == "tool_use"
    assert use.id.startswith("toolu_")
    assert use.name == "weather"
    assert fits(use.input)
    assert first.stop_reason == "tool_use"
    result = {"type": "tool_result", "tool_use_id": use.id, "content": [{"type": "text", "text": "sunny"}]}
    spoken: list[Any] = [
        *QUESTION,
        {"role": "assistant", "content": [{"type": "text", "text": "Let me see."}, use.to_dict()]},
        {"role": "user", "content": [result, {"type": "text", "text": "and?"}]},
    ]
    counted = messages.messages.count_tokens(model="endless", messages=spoken, tools=[THEIRS]).input_tokens
    second = messages.messages.create(messages=spoken, **{**ask, "max_tokens": 4})
    assert second.content[0].type == "text"
    assert second.usage.input_tokens + (second.usage.cache_read_input_tokens or 0) == counted
    assert counted > first.usage.input_tokens


def test_a_message_streams_a_tool_use(messages: anthropic.Anthropic) -> None:
    tools: list[Any] = [THEIRS]
    with messages.messages.stream(
        model="endless", max_tokens=200, messages=QUESTION, tools=tools,
        tool_choice={"type": "tool", "name": "weather"},
    ) as stream:  # fmt: skip
        final = stream.get_final_message()
    (use,) = final.content
    assert use.type == "tool_use"
    assert fits(use.input)
    assert final.stop_reason == "tool_use"


def test_no_tool_choice_means_no_tools(messages: anthropic.Anthropic) -> None:
    def count(**fields: Any) -> int:
        return messages.messages.count_tokens(model="endless", messages=QUESTION, **fields).input_tokens

    assert count(tools=[THEIRS], tool_choice={"type": "none"}) == count() < count(tools=[THEIRS])


def test_a_message_has_the_form_that_was_asked_for(http: httpx.Client) -> None:
    form = {"format": {"type": "json_schema", "schema": SCHEMA}}
    body = {"model": "endless", "max_tokens": 200, "messages": QUESTION, "output_config": form}
    answer = http.post("/v1/messages", json=body).json()
    assert fits(json.loads(answer["content"][0]["text"]))


# Ollama


@pytest.mark.parametrize("stream", [False, True])
def test_a_chat_has_the_form_that_was_asked_for(chats: ollama.Client, stream: bool) -> None:
    def ask(form: Any, **options: Any) -> str:
        pieces = chats.chat(model="endless", messages=QUESTION, format=form, stream=stream, options=options)
        return "".join(piece.message.content or "" for piece in (pieces if stream else [pieces]))

    assert fits(json.loads(ask(SCHEMA)))
    assert ask("json", num_predict=1, temperature=0) == "{"


def test_a_prompt_has_the_form_that_was_asked_for(chats: ollama.Client) -> None:
    assert fits(json.loads(chats.generate(model="endless", prompt="weather?", format=SCHEMA).response))


@pytest.mark.parametrize("stream", [False, True])
def test_a_chat_calls_a_tool_and_takes_its_result(chats: ollama.Client, stream: bool) -> None:
    pieces = chats.chat(model="endless", messages=QUESTION, tools=[NESTED], format=CALL_FORM, stream=stream)
    found = list(pieces) if stream else [pieces]
    assert "".join(piece.message.content or "" for piece in found) == ""
    (call,) = [call for piece in found for call in piece.message.tool_calls or ()]
    assert call.function.name == "weather"
    assert fits(call.function.arguments)
    assert found[-1].done_reason == "stop"
    history = [
        *QUESTION,
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "tool_name": "weather", "content": "sunny"},
    ]
    second = chats.chat(model="endless", messages=history, tools=[NESTED], options={"num_predict": 4})
    assert second.message.content
    assert (second.prompt_eval_count or 0) > (found[-1].prompt_eval_count or 0)


# All of them, on what a larger model would say


def spoken(text: str) -> Generation:
    request = GenerationRequest(prompt=(1, 2), max_tokens=99, functions=("weather",))
    made = Generation(request, max_tokens=99, cancel=lambda _: None)
    for at in range(0, len(text), 7):
        made.push(GenerationEvent(text[at : at + 7], 1))
    made.push(GenerationEvent("", 1, "stop", Usage(2, 9, 0, ttft_ms=1, prefill_ms=1, decode_ms=1)))
    return made


CALL = '<tool_call>{"name": "weather", "arguments": {"town": "%s"}}</tool_call>'
MIXED = f"Let me see. {CALL % 'Ulm'}\n{CALL % 'Bonn'} Done."


def whole_and_streamed(shapes: Any, whole: str, pieces: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    reply = Reply(id="resp_1", model="m", body={}, load_s=0)

    async def read() -> tuple[dict[str, Any], list[dict[str, Any]]]:
        answer = await getattr(shapes, whole)(spoken(MIXED), reply)
        return answer, [event async for event in getattr(shapes, pieces)(spoken(MIXED), reply)]

    return asyncio.run(read())


def test_text_and_calls_keep_their_order_in_a_response() -> None:
    whole, streamed = whole_and_streamed(responses_format, "response", "events")
    kinds = [item["type"] for item in whole["output"]]
    assert kinds == ["message", "function_call", "function_call", "message"]
    assert [json.loads(item["arguments"])["town"] for item in whole["output"][1:3]] == ["Ulm", "Bonn"]
    assert len({item["id"] for item in whole["output"]}) == 4

    def shown(items: list[dict[str, Any]]) -> list[Any]:
        return [
            item["content"][0]["text"].strip() if item["type"] == "message" else item["arguments"]
            for item in items
        ]

    assert shown(streamed[-1]["response"]["output"]) == shown(whole["output"])
    done = [event["item"] for event in streamed if event["type"] == "response.output_item.done"]
    assert done == streamed[-1]["response"]["output"]
    added = [e["output_index"] for e in streamed if e["type"] == "response.output_item.added"]
    assert added == [0, 1, 2, 3]


def test_text_and_uses_keep_their_order_in_a_message() -> None:
    whole, streamed = whole_and_streamed(anthropic_format, "message", "events")
    assert [block["type"] for block in whole["content"]] == ["text", "tool_use", "tool_use", "text"]
    assert [block["input"] for block in whole["content"][1:3]] == [{"town": "Ulm"}, {"town": "Bonn"}]
    assert whole["stop_reason"] == "tool_use"
    starts = [event for event in streamed if event["type"] == "content_block_start"]
    assert [event["index"] for event in starts] == [0, 1, 2, 3]
    assert [e["content_block"]["type"] for e in starts] == ["text", "tool_use", "tool_use", "text"]
    stops = [event["index"] for event in streamed if event["type"] == "content_block_stop"]
    assert stops == [0, 1, 2, 3]
    partial = [e["delta"]["partial_json"] for e in streamed if e.get("delta", {}).get("partial_json")]
    assert [json.loads(text) for text in partial] == [{"town": "Ulm"}, {"town": "Bonn"}]


def test_text_and_calls_are_all_in_a_chat() -> None:
    whole, streamed = whole_and_streamed(ollama_format, "chat_whole", "chat_pieces")
    calls = whole["message"]["tool_calls"]
    assert [call["function"]["arguments"]["town"] for call in calls] == ["Ulm", "Bonn"]
    assert [call["function"]["index"] for call in calls] == [0, 1]
    assert whole["message"]["content"].startswith("Let me see.")
    found = [call for piece in streamed for call in piece["message"].get("tool_calls", ())]
    assert [call["function"] for call in found] == [call["function"] for call in calls]


# What is wrong

USE = {"type": "tool_use", "id": "t1", "name": "weather", "input": {}}


def told(*contents: Any) -> dict[str, Any]:
    roles = ("user", "assistant")
    return {"messages": [{"role": roles[at % 2], "content": content} for at, content in enumerate(contents)]}


@pytest.mark.parametrize(
    ("path", "fields", "named"),
    [
        ("/v1/responses", {"tools": 3}, "tools"),
        ("/v1/responses", {"tools": [{"type": "function"}]}, "tools[0].name"),
        ("/v1/responses", {"tools": [{**FLAT, "parameters": 3}]}, "tools[0].parameters"),
        ("/v1/responses", {"tools": [{**FLAT, "surprise": 1}]}, "tools[0].surprise"),
        ("/v1/responses", {"tools": [FLAT], "tool_choice": {"type": "mcp"}}, "tool_choice"),
        ("/v1/responses", {"tools": [FLAT], "tool_choice": {"type": "function", "name": "x"}}, "'x'"),
        ("/v1/responses", {"text": 3}, "text"),
        ("/v1/responses", {"text": {"verbosity": "high"}}, "text.verbosity"),
        ("/v1/responses", {"text": {"format": {"type": "json_schema"}}}, "text.format.schema"),
        ("/v1/responses", {"input": [{"type": "function_call", "name": "x"}]}, "input[0]"),
        (
            "/v1/responses",
            {"input": [{"type": "function_call", "call_id": "c", "name": "x", "arguments": "{"}]},
            "input[0].arguments",
        ),
        (
            "/v1/responses",
            {"input": [{"type": "function_call_output", "call_id": "c", "output": "x"}]},
            "input[0].call_id",
        ),
        ("/v1/messages", {"tools": [{"type": "bash_20250124", "name": "bash"}]}, "tools[0]"),
        ("/v1/messages", {"tools": [{"name": "a b", "input_schema": SCHEMA}]}, "tools[0].name"),
        (
            "/v1/messages",
            {"tools": [{"name": "f", "input_schema": {"type": "string"}}]},
            "tools[0].input_schema",
        ),
        ("/v1/messages", {"tools": [THEIRS], "tool_choice": "any"}, "tool_choice"),
        ("/v1/messages", {"tool_choice": {"type": "any"}}, "no tools"),
        ("/v1/messages", {"output_config": {"format": {"type": "x"}}}, "output_config.format"),
        ("/v1/messages", told("hi", [{"type": "tool_use", "id": 3}]), "messages[1].content[0]"),
        ("/v1/messages", told("hi", [USE]), "followed by their results"),
        (
            "/v1/messages",
            told([{"type": "tool_result", "tool_use_id": "t1"}]),
            "messages[0].content[0].tool_use_id",
        ),
        (
            "/v1/messages",
            told("hi", [USE], [{"type": "tool_result", "tool_use_id": "t1", "content": [{"type": "image"}]}]),
            "messages[2].content[0].content[0]",
        ),
        ("/api/chat", {"format": 3}, "format"),
        ("/api/chat", {"format": {"type": "nonsense"}}, "format"),
        ("/api/chat", {"tools": [{"type": "function", "function": {}}]}, "tools[0].function.name"),
        (
            "/api/chat",
            {"messages": [{"role": "assistant", "tool_calls": [{"function": {}}]}]},
            "messages[0].tool_calls[0]",
        ),
        ("/api/generate", {"prompt": "x", "raw": True, "format": "json"}, "format"),
        ("/api/generate", {"prompt": "x", "tools": [NESTED]}, "tools"),
    ],
)
def test_what_is_wrong_with_tools_is_refused_by_name(
    http: httpx.Client, path: str, fields: dict[str, Any], named: str
) -> None:
    base: dict[str, dict[str, Any]] = {
        "/v1/responses": {"input": "hi"},
        "/v1/messages": {"messages": QUESTION, "max_tokens": 4},
        "/api/chat": {"messages": QUESTION},
        "/api/generate": {},
    }
    answer = http.post(path, json={"model": "endless", **base[path], **fields})
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert named in (error if isinstance(error, str) else error["message"])
