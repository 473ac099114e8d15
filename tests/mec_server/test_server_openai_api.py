"""The OpenAI API as OpenAI's own, unmodified client and plain HTTP see it."""

from __future__ import annotations

import asyncio
import base64
import json
import math
import struct
from collections.abc import Iterator

import httpx
import openai
import pytest

from mecroute_server.run import NodeServer
from support.server import SAYS

ASK = {
    "model": "tiny",
    "messages": [{"role": "user", "content": "say it"}],
    "temperature": 0,
    "max_tokens": len(SAYS),
}


@pytest.fixture
def client(node: NodeServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{node.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def events(answer: httpx.Response) -> list[str]:
    return [line.removeprefix("data: ") for line in answer.text.split("\n\n") if line.startswith("data: ")]


def test_chat(http: httpx.Client) -> None:
    answer = http.post("/v1/chat/completions", json=ASK)
    body = answer.json()
    assert answer.status_code == 200
    assert body["object"] == "chat.completion"
    assert body["model"] == "tiny"
    assert body["id"].startswith("chatcmpl-")
    assert body["choices"][0]["message"]["content"] == SAYS
    assert body["choices"][0]["finish_reason"] == "length"
    assert body["usage"]["completion_tokens"] == len(SAYS)
    assert body["usage"]["total_tokens"] == body["usage"]["prompt_tokens"] + len(SAYS)
    assert body["timings"]["predicted_n"] == len(SAYS)


def test_every_answer_names_node_and_request(http: httpx.Client) -> None:
    answer = http.post("/v1/chat/completions", json=ASK, headers={"x-request-id": "mine-1"})
    assert answer.headers["x-request-id"] == "mine-1"
    assert answer.headers["x-mecroute-node"] == "edge-1"
    assert answer.json()["id"] == "chatcmpl-mine-1"
    odd = http.get("/v1/models", headers={"x-request-id": "a b;c"})
    assert odd.headers["x-request-id"].startswith("req-")


def test_stream(http: httpx.Client) -> None:
    answer = http.post("/v1/chat/completions", json={**ASK, "stream": True})
    *chunks, done = events(answer)
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert done == "[DONE]"
    parsed = [json.loads(chunk) for chunk in chunks]
    assert "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in parsed) == SAYS
    assert parsed[-1]["choices"][0]["finish_reason"] == "length"
    assert not any(chunk.get("usage") for chunk in parsed)


def test_stream_with_usage(http: httpx.Client) -> None:
    body = {**ASK, "stream": True, "stream_options": {"include_usage": True}}
    *chunks, _ = events(http.post("/v1/chat/completions", json=body))
    last = json.loads(chunks[-1])
    assert last["choices"] == []
    assert last["usage"]["completion_tokens"] == len(SAYS)


def test_a_prefix_is_continued(http: httpx.Client) -> None:
    messages = [{"role": "user", "content": "say it"}, {"role": "assistant", "content": SAYS[:3]}]
    body = http.post(
        "/v1/chat/completions", json={**ASK, "messages": messages, "max_tokens": len(SAYS) - 3}
    ).json()
    assert body["choices"][0]["message"]["content"] == SAYS[3:]


def test_completion(http: httpx.Client) -> None:
    ask = {"model": "tiny", "prompt": "x", "temperature": 0, "max_tokens": len(SAYS)}
    body = http.post("/v1/completions", json=ask).json()
    assert body["object"] == "text_completion"
    assert body["choices"][0]["text"] == SAYS
    *chunks, done = events(http.post("/v1/completions", json={**ask, "stream": True}))
    assert done == "[DONE]"
    assert "".join(json.loads(chunk)["choices"][0]["text"] for chunk in chunks) == SAYS


def test_embeddings_as_numbers_and_as_base64(http: httpx.Client) -> None:
    ask = {"model": "tiny", "input": ["one text", "and another"]}
    plain = http.post("/v1/embeddings", json=ask).json()
    packed = http.post("/v1/embeddings", json={**ask, "encoding_format": "base64"}).json()
    assert [item["index"] for item in plain["data"]] == [0, 1]
    assert plain["usage"]["prompt_tokens"] > 0
    for number, text in zip(plain["data"], packed["data"], strict=True):
        raw = base64.b64decode(text["embedding"])
        assert struct.unpack(f"<{len(raw) // 4}f", raw) == pytest.approx(number["embedding"])
        assert math.hypot(*number["embedding"]) == pytest.approx(1, abs=1e-3)


def test_embeddings_of_token_ids_and_with_fewer_dimensions(node: NodeServer, http: httpx.Client) -> None:
    slot = node.node.pool.find("tiny")
    assert slot.loaded is not None
    texts = [SAYS[:4], SAYS[3:7]]  # each of these bytes has an axis of its own
    tokens = [list(slot.loaded.engine.tokenize(text)) for text in texts]  # type: ignore[union-attr]
    ask = {"model": "tiny", "input": texts}
    of_texts, of_tokens, of_one, short = (
        http.post("/v1/embeddings", json={**ask, **fields}).json()
        for fields in ({}, {"input": tokens}, {"input": tokens[1]}, {"dimensions": 5})
    )
    assert of_tokens == of_texts
    assert of_one["data"][0]["embedding"] == pytest.approx(of_texts["data"][1]["embedding"], abs=1e-5)
    for whole, few in zip(of_texts["data"], short["data"], strict=True):
        head = whole["embedding"][:5]
        assert few["embedding"] == pytest.approx([value / math.hypot(*head) for value in head], abs=1e-6)


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"input": []},
        {"input": ""},
        {"input": ["a", ""]},
        {"input": [1, -2]},
        {"input": [1, 2.5]},
        {"input": [[1, 2], []]},
        {"input": [[1, True]]},
        {"input": [[1, 10**9]]},
        {"input": {"a": 1}},
        {"input": "a", "encoding_format": "hex"},
        {"input": "a", "dimensions": 65},
        {"input": "a", "dimensions": 0},
        {"input": "a", "task": "x"},
        {"input": ["a"] * 2049},
        {"input": "word " * 400},
    ],
)
def test_a_wrong_embeddings_request_is_refused(http: httpx.Client, body: dict[str, object]) -> None:
    answer = http.post("/v1/embeddings", json={"model": "tiny", **body})
    assert answer.status_code == 400
    assert answer.json()["error"]["type"] == "invalid_request_error"


def test_models(http: httpx.Client) -> None:
    (model,) = http.get("/v1/models").json()["data"]
    assert model["id"] == "tiny"
    assert model["object"] == "model"
    assert model["mecroute"]["context_length"] == 256
    assert http.get("/v1/models/tiny").json() == model
    assert http.get("/v1/models/huge").status_code == 404


def test_openai_client(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="tiny", messages=[{"role": "user", "content": "hi"}], temperature=0, max_tokens=len(SAYS)
    )
    assert answer.choices[0].message.content == SAYS
    assert answer.usage is not None
    assert answer.usage.completion_tokens == len(SAYS)
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert len(client.embeddings.create(model="tiny", input="hello").data[0].embedding) == 64


def test_openai_client_streams(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(
        model="tiny",
        messages=[{"role": "user", "content": "hi"}],
        temperature=0,
        max_tokens=len(SAYS),
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == SAYS
    assert chunks[-1].usage is not None


def test_openai_client_gets_its_own_errors(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="huge"):
        client.chat.completions.create(model="huge", messages=[{"role": "user", "content": "hi"}])
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": "word " * 400}])
    assert caught.value.code == "context_length_exceeded"


def test_async_openai_clients_together(node: NodeServer) -> None:
    async def ask() -> list[str | None]:
        async with openai.AsyncOpenAI(base_url=f"{node.url}/v1", api_key="none", max_retries=0) as client:
            answers = await asyncio.gather(
                *(
                    client.chat.completions.create(
                        model="tiny",
                        messages=[{"role": "user", "content": f"question {number}"}],
                        temperature=0,
                        max_tokens=len(SAYS),
                    )
                    for number in range(6)
                )
            )
        return [answer.choices[0].message.content for answer in answers]

    assert asyncio.run(ask()) == [SAYS] * 6
