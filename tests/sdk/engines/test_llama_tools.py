"""Tools: how a model is told of them, and how its calls are found in what it writes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from mecroute.engines.llama import ChatTemplate, LlamaEngine
from mecroute.engines.llama.openai import chat_chunks, chat_completion, parse_chat
from mecroute.engines.llama.tool_calls import ToolCall, ToolCallParser
from mecroute.errors import InvalidRequestError

MESSAGES = [{"role": "user", "content": "What is the weather in Ulm?"}]
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a town",
        "parameters": {
            "type": "object",
            "properties": {"town": {"$ref": "#/$defs/town"}, "celsius": {"type": "boolean"}},
            "required": ["town", "celsius"],
            "$defs": {"town": {"enum": ["Ulm", "Köln"]}},
        },
    },
}
NOTE = {"type": "function", "function": {"name": "note", "strict": True}}
#: A model that would call the tool by itself is far too large for a test: here a grammar makes it do so.
SPOKEN = (
    r'root ::= "Well. <tool_call>\n{\"name\": \"weather\", " '
    r'"\"arguments\": {\"town\": \"Ulm\"}}\n</tool_call>"'
)


@pytest.fixture
def talking(engine: Callable[..., LlamaEngine], talking_model: Path) -> LlamaEngine:
    return engine(talking_model)


def whole(engine: LlamaEngine, **fields: Any) -> ChatCompletion:
    async def run() -> dict[str, Any]:
        request = parse_chat({"messages": MESSAGES, "seed": 1, **fields}, engine)
        return await chat_completion(engine.submit(request), "tiny", "x")

    return ChatCompletion.model_validate(asyncio.run(run()), strict=True)


def streamed(engine: LlamaEngine, **fields: Any) -> list[ChatCompletionChunk]:
    async def run() -> list[dict[str, Any]]:
        request = parse_chat({"messages": MESSAGES, "seed": 1, **fields}, engine)
        return [chunk async for chunk in chat_chunks(engine.submit(request), "tiny", False, "x")]

    return [ChatCompletionChunk.model_validate(chunk, strict=True) for chunk in asyncio.run(run())]


NAMED = {"type": "function", "function": {"name": "weather"}}


@pytest.mark.parametrize("choice", ["required", NAMED])
def test_a_call_that_is_required_comes_and_fits_its_schema(talking: LlamaEngine, choice: Any) -> None:
    answer = whole(talking, tools=[WEATHER, NOTE], tool_choice=choice).choices[0]
    assert answer.finish_reason == "tool_calls"
    assert answer.message.content is None
    assert answer.message.tool_calls
    (call,) = answer.message.tool_calls
    assert call.type == "function"
    assert call.function.name in (("weather",) if choice == NAMED else ("weather", "note"))
    arguments = json.loads(call.function.arguments)
    if call.function.name == "weather":
        assert arguments["town"] in ("Ulm", "Köln")
        assert arguments["celsius"] in (True, False)


def test_a_required_call_is_streamed_as_deltas(talking: LlamaEngine) -> None:
    chunks = streamed(talking, tools=[WEATHER], tool_choice="required")
    assert not any(chunk.choices[0].delta.content for chunk in chunks)
    deltas = [call for chunk in chunks for call in chunk.choices[0].delta.tool_calls or ()]
    assert {call.index for call in deltas} == {0}
    assert deltas[0].id
    assert deltas[0].function
    assert deltas[0].function.name == "weather"
    joined = "".join(call.function.arguments or "" for call in deltas if call.function)
    assert set(json.loads(joined)) == {"town", "celsius"}
    assert chunks[-1].choices[0].finish_reason == "tool_calls"


def test_a_call_amid_text_is_found_whole_and_streamed(talking: LlamaEngine) -> None:
    fields = {"tools": [WEATHER], "grammar": SPOKEN, "logprobs": True}
    answer = whole(talking, **fields).choices[0]
    assert answer.message.content == "Well."
    assert answer.message.tool_calls
    assert answer.message.tool_calls[0].function.arguments == '{"town": "Ulm"}'
    chunks = streamed(talking, **fields)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks).strip() == "Well."
    calls = [call for chunk in chunks for call in chunk.choices[0].delta.tool_calls or ()]
    assert "".join(call.function.arguments or "" for call in calls if call.function) == '{"town": "Ulm"}'
    assert chunks[-1].choices[0].finish_reason == "tool_calls"
    entries = [e for c in chunks if c.choices[0].logprobs for e in c.choices[0].logprobs.content or []]
    assert answer.logprobs
    assert len(entries) == len(answer.logprobs.content or [])


def test_text_stays_text_where_tools_are_offered(talking: LlamaEngine, says: str) -> None:
    length = len(says.encode())
    answer = whole(talking, tools=[WEATHER], temperature=0, max_tokens=length).choices[0]
    assert (answer.message.content, answer.message.tool_calls) == (says, None)
    assert answer.finish_reason == "length"


def test_no_tools_means_that_none_are_mentioned(talking: LlamaEngine) -> None:
    body = {"messages": MESSAGES, "tools": [WEATHER]}
    without = parse_chat({**body, "tool_choice": "none"}, talking)
    assert without.prompt == parse_chat({"messages": MESSAGES}, talking).prompt
    assert "weather" in talking.detokenize(parse_chat(body, talking).prompt)


CALL = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"town": "Ulm"}'}}
HISTORY = [
    *MESSAGES,
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "c1", "content": "sunny"},
]


def test_calls_and_results_are_part_of_the_history(talking: LlamaEngine) -> None:
    text = talking.detokenize(parse_chat({"messages": HISTORY, "tools": [WEATHER]}, talking).prompt)
    assert '{"name": "weather", "arguments": {"town": "Ulm"}}' in text
    assert "<tool_response>\nsunny\n</tool_response>" in text
    assert text.index('"description"') < text.index("What is") < text.index("sunny")


def test_a_template_that_knows_tools_is_given_them_as_they_are() -> None:
    template = ChatTemplate(
        "{% for t in tools or [] %}[{{ t.function | tojson }}]{% endfor %}"
        "{% for m in messages %}{{ m.role }}:{{ m.content }}"
        "{% for c in m.tool_calls or [] %}"
        "{{ c.function.name }}({{ c.function.arguments | tojson }}){% endfor %}"
        "{{ m.name or '' }};{% endfor %}"
    )
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": {"a": "<é>"}}}
    messages = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "7", "tool_call_id": "c1", "name": "f"},
    ]
    tools = [{"type": "function", "function": {"name": "f"}}]
    head = template.render(messages, tools).head
    assert head == '[{"name": "f"}]user:hi;assistant:f({"a": "<é>"});tool:7f;'


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"tools": {}}, "tools is not a list"),
        ({"tools": [WEATHER] * 2}, "same name"),
        ({"tools": [WEATHER] * 129}, "129"),
        ({"tools": [{"type": "retrieval"}]}, r"tools\[0\]"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, r"tools\[0\]\.function\.name"),
        (
            {"tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "string"}}}]},
            r"tools\[0\]\.function\.parameters",
        ),
        (
            {"tools": [{"type": "function", "function": {"name": "f", "parameters": {"properties": 5}}}]},
            r"tools\[0\]\.function\.parameters",
        ),
        ({"tool_choice": "required"}, "there are no tools"),
        ({"tools": [WEATHER], "tool_choice": "maybe"}, "tool_choice"),
        ({"tools": [WEATHER], "tool_choice": {"type": "function", "function": {"name": "x"}}}, "'x'"),
        (
            {"tools": [WEATHER], "tool_choice": "required", "response_format": {"type": "json_object"}},
            "tool_choice",
        ),
        ({"messages": HISTORY[:2]}, "followed by their results"),
        ({"messages": [*MESSAGES, HISTORY[2]]}, r"messages\[1\]\.tool_call_id"),
        ({"messages": [{"role": "user", "content": "x", "tool_calls": [CALL]}]}, "only the assistant"),
        ({"messages": [*MESSAGES, {"role": "assistant", "tool_calls": [{"id": "c"}]}]}, r"tool_calls\[0\]"),
        ({"messages": [*MESSAGES, {"role": "assistant", "tool_calls": 7}]}, r"tool_calls"),
        (
            {
                "messages": [
                    *MESSAGES,
                    {
                        "role": "assistant",
                        "tool_calls": [{"id": "c", "function": {"name": "f", "arguments": "{"}}],
                    },
                ]
            },
            "arguments is not JSON",
        ),
    ],
)
def test_a_wrong_field_is_named(talking: LlamaEngine, fields: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidRequestError, match=said):
        parse_chat({"messages": MESSAGES, **fields}, talking)


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = {"x": value}
    return value


def test_tools_and_calls_nested_too_deeply_are_refused(talking: LlamaEngine) -> None:
    tool = {"type": "function", "function": {"name": "f", "parameters": {"x": nested(5000)}}}
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": nested(5000)}}
    told = [*MESSAGES, {"role": "assistant", "tool_calls": [call]}, HISTORY[2] | {"tool_call_id": "c"}]
    asked: list[dict[str, Any]] = [
        {"tools": [tool]},
        {"tools": [tool], "tool_choice": "required"},
        {"messages": told},
    ]
    for fields in asked:
        with pytest.raises(InvalidRequestError, match="nested too deeply"):
            parse_chat({"messages": MESSAGES, **fields}, talking)


# The parser


def test_half_a_character_in_a_call_can_be_sent() -> None:
    parser = ToolCallParser(("f",))
    parser.feed(r'{"name": "f", "arguments": {"a": "\ud800"}}')
    (call,) = parser.finish()
    assert isinstance(call, ToolCall)
    assert call.arguments == r'{"a": "\ud800"}'


F = '{"name": "f", "arguments": {"a": 1}}'
PARSED = {
    "plain text": ("hello world", ["hello world"]),
    "one call": (f"<tool_call>\n{F}\n</tool_call>", ["f"]),
    "two calls": (f"<tool_call>{F}</tool_call>\n<tool_call>{F}</tool_call>", ["f", "f"]),
    "text before": (f"I call: <tool_call>{F}</tool_call>", ["I call: ", "f"]),
    "text after": (f"<tool_call>{F}</tool_call> done", ["f", " done"]),
    "no end": (f"<tool_call>\n{F}", ["f"]),
    "bare": (f"  {F}", ["f"]),
    "list": (f"[{F}, {F}]", ["f", "f"]),
    "parameters": ('{"name": "f", "parameters": {}}', ["f"]),
    "another function": ('{"name": "g", "arguments": {}}', ['{"name": "g", "arguments": {}}']),
    "some other JSON": ('{"a": 1}', ['{"a": 1}']),
    "an unhashable name": ('[{"name": ["f"]}]', ['[{"name": ["f"]}]']),
    "broken JSON": ('<tool_call>{"name": </tool_call>', ['<tool_call>{"name": </tool_call>']),
    "cut off": ('<tool_call>{"name": "f", "arg', ['<tool_call>{"name": "f", "arg']),
    "almost a tag": ("a <tool_box> b", ["a <tool_box> b"]),
}


@pytest.mark.parametrize("size", [1, 2, 7, 1000])
@pytest.mark.parametrize(("text", "expected"), PARSED.values(), ids=PARSED.keys())
def test_calls_are_told_from_text_however_it_is_cut(text: str, expected: list[str], size: int) -> None:
    parser = ToolCallParser(("f",))
    parts: list[str | ToolCall] = []
    for at in range(0, len(text), size):
        parts += parser.feed(text[at : at + size])
    parts += parser.finish()
    got: list[str] = []
    previous: str | ToolCall | None = None
    for part in parts:
        if isinstance(part, ToolCall):
            got.append(part.name)
        elif isinstance(previous, str):
            got[-1] += part
        else:
            got.append(part)
        previous = part
    assert [part.strip() for part in got] == [part.strip() for part in expected]
