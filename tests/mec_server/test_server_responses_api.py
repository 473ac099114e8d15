"""OpenAI's Responses API as OpenAI's own, unmodified client and plain HTTP see it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from mecroute.engines.llama.engine import Generation, GenerationEvent, GenerationRequest, Usage
from mecroute_server.formats import responses
from mecroute_server.generation import Reply
from mecroute_server.run import NodeServer
from mecroute_server.settings import ServerSettings
from support.server import SAYS, running_node

ASK: dict[str, Any] = {"model": "tiny", "input": "say it", "temperature": 0, "max_output_tokens": len(SAYS)}


@pytest.fixture
def client(node: NodeServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{node.url}/v1", api_key="none", max_retries=0, timeout=30) as client:
        yield client


def test_a_response(client: openai.OpenAI) -> None:
    answer = client.responses.create(**ASK, instructions="be brief", metadata={"a": "b"}, store=True)
    assert answer.output_text == SAYS
    assert answer.id.startswith("resp_")
    assert answer.model == "tiny"
    assert answer.status == "incomplete"
    assert answer.incomplete_details
    assert answer.incomplete_details.reason == "max_output_tokens"
    assert answer.instructions == "be brief"
    assert answer.metadata == {"a": "b"}
    assert answer.to_dict()["store"] is False
    assert answer.usage
    assert answer.usage.output_tokens == len(SAYS)
    assert answer.usage.total_tokens == answer.usage.input_tokens + len(SAYS)


def test_what_was_answered_can_be_sent_again(client: openai.OpenAI) -> None:
    first = client.responses.create(**ASK)
    items: list[Any] = [{"role": "user", "content": [{"type": "input_text", "text": "say it"}]}]
    items += [item.to_dict() for item in first.output]
    second = client.responses.create(**{**ASK, "input": [*items, {"role": "user", "content": "again"}]})
    assert second.output_text == SAYS
    assert first.usage
    assert second.usage
    assert second.usage.input_tokens > first.usage.input_tokens


def test_a_prefix_is_continued(client: openai.OpenAI) -> None:
    messages = [{"role": "user", "content": "say it"}, {"role": "assistant", "content": SAYS[:3]}]
    answer = client.responses.create(**{**ASK, "input": messages, "max_output_tokens": len(SAYS) - 3})
    assert answer.output_text == SAYS[3:]


def test_instructions_are_a_system_message(client: openai.OpenAI) -> None:
    def tokens(**fields: Any) -> int:
        usage = client.responses.create(**{**ASK, **fields}).usage
        assert usage
        return usage.input_tokens

    messages = [{"role": "developer", "content": "be brief"}, {"role": "user", "content": "say it"}]
    assert tokens(instructions="be brief") == tokens(input=messages) > tokens()


def test_a_stream(client: openai.OpenAI) -> None:
    events = list(client.responses.create(**ASK, stream=True))
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == SAYS
    assert events[-1].type == "response.incomplete"
    assert events[-1].response.output_text == SAYS
    assert events[-1].response.usage
    assert events[-1].response.usage.output_tokens == len(SAYS)


def test_logprobs(client: openai.OpenAI) -> None:
    ask = {**ASK, "max_output_tokens": 4}
    chat = client.chat.completions.create(
        model="tiny",
        messages=[{"role": "user", "content": "say it"}],
        temperature=0,
        max_tokens=4,
        logprobs=True,
        top_logprobs=2,
    )
    assert chat.choices[0].logprobs
    want = [entry.to_dict() for entry in chat.choices[0].logprobs.content or []]
    answer = client.responses.create(**ask, include=["message.output_text.logprobs"], top_logprobs=2)
    assert answer.top_logprobs == 2
    ((part,),) = [item.content for item in answer.output if item.type == "message"]
    assert part.type == "output_text"
    found = [entry.to_dict() for entry in part.logprobs or []]
    assert [entry["token"] for entry in found] == list(SAYS[:4])
    for ours, theirs in zip(found, want, strict=True):
        assert ours["bytes"] == theirs["bytes"]
        assert ours["logprob"] == pytest.approx(theirs["logprob"], abs=0.01)
        assert [top["token"] for top in ours["top_logprobs"]] == [
            top["token"] for top in theirs["top_logprobs"]
        ]
    streamed = []
    for event in client.responses.create(**ask, top_logprobs=2, stream=True):
        if event.type == "response.output_text.delta":
            streamed += [entry.token for entry in event.logprobs]
        elif event.type == "response.output_text.done":
            assert [entry.token for entry in event.logprobs] == streamed == list(SAYS[:4])
    assert streamed
    plain = client.responses.create(**ask, include=["reasoning.encrypted_content"]).to_dict()
    assert plain["output"][0]["content"][0]["logprobs"] == []  # type: ignore[index]


def test_an_answer_that_the_model_ended_is_complete() -> None:
    def generation() -> Generation:
        request = GenerationRequest(prompt=(1, 2), max_tokens=8)
        made = Generation(request, max_tokens=8, cancel=lambda _: None)
        usage = Usage(2, 3, 1, ttft_ms=1, prefill_ms=1, decode_ms=1)
        made.push(GenerationEvent("done", 3, "stop", usage))
        return made

    async def read() -> tuple[dict[str, Any], list[dict[str, Any]]]:
        reply = Reply(id="resp_1", model="m", body={}, load_s=0)
        return (
            await responses.response(generation(), reply),
            [event async for event in responses.events(generation(), reply)],
        )

    whole, events = asyncio.run(read())
    assert whole["status"] == whole["output"][0]["status"] == "completed"
    assert whole["incomplete_details"] is None
    assert events[-1]["type"] == "response.completed"
    assert events[-1]["response"]["output"] == whole["output"]


def test_the_order_of_events(http: httpx.Client) -> None:
    answer = http.post("/v1/responses", json={**ASK, "stream": True})
    assert answer.headers["content-type"].startswith("text/event-stream")
    found = []
    for block in answer.text.split("\n\n")[:-1]:
        name, data = block.split("\n")
        found.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {found[-1]['type']}"
    kinds = [event["type"].removeprefix("response.") for event in found]
    opening = ["created", "in_progress", "output_item.added", "content_part.added"]
    closing = ["output_text.done", "content_part.done", "output_item.done", "incomplete"]
    assert kinds[:4] == opening
    assert kinds[-4:] == closing
    assert set(kinds[4:-4]) == {"output_text.delta"}
    assert [event["sequence_number"] for event in found] == list(range(len(found)))
    assert found[0]["response"]["status"] == "in_progress"
    assert found[-1]["response"]["output"][0]["content"][0]["text"] == SAYS


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"input": None}, "input"),
        ({"input": ""}, None),
        ({"input": []}, "input"),
        ({"input": 3}, "input"),
        ({"input": ["hi"]}, "input[0]"),
        ({"input": [{"type": "reasoning", "summary": []}]}, "input[0]"),
        ({"input": [{"role": "robot", "content": "x"}]}, "input[0].role"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input[0].content[0]"),
        ({"instructions": 3}, "instructions"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"temperature": "hot"}, "temperature"),
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"background": True}, "background"),
        ({"tools": [{"type": "web_search"}]}, "tools"),
        ({"reasoning": {"effort": "low"}}, "reasoning"),
        ({"text": {"format": {"type": "xml"}}}, "text.format"),
        ({"truncation": "auto"}, "truncation"),
        ({"include": ["x"]}, "include[0]"),
        ({"include": "x"}, "include"),
        ({"include": ["file_search_call.results"]}, "file_search_call.results"),
        ({"top_logprobs": 21}, "top_logprobs is 21"),
        ({"top_logprobs": "x"}, "top_logprobs"),
        ({"stream": "yes"}, "stream"),
        ({"surprise": 1}, "surprise"),
        ({"model": None}, "model"),
    ],
)
def test_what_is_wrong_is_refused_by_name(
    http: httpx.Client, fields: dict[str, Any], named: str | None
) -> None:
    answer = http.post("/v1/responses", json={**ASK, **fields})
    if named is None:  # an empty text is a text
        assert answer.status_code == 200
        return
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["type"] == "invalid_request_error"
    assert named in error["message"]


def test_the_client_gets_its_own_errors(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="huge"):
        client.responses.create(model="huge", input="hi")
    with pytest.raises(openai.BadRequestError, match="stores no responses") as caught:
        client.responses.create(model="tiny", input="hi", previous_response_id="resp_1")
    assert isinstance(caught.value.body, dict)
    assert "whole conversation" in caught.value.body["hint"]
    with pytest.raises(openai.BadRequestError) as caught:
        client.responses.create(model="tiny", input="word " * 400)
    assert caught.value.code == "context_length_exceeded"
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve("resp_1")


def test_an_engine_lost_in_mid_stream(endless: Path, tmp_path: Path) -> None:
    settings = ServerSettings(
        port=0, registry_root=tmp_path, model_files=(endless,), context=32768, threads=1
    )
    ask = {"model": "endless", "input": "hi", "temperature": 0, "stream": True}
    with running_node(settings) as server, httpx.Client(base_url=server.url, timeout=30) as http:
        with http.stream("POST", "/v1/responses", json=ask) as answer:
            lines = answer.iter_lines()
            next(lines)
            slot = server.node.pool.find("endless")
            assert slot.loaded is not None
            slot.loaded.engine.close()
            *_, before, name, data = [line for line in lines if line]
        assert name == "event: error"
        error = json.loads(data.removeprefix("data: "))
        assert error["code"] == "tier_unreachable"
        assert error["sequence_number"] == json.loads(before.removeprefix("data: "))["sequence_number"] + 1
