"""The Ollama API as Ollama's own, unmodified client and plain HTTP see it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import ollama
import pytest

from mecroute_registry._version import __version__
from mecroute_server.run import NodeServer
from mecroute_server.settings import ServerSettings
from support.server import SAYS, running_node

OPTIONS = {"temperature": 0, "num_predict": len(SAYS)}
MESSAGES = [{"role": "user", "content": "say it"}]
CHAT: dict[str, Any] = {"model": "tiny", "messages": MESSAGES, "options": OPTIONS}
GENERATE: dict[str, Any] = {"model": "tiny", "prompt": "say it", "options": OPTIONS}


@pytest.fixture
def client(node: NodeServer) -> Iterator[ollama.Client]:
    with ollama.Client(node.url, timeout=30) as client:
        yield client


def lines(answer: httpx.Response) -> list[dict[str, Any]]:
    assert answer.headers["content-type"] == "application/x-ndjson"
    return [json.loads(line) for line in answer.text.splitlines()]


def error_of(answer: httpx.Response, status: int) -> str:
    assert answer.status_code == status, answer.text
    body = answer.json()
    assert set(body) == {"error"}
    assert isinstance(body["error"], str)
    return str(body["error"])


def test_chat(client: ollama.Client) -> None:
    answer = client.chat(model="tiny", messages=MESSAGES, options=OPTIONS)
    assert answer.message.content == SAYS
    assert answer.message.role == "assistant"
    assert answer.model == "tiny"
    assert answer.done is True
    assert answer.done_reason == "length"
    assert answer.eval_count == len(SAYS)
    assert answer.prompt_eval_count
    assert answer.prompt_eval_duration
    assert answer.eval_duration
    assert answer.load_duration is not None
    assert answer.total_duration
    assert answer.total_duration >= answer.eval_duration + answer.prompt_eval_duration + answer.load_duration


def test_chat_streams(client: ollama.Client) -> None:
    pieces = list(client.chat(model="tiny", messages=MESSAGES, options=OPTIONS, stream=True))
    assert "".join(piece.message.content or "" for piece in pieces) == SAYS
    assert [piece.done for piece in pieces] == [False] * (len(pieces) - 1) + [True]
    assert pieces[-1].message.content == ""
    assert pieces[-1].eval_count == len(SAYS)


def test_generate(client: ollama.Client) -> None:
    answer = client.generate(model="tiny", prompt="say it", system="be brief", options=OPTIONS)
    assert answer.response == SAYS
    assert answer.done_reason == "length"
    pieces = list(client.generate(model="tiny", prompt="say it", options=OPTIONS, stream=True))
    assert "".join(piece.response or "" for piece in pieces) == SAYS


def test_raw_uses_no_template(client: ollama.Client) -> None:
    plain = client.generate(model="tiny", prompt="abc", options=OPTIONS)
    raw = client.generate(model="tiny", prompt="abc", raw=True, options=OPTIONS)
    assert raw.response == SAYS
    assert plain.prompt_eval_count
    assert raw.prompt_eval_count
    assert raw.prompt_eval_count < plain.prompt_eval_count


def test_plain_http_streams_unless_told_otherwise(http: httpx.Client) -> None:
    *pieces, last = lines(http.post("/api/chat", json=CHAT))
    assert "".join(piece["message"]["content"] for piece in pieces) == SAYS
    assert last["done"] is True
    assert not any("done_reason" in piece for piece in pieces)
    whole = http.post("/api/chat", json={**CHAT, "stream": False})
    assert whole.headers["content-type"] == "application/json"
    assert whole.json()["message"]["content"] == SAYS
    assert whole.json()["created_at"].endswith("Z")


def test_stop_strings_and_a_prefix(client: ollama.Client) -> None:
    answer = client.chat(
        model="tiny", messages=MESSAGES, options={"temperature": 0, "num_predict": -1, "stop": ["-W"]}
    )
    assert answer.message.content == SAYS[: SAYS.index("-W")]
    assert answer.done_reason == "stop"
    started = [*MESSAGES, {"role": "assistant", "content": SAYS[:3]}]
    answer = client.chat(
        model="tiny", messages=started, options={"temperature": 0, "num_predict": len(SAYS) - 3}
    )
    assert answer.message.content == SAYS[3:]


def test_logprobs(client: ollama.Client) -> None:
    ask: dict[str, Any] = {"model": "tiny", "options": {"temperature": 0, "num_predict": 3}}
    ask |= {"logprobs": True, "top_logprobs": 2}
    whole = client.chat(messages=MESSAGES, **ask)
    pieces = client.chat(messages=MESSAGES, stream=True, **ask)
    streamed = [entry for piece in pieces for entry in piece.logprobs or []]
    generated = client.generate(prompt="say it", **ask).logprobs
    raw = client.generate(prompt="x", raw=True, **ask).logprobs
    for entries in (whole.logprobs, streamed, generated, raw):
        assert [entry.token for entry in entries or []] == list(SAYS[:3])
        assert all(len(entry.top_logprobs or []) == 2 for entry in entries or [])
    plain = client.chat(model="tiny", messages=MESSAGES, options=ask["options"])
    assert plain.logprobs is None


def test_every_sampling_option_is_taken(client: ollama.Client) -> None:
    options = {
        "temperature": 1.5,
        "top_p": 0.5,
        "top_k": 5,
        "min_p": 0.1,
        "seed": 7,
        "num_predict": 12,
        "repeat_penalty": 1.1,
        "presence_penalty": 0.5,
        "frequency_penalty": 0.5,
        "num_ctx": 128,
        "num_thread": 4,
        "repeat_last_n": 64,
        "mirostat": 0,
    }
    first, second = (
        client.generate(model="tiny", prompt="abc", raw=True, options=options).response for _ in range(2)
    )
    assert first == second


def test_embed(client: ollama.Client) -> None:
    one = client.embed(model="tiny", input="one text")
    two = client.embed(model="tiny", input=["one text", "and another"])
    assert len(one.embeddings) == 1
    assert len(one.embeddings[0]) == 64
    assert two.embeddings[0] == pytest.approx(one.embeddings[0], abs=1e-4)
    assert two.prompt_eval_count
    assert two.total_duration


def test_tags_show_and_version(client: ollama.Client, http: httpx.Client) -> None:
    (model,) = client.list().models
    assert model.model == "tiny"
    assert model.size
    assert model.modified_at
    assert model.details
    assert model.details.format == "gguf"
    assert model.details.family == "llama"
    shown = client.show("tiny:latest")
    assert shown.capabilities == ["completion", "tools"]
    assert shown.modelinfo
    assert shown.modelinfo["llama.context_length"] == 256
    assert shown.details == model.details
    assert http.post("/api/show", json={"name": "tiny"}).status_code == 200
    assert http.get("/api/version").json() == {"version": __version__}


def test_latest_is_no_tag(client: ollama.Client) -> None:
    assert client.chat(model="tiny:latest", messages=MESSAGES, options=OPTIONS).message.content == SAYS


def test_a_request_without_a_prompt_loads(client: ollama.Client, http: httpx.Client) -> None:
    assert client.generate(model="tiny").done_reason == "load"
    assert client.chat(model="tiny", messages=[]).message.content == ""
    assert [piece.done for piece in client.generate(model="tiny", stream=True)] == [True]
    error = error_of(http.post("/api/generate", json={"model": "tiny", "keep_alive": "soon"}), 400)
    assert "keep_alive" in error
    with pytest.raises(ollama.ResponseError) as caught:
        client.generate(model="huge")
    assert caught.value.status_code == 404


@pytest.mark.parametrize("stream", [False, True])
def test_the_client_gets_its_own_errors(client: ollama.Client, stream: bool) -> None:
    with pytest.raises(ollama.ResponseError, match="no model 'huge'") as caught:
        list(client.chat(model="huge", messages=MESSAGES, stream=stream))
    assert caught.value.status_code == 404
    with pytest.raises(ollama.ResponseError, match="context window") as caught:
        list(client.generate(model="tiny", prompt="word " * 400, stream=stream))
    assert caught.value.status_code == 400


@pytest.mark.parametrize(
    ("path", "fields", "named"),
    [
        ("/api/chat", {"messages": "hi"}, "messages"),
        ("/api/chat", {"messages": ["hi"]}, "messages[0]"),
        ("/api/chat", {"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role"),
        ("/api/chat", {"messages": [{"role": "tool", "content": "x"}]}, "messages[0]"),
        ("/api/chat", {"messages": [{"role": "user", "content": 3}]}, "messages[0].content"),
        ("/api/chat", {"messages": [{"role": "user", "content": "x", "images": ["YQ=="]}]}, "images"),
        ("/api/chat", {"tools": [{"type": "function"}]}, "tools"),
        ("/api/chat", {"format": "xml"}, "format"),
        ("/api/chat", {"think": True}, "think"),
        ("/api/chat", {"stream": "yes"}, "stream"),
        ("/api/chat", {"surprise": 1}, "surprise"),
        ("/api/chat", {"options": 3}, "options"),
        ("/api/chat", {"options": {"surprise": 1}}, "options.surprise"),
        ("/api/chat", {"options": {"mirostat": 1}}, "options.mirostat"),
        ("/api/chat", {"options": {"num_predict": 0}}, "options.num_predict"),
        ("/api/chat", {"options": {"num_predict": "x"}}, "options.num_predict"),
        ("/api/chat", {"options": {"num_ctx": 1_000_000}}, "options.num_ctx"),
        ("/api/chat", {"options": {"temperature": "hot"}}, "temperature"),
        ("/api/chat", {"options": {"stop": [""]}}, "stop"),
        ("/api/chat", {"logprobs": 1}, "logprobs"),
        ("/api/chat", {"logprobs": True, "top_logprobs": 21}, "top_logprobs is 21"),
        ("/api/generate", {"prompt": 3}, "prompt"),
        ("/api/generate", {"prompt": "x", "suffix": "y"}, "suffix"),
        ("/api/generate", {"prompt": "x", "images": ["YQ=="]}, "images"),
        ("/api/generate", {"prompt": "x", "context": [1, 2]}, "context"),
        ("/api/generate", {"prompt": "x", "raw": True, "system": "y"}, "system"),
        ("/api/generate", {"prompt": "x", "suffix": "z", "system": "y"}, "system"),
        ("/api/generate", {"suffix": "z", "format": "json"}, "format"),
        ("/api/embed", {"input": []}, "input"),
        ("/api/embed", {"input": "x", "dimensions": 65}, "dimensions"),
        ("/api/embed", {"input": "word " * 400}, "input"),
        ("/api/show", {"model": None}, "model"),
        ("/api/chat", {"model": 3}, "model"),
    ],
)
def test_what_is_wrong_is_refused_by_name(
    http: httpx.Client, path: str, fields: dict[str, Any], named: str
) -> None:
    base = CHAT if path == "/api/chat" else {"model": "tiny"}
    assert named in error_of(http.post(path, json={**base, **fields}), 400)


def test_other_paths_and_bodies(http: httpx.Client) -> None:
    assert "/api/pull" in error_of(http.post("/api/pull", json={"model": "x"}), 404)
    error_of(http.get("/api/chat"), 405)
    error_of(http.post("/api/chat", content=b"{"), 400)
    error_of(http.post("/api/chat", content=b" " * 20_001), 413)


def test_a_key_is_needed_where_one_is_configured(tiny: Path, tmp_path: Path) -> None:
    settings = ServerSettings(
        port=0, registry_root=tmp_path, model_files=(tiny,), threads=1, api_keys=("k-1",)
    )
    with running_node(settings) as server:
        with (
            ollama.Client(server.url, timeout=30) as client,
            pytest.raises(ollama.ResponseError, match="API key") as caught,
        ):
            client.list()
        assert caught.value.status_code == 401
        with ollama.Client(server.url, headers={"authorization": "Bearer k-1"}, timeout=30) as client:
            assert [model.model for model in client.list().models] == ["tiny"]


def test_async_clients_together(node: NodeServer) -> None:
    async def ask(number: int) -> str | None:
        async with ollama.AsyncClient(node.url, timeout=30) as client:
            answer = await client.chat(
                model="tiny", messages=[{"role": "user", "content": f"question {number}"}], options=OPTIONS
            )
            return answer.message.content

    async def ask_all() -> list[str | None]:
        return await asyncio.gather(*(ask(number) for number in range(4)))

    assert asyncio.run(ask_all()) == [SAYS] * 4


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
    ask = {"model": "endless", "messages": MESSAGES, "options": {"temperature": 0}}
    with running_node(settings) as server, httpx.Client(base_url=server.url, timeout=60) as http:
        with http.stream("POST", "/api/chat", json=ask) as running:
            first = running.iter_lines()
            next(first)
            with http.stream("POST", "/api/chat", json=ask) as waiting:
                second = waiting.iter_lines()
                assert json.loads(next(second)) == {
                    "message": {"role": "assistant", "content": ""},
                    "done": False,
                }
                answer = http.post("/api/chat", json=ask)
                error_of(answer, 429)
                assert int(answer.headers["retry-after"]) >= 1
            slot = server.node.pool.find("endless")
            assert slot.loaded is not None
            slot.loaded.engine.close()
            assert set(json.loads(list(first)[-1])) == {"error"}
        assert 'route="/api/chat"' in http.get("/metrics").text


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("/api/chat", {"messages": MESSAGES, "options": OPTIONS}),
        ("/v1/messages", {"messages": MESSAGES, "max_tokens": len(SAYS), "temperature": 0}),
        ("/v1/responses", {"input": "say it", "max_output_tokens": len(SAYS), "temperature": 0}),
    ],
)
def test_every_api_counts_its_tokens_once(
    http: httpx.Client, path: str, fields: dict[str, Any], stream: bool
) -> None:
    def counted() -> float:
        sample = 'mecroute_completion_tokens_total{model="tiny"} '
        found = [line for line in http.get("/metrics").text.splitlines() if line.startswith(sample)]
        return float(found[0].removeprefix(sample)) if found else 0

    before = counted()
    assert http.post(path, json={"model": "tiny", "stream": stream, **fields}).status_code == 200
    assert counted() == before + len(SAYS)
