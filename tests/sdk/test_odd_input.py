"""Odd arguments, odd answers and odd settings: an answer or a `MecrouteError`, never another exception."""

from __future__ import annotations

import asyncio
import decimal
import json
import math
import random
import sqlite3
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI, Request
from fastapi.responses import Response

from mecroute import AsyncClient, Client, Config, Requirements
from mecroute.config import CloudConfig, DeviceConfig, NodeConfig, RegistryConfig, StateConfig, load_config
from mecroute.errors import ConfigError, InvalidRequestError, MecrouteError, UsageError
from mecroute.request import ingest
from mecroute.state.store import Batch, LearnedRow, StateStore
from support.upstream import Upstream, running, upstream

HELLO = [{"role": "user", "content": "Hello"}]


class Unshowable:
    """Raises where it is shown."""

    def __repr__(self) -> str:
        raise RuntimeError


def within_itself() -> list[Any]:
    holder: list[Any] = []
    holder.append(holder)
    return holder


def nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


JSON_VALUES: list[Any] = [
    None, True, False, 0, 1, -1, 1.5, 1e300, "", " ", "auto", "\0", "中文🙂", [], [None], [1], ["x"], [[]],
    [{}], {}, {"a": 1}, {"type": "json_schema"}, {"type": []}, [{"type": "function", "function": []}],
    [{"type": "text", "text": "x"}], [{"type": "image_url", "image_url": 3}], {"include_usage": 1}, 2**63,
]  # fmt: skip
NO_JSON: list[Any] = [
    math.nan, math.inf, 10**400, 10**5000, "\ud800", b"x", {1: 2}, {1}, object(), Unshowable(), int, 1j,
    decimal.Decimal("NaN"), range(3), iter([1]), within_itself(), nested(3000), ["\ud800"], [math.nan, 1.0],
]  # fmt: skip
OPTIONS = (
    "temperature", "max_tokens", "max_completion_tokens", "stop", "response_format", "tools", "functions",
    "grammar", "logprobs", "logit_bias", "user", "app", "key", "stream_options", "prompt_cache_key", "weird",
)  # fmt: skip


@pytest.fixture
def mec() -> Iterator[Upstream]:
    model = {"ref": "fox:1", "state": "ready", "context_length": 4096, "accuracy": 0.8}
    with upstream(report={"node": "n", "models": [model]}) as up:
        yield up


def config(tmp_path: Path, url: str) -> Config:
    return Config(
        registry=RegistryConfig(path=tmp_path / "registry"),
        device=DeviceConfig(enabled=False),
        state=StateConfig(path=tmp_path / "state.sqlite3"),
        nodes=(NodeConfig(name="n1", url=url),),
        cloud=(CloudConfig(name="c1", base_url=f"{url}/v1", model="big"),),
    )


async def call(client: AsyncClient, what: str, odd: Any, options: dict[str, Any]) -> None:
    if what == "route":
        decision = await client.route(messages=HELLO, **options)
        json.dumps(decision.to_dict())
    elif what == "chat":
        await client.chat.completions.create(messages=HELLO, **options)
    elif what == "messages":
        await client.chat.completions.create(messages=odd)
    elif what == "message":
        await client.chat.completions.create(messages=[*HELLO, {"role": "user", "content": odd}])
    elif what == "stream":
        async for _ in await client.chat.completions.create(messages=HELLO, stream=True, **options):
            pass
    elif what == "model":
        await client.route(messages=HELLO, model=odd)
    elif what == "requirements":
        for name in (*Requirements.__slots__, "weird"):
            with suppress(MecrouteError):
                await client.route(messages=HELLO, requirements={name: odd})
    elif what == "whole requirements":
        await client.route(messages=HELLO, requirements=odd)
    elif what == "embed":
        await client.embeddings.create(input=odd)
    elif what == "classify":
        await client.classify(input=odd)
    elif what == "infer":
        tensor = {"name": "x", "shape": odd, "datatype": odd, "data": odd}
        await client.infer(model="fox", inputs=[tensor], outputs=odd)
    elif what == "inputs":
        await client.infer(model="fox", inputs=odd)
    elif what == "feedback":
        await client.feedback(odd, score=0.5)
    elif what == "score":
        await client.feedback("req-1", score=odd)


CALLS = (
    "route", "chat", "messages", "message", "stream", "model", "requirements", "whole requirements", "embed",
    "classify", "infer", "inputs", "feedback", "score",
)  # fmt: skip


def test_every_public_call_refuses_odd_arguments(tmp_path: Path, mec: Upstream) -> None:
    answered = asyncio.run(every_call(config(tmp_path, mec.url)))
    assert answered > 20, "the sound ones among them are answered"


async def every_call(settings: Config) -> int:
    """How many of the odd calls were answered; the others ended in a `MecrouteError`."""
    chance = random.Random(7)
    answered = 0
    async with AsyncClient(settings) as client:
        for what in CALLS:
            for odd in (*JSON_VALUES, *NO_JSON):
                names = chance.sample(OPTIONS, 2)
                options = {names[0]: odd, names[1]: chance.choice(JSON_VALUES)}
                with suppress(MecrouteError):
                    async with asyncio.timeout(20):
                        await call(client, what, odd, options)
                    answered += 1
    return answered


@pytest.mark.parametrize("odd", NO_JSON, ids=lambda value: type(value).__name__)
def test_what_is_no_json_is_refused_by_the_name_of_its_field(odd: Any) -> None:
    with pytest.raises(InvalidRequestError, match="metadata"):
        ingest("chat", model="auto", body={"messages": HELLO, "metadata": {"inner": odd}})


WHOLE = {
    "id": "a", "object": "chat.completion", "created": 1, "model": "fox",
    "choices": [{
        "index": 0, "message": {"role": "assistant", "content": "Hi"}, "finish_reason": "stop",
        "logprobs": {"content": [{"token": "Hi", "logprob": -0.1, "bytes": [72, 105], "top_logprobs": []}]},
    }],
    "usage": {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7},
    "timings": {"ttft_ms": 3.0, "prefill_ms": 2.0, "decode_ms": 1.0},
}  # fmt: skip
CLASSES = {
    "id": "a", "object": "list", "created": 1, "model": "moods",
    "data": [{
        "index": 0, "label": "Hi", "probs": [0.9, 0.1], "num_classes": 2,
        "scores": [{"label": "Hi", "score": 0.9}, {"label": "Bye", "score": 0.1}],
    }],
    "usage": {"prompt_tokens": 5, "completion_tokens": 0, "total_tokens": 5},
}  # fmt: skip
CHUNK = {
    "id": "a", "object": "chat.completion.chunk", "created": 1, "model": "fox",
    "choices": [{"index": 0, "delta": {"role": "assistant", "content": "Hi"}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7},
}  # fmt: skip
REPORT = {
    "node": "n", "zone": "z", "cpu_percent": 5.0,
    "models": [{
        "ref": "fox:1", "state": "ready", "context_length": 4096, "parallel": 4, "running": 0, "queued": 0,
        "accuracy": 0.8, "prefill_tokens_per_s": 5000, "decode_tokens_per_s": 500, "prefixes": ["aa"],
        "decode_slowdown": 0.3, "prefill_left_tokens": 7,
    }, {
        "ref": "moods", "state": "ready", "tasks": ["classify", "infer"], "labels": ["Hi", "Bye"],
    }],
}  # fmt: skip
ANSWERS: list[Any] = [
    None, True, -1, 10**400, 1e308, -5.5, math.nan, "", "x", "\ud800", [], [None], [1], [[]], [{}], {},
    {"a": 1},
]  # fmt: skip


def damaged(value: Any, chance: random.Random, share: float) -> Any:
    """A copy in which about that share of the values is replaced, or missing."""
    if chance.random() < share:
        return chance.choice(ANSWERS)
    if isinstance(value, dict):
        return {k: damaged(v, chance, share) for k, v in value.items() if chance.random() > share / 2}
    if isinstance(value, list):
        return [damaged(item, chance, share) for item in value]
    return value


def liar(chance: random.Random) -> FastAPI:
    app = FastAPI()

    def written(value: Any) -> bytes:
        if chance.random() < 0.02:
            return chance.choice([b"", b"\xff", b"[" * 100_000, b"<html>"])
        return json.dumps(damaged(value, chance, chance.choice([0, 0.03, 0.15]))).encode()

    @app.get("/admin/node")
    async def node() -> Response:
        return Response(written(REPORT), headers={"etag": '"1"', "server-timing": "total;dur=1e9"})

    @app.post("/v1/chat/completions")
    async def chat(request: Request) -> Response:
        load = chance.choice(["r=1;q=0;p=2", "r=-1;q=9;p=0", "r=1;q=0;p=2;pf=nan;de=inf", "x"])
        headers = {"x-mecroute-load": load, "retry-after": chance.choice(["nan", "-1", "1e400", "x"])}
        status = 200 if chance.random() < 0.9 else chance.choice([204, 302, 404, 418, 422])
        if (await request.json()).get("stream"):
            lines = [b"data: " + written(CHUNK) + b"\n\n" for _ in range(3)]
            return Response(b"".join(lines) + b"data: [DONE]\n\n", status, headers, "text/event-stream")
        return Response(written(WHOLE), status, headers, "application/json")

    @app.post("/v1/classify")
    async def classify() -> Response:
        return Response(
            written(CLASSES), 200 if chance.random() < 0.9 else 422, media_type="application/json"
        )

    return app


def test_whatever_servers_answer_is_an_answer_or_an_error_of_ours(tmp_path: Path) -> None:
    with running(liar(random.Random(3))) as url:
        assert asyncio.run(ask(tmp_path, url)) > 20


async def ask(folder: Path, url: str) -> int:
    """How many requests were answered; the others ended in a `MecrouteError`."""
    answered = 0
    for run in range(40):  # a client lets a target rest that failed: a new one asks again
        async with AsyncClient(config(folder / str(run), url)) as client:
            for number in range(8):
                with suppress(MecrouteError):
                    async with asyncio.timeout(20):
                        if number >= 6:
                            model = "fox" if number == 6 else "moods"
                            found = await client.classify(
                                "x", labels=["Hi", "Bye"], model=model, requirements={"cascade": True}
                            )
                            json.dumps(found.mecroute.to_dict())
                        elif number % 2:
                            reply = await client.chat.completions.create(messages=HELLO)
                            json.dumps(reply.mecroute.to_dict())
                        else:
                            async for chunk in await client.chat.completions.create(
                                messages=HELLO, stream=True
                            ):
                                chunk.to_dict()
                    answered += 1
    return answered


@pytest.mark.parametrize("odd", [True, 5, 1.5, "mecroute.toml", b"x", {"device": {}}, [], object()])
def test_a_client_of_no_configuration_is_refused(odd: Any) -> None:
    for kind in (Client, AsyncClient):
        with pytest.raises(ConfigError, match=r"must be a mecroute\.Config"):
            kind(odd)


@pytest.mark.parametrize("odd", [True, 5, b"x", [], {"a": 1}, object(), "\ud800", "no\0such", "x" * 10_000])
def test_a_path_that_is_none_is_a_config_error(odd: Any) -> None:
    with pytest.raises(ConfigError):
        load_config(odd)


def test_a_closed_client_says_so(tmp_path: Path) -> None:
    client = Client(config(tmp_path, "http://127.0.0.1:9"))
    stream = client.chat.completions
    client.close()
    client.close()
    with pytest.raises(UsageError, match="closed"):
        stream.create(messages=[{"role": "user", "content": "x"}])


def test_a_stream_ends_with_its_client(tmp_path: Path, mec: Upstream) -> None:
    client = Client(config(tmp_path, mec.url))
    with client.chat.completions.create(messages=HELLO, stream=True) as stream:
        assert next(stream)
        client.close()
        with pytest.raises(UsageError, match="closed"):
            list(stream)
    stream.close()


def test_a_closed_async_client_says_so(tmp_path: Path) -> None:
    async def run() -> None:
        client = AsyncClient(config(tmp_path, "http://127.0.0.1:9"))
        await client.aclose()
        await client.aclose()
        with pytest.raises(UsageError, match="closed"):
            await client.route(messages=HELLO)

    asyncio.run(run())


@pytest.mark.parametrize("stream", [False, True])
def test_a_call_that_is_under_way_when_its_client_is_closed_says_so(
    tmp_path: Path, mec: Upstream, stream: bool
) -> None:
    mec.delay_s = 30
    client = Client(config(tmp_path, mec.url))
    with ThreadPoolExecutor() as threads:
        call = threads.submit(client.chat.completions.create, messages=HELLO, stream=stream)
        ends_at = time.monotonic() + 30
        while not mec.requests:
            assert time.monotonic() < ends_at
            time.sleep(0.01)
        client.close()
        with pytest.raises(UsageError, match="closed"):
            call.result(30)


@pytest.mark.parametrize(
    "text",
    [
        "[router]\nlatency_target_ms = nan",
        "[router]\ncost_target_usd = inf",
        "[monitor]\nexplore_budget_usd_per_day = nan",
        "[monitor]\nexplore_max_slowdown = inf",
        '[[cloud]]\nname = "c"\nbase_url = "http://x/v1"\nmodel = "m"\ninput_usd_per_mtok = inf',
        '[[nodes]]\nname = "n"\nurl = 5',
        "router = 5",
        "[router]\npolicies = { mine = 3 }",
        "[state]\nmax_bytes = -1",
    ],
)
def test_an_odd_setting_is_a_config_error(tmp_path: Path, text: str) -> None:
    path = tmp_path / "mecroute.toml"
    path.write_text(text)
    with pytest.raises(ConfigError):
        load_config(path)


@pytest.mark.parametrize("damage", ["{", "5", '{"count": "x"}', '{"count": null}', "null"])
def test_a_damaged_generation_in_the_database_stops_nothing(tmp_path: Path, damage: str) -> None:
    store = StateStore(tmp_path / "state.sqlite3")
    store.write(Batch(learned=[LearnedRow("user", "ann", 1.0, {"tokens": 5.0})]))
    store.close()
    with closing(sqlite3.connect(tmp_path / "state.sqlite3")) as database:
        database.execute("INSERT INTO learned VALUES ('meta', 'generation', 0, ?)", (damage,))
        database.commit()
    assert store.generation() == 0
    assert store.restored() == (0, [LearnedRow("user", "ann", 1.0, {"tokens": 5.0})])
    store.close()
