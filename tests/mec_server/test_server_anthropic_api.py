"""Anthropic's API as Anthropic's own, unmodified client and plain HTTP see it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anthropic
import httpx
import pytest

from mecroute_server.run import NodeServer
from mecroute_server.settings import ServerSettings
from support.server import SAYS, running_node

MESSAGES: list[Any] = [{"role": "user", "content": "say it"}]
ASK: dict[str, Any] = {"model": "tiny", "messages": MESSAGES, "temperature": 0, "max_tokens": len(SAYS)}
#: The same for the client, whose newest version has no argument for the temperature.
CALL: dict[str, Any] = {
    **{name: ASK[name] for name in ("model", "messages", "max_tokens")},
    "extra_body": {"temperature": 0, "top_k": 40, "top_p": 0.9},
}


@pytest.fixture
def client(node: NodeServer) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=node.url, api_key="none", max_retries=0, timeout=30) as client:
        yield client


def events(text: str) -> list[dict[str, Any]]:
    found = []
    for block in text.split("\n\n"):
        if block:
            name, data = block.split("\n")
            found.append(json.loads(data.removeprefix("data: ")))
            assert name == f"event: {found[-1]['type']}"
    return found


def error_of(answer: httpx.Response, status: int) -> dict[str, str]:
    assert answer.status_code == status, answer.text
    body = answer.json()
    assert set(body) == {"type", "error"}
    assert body["type"] == "error"
    assert set(body["error"]) == {"type", "message"}
    return dict(body["error"])


def test_a_message(client: anthropic.Anthropic) -> None:
    answer = client.messages.create(**CALL, system="be brief")
    (block,) = answer.content
    assert block.type == "text"
    assert block.text == SAYS
    assert answer.id.startswith("msg_")
    assert answer.role == "assistant"
    assert answer.model == "tiny"
    assert answer.stop_reason == "max_tokens"
    assert answer.stop_sequence is None
    assert answer.usage.output_tokens == len(SAYS)


def test_input_tokens_add_up(client: anthropic.Anthropic) -> None:
    counted = client.messages.count_tokens(model="tiny", messages=MESSAGES, system="count")
    for _ in range(2):
        usage = client.messages.create(**CALL, system="count").usage
        assert usage.cache_read_input_tokens is not None
        assert usage.input_tokens + usage.cache_read_input_tokens == counted.input_tokens
    assert usage.cache_read_input_tokens > 0


def test_a_stream(client: anthropic.Anthropic) -> None:
    with client.messages.stream(**CALL) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert text == SAYS
    assert final.stop_reason == "max_tokens"
    assert final.usage.output_tokens == len(SAYS)


def test_the_order_of_events(http: httpx.Client) -> None:
    answer = http.post("/v1/messages", json={**ASK, "stream": True})
    assert answer.headers["content-type"].startswith("text/event-stream")
    found = events(answer.text)
    kinds = [event["type"] for event in found]
    assert kinds[:3] == ["message_start", "content_block_start", "ping"]
    assert kinds[-3:] == ["content_block_stop", "message_delta", "message_stop"]
    assert set(kinds[3:-3]) == {"content_block_delta"}
    assert "".join(event["delta"]["text"] for event in found[3:-3]) == SAYS
    assert found[0]["message"]["content"] == []
    assert found[0]["message"]["usage"]["input_tokens"] > 0
    assert found[-2]["delta"] == {"stop_reason": "max_tokens", "stop_sequence": None}


@pytest.mark.parametrize("stream", [False, True])
def test_a_stop_sequence_is_named(client: anthropic.Anthropic, stream: bool) -> None:
    ask = {**CALL, "max_tokens": 100, "stop_sequences": ["nothing of it", "-W"]}
    if stream:
        with client.messages.stream(**ask) as events:
            answer = events.get_final_message()
    else:
        answer = client.messages.create(**ask)
    assert answer.stop_reason == "stop_sequence"
    assert answer.stop_sequence == "-W"
    assert answer.content[0].type == "text"
    assert answer.content[0].text == SAYS[: SAYS.index("-W")]


def test_a_full_context_is_named(client: anthropic.Anthropic) -> None:
    assert client.messages.create(**{**CALL, "max_tokens": 100_000}).stop_reason == (
        "model_context_window_exceeded"
    )


def test_a_prefill_is_continued(client: anthropic.Anthropic) -> None:
    messages = [*MESSAGES, {"role": "assistant", "content": [{"type": "text", "text": SAYS[:3]}]}]
    answer = client.messages.create(**{**CALL, "messages": messages, "max_tokens": len(SAYS) - 3})
    assert answer.content[0].type == "text"
    assert answer.content[0].text == SAYS[3:]


def test_blocks_and_turns_in_a_row_are_one_prompt(client: anthropic.Anthropic) -> None:
    def count(system: Any, *contents: Any) -> int:
        messages: list[Any] = [{"role": "user", "content": content} for content in contents]
        return client.messages.count_tokens(model="tiny", system=system, messages=messages).input_tokens

    def block(text: str) -> dict[str, Any]:
        return {"type": "text", "text": text, "cache_control": {"type": "ephemeral"}}

    plain = count("a\n\nb", "c d\n\ne")
    assert count([block("a"), block("b")], [block("c "), block("d")], "e") == plain


def test_the_client_gets_its_own_errors(client: anthropic.Anthropic) -> None:
    with pytest.raises(anthropic.NotFoundError, match="no model 'huge'"):
        client.messages.create(**{**CALL, "model": "huge"})
    with pytest.raises(anthropic.BadRequestError, match="context window"):
        client.messages.create(**{**CALL, "messages": [{"role": "user", "content": "word " * 400}]})


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"max_tokens": None}, "max_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": True}, "max_tokens"),
        ({"messages": None}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": "hi"}, "messages"),
        ({"messages": [3]}, "messages[0]"),
        ({"messages": [{"role": "system", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": ["user"], "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "messages[0].content[0]"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0]"),
        ({"system": 3}, "system"),
        ({"stop_sequences": "x"}, "stop_sequences"),
        ({"stop_sequences": [""]}, "stop_sequences"),
        ({"temperature": "hot"}, "temperature"),
        ({"tools": [{"name": "x"}]}, "tools"),
        ({"thinking": {"type": "enabled", "budget_tokens": 1024}}, "thinking"),
        ({"output_config": {"effort": "low"}}, "output_config"),
        ({"stream": "yes"}, "stream"),
        ({"surprise": 1}, "surprise"),
        ({"model": None}, "model"),
    ],
)
def test_what_is_wrong_is_refused_by_name(http: httpx.Client, fields: dict[str, Any], named: str) -> None:
    error = error_of(http.post("/v1/messages", json={**ASK, **fields}), 400)
    assert error["type"] == "invalid_request_error"
    assert named in error["message"]


def test_a_count_has_no_answer(http: httpx.Client) -> None:
    body = {"model": "tiny", "messages": MESSAGES, "max_tokens": 3}
    assert "max_tokens" in error_of(http.post("/v1/messages/count_tokens", json=body), 400)["message"]


def test_models_are_told_apart_by_the_clients_header(client: anthropic.Anthropic, http: httpx.Client) -> None:
    (model,) = list(client.models.list())
    assert model.id == "tiny"
    assert model.type == "model"
    assert client.models.retrieve("tiny").max_input_tokens == 256
    with pytest.raises(anthropic.NotFoundError):
        client.models.retrieve("huge")
    assert http.get("/v1/models").json()["object"] == "list"


def test_other_bodies_and_methods(http: httpx.Client) -> None:
    assert error_of(http.post("/v1/messages", content=b"{"), 400)["type"] == "invalid_request_error"
    assert error_of(http.post("/v1/messages", content=b" " * 20_001), 413)["type"] == "request_too_large"
    assert error_of(http.post("/v1/messages/batches", json={}), 404)["type"] == "not_found_error"
    error_of(http.get("/v1/messages"), 405)


def test_the_key_comes_in_either_header(tiny: Path, tmp_path: Path) -> None:
    settings = ServerSettings(
        port=0, registry_root=tmp_path, model_files=(tiny,), threads=1, api_keys=("k-1",)
    )

    def connect(**keys: str) -> anthropic.Anthropic:
        return anthropic.Anthropic(base_url=server.url, max_retries=0, timeout=30, **keys)

    with running_node(settings) as server:
        for keys in ({"api_key": "k-1"}, {"auth_token": "k-1"}):
            with connect(**keys) as client:
                assert client.messages.create(**CALL).content[0].type == "text"
        with connect(api_key="k-2") as client, pytest.raises(anthropic.AuthenticationError, match="API key"):
            client.messages.create(**CALL)
        answer = httpx.post(f"{server.url}/v1/messages", json=ASK)
        assert error_of(answer, 401)["type"] == "authentication_error"
        for path in ("/v1/models", "/api/tags"):
            assert httpx.get(f"{server.url}{path}", headers={"x-api-key": "k-1"}).status_code == 200


def test_waiting_overload_and_a_lost_engine(
    endless: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mecroute_server.generation._FIRST_CHUNK_S", 0.01)
    monkeypatch.setattr("mecroute_server.sse._HEARTBEAT_S", 0.05)
    settings = ServerSettings(
        port=0,
        registry_root=tmp_path,
        model_files=(endless,),
        context=32768,
        parallel=1,
        max_queue=1,
        threads=1,
    )
    ask = {**ASK, "model": "endless", "max_tokens": 30_000, "stream": True}
    with running_node(settings) as server, httpx.Client(base_url=server.url, timeout=60) as http:
        with http.stream("POST", "/v1/messages", json=ask) as running:
            first = running.iter_lines()
            next(first)
            with http.stream("POST", "/v1/messages", json=ask) as waiting:
                second = waiting.iter_lines()  # kept: httpx closes the answer with its iterator
                assert next(second) == "event: ping"
                answer = http.post("/v1/messages", json=ask)
                assert error_of(answer, 429)["type"] == "rate_limit_error"
                assert int(answer.headers["retry-after"]) >= 1
            slot = server.node.pool.find("endless")
            assert slot.loaded is not None
            slot.loaded.engine.close()
            last = [line for line in first if line][-2:]
        assert last[0] == "event: error"
        assert json.loads(last[1].removeprefix("data: "))["error"]["type"] == "api_error"
