"""A conversation goes on at another node without its prompt being computed there."""

from __future__ import annotations

import hashlib
import json
import random
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from mecroute.engines.llama.kv_snapshot import MAGIC
from mecroute.prefix_keys import prefix_keys
from mecroute_server.auth import scopes_for
from mecroute_server.run import NodeServer
from mecroute_server.settings import ServerSettings
from support.server import running_node
from support.tiny_gguf import write_tiny_gguf

TALK = [
    {"role": "system", "content": "You are a lighthouse keeper who answers at length and kindly."},
    {"role": "user", "content": "Tell me of the sea."},
]

#: One for all: to make a client takes longer than most answers.
HTTP = httpx.Client(timeout=60)


@pytest.fixture(scope="module", autouse=True)
def _closed() -> Iterator[None]:
    yield
    HTTP.close()


@pytest.fixture(scope="module")
def rambling(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with random weights: what it says depends on every token before."""
    return write_tiny_gguf(tmp_path_factory.mktemp("models") / "rambling.gguf", context_length=2048, seed=5)


def settings(path: Path, root: Path, **fields: Any) -> ServerSettings:
    return ServerSettings(
        **{
            "port": 0,
            "registry_root": root,
            "model_files": (path,),
            "threads": 1,
            "parallel": 2,
            "context": 1024,
            **fields,
        }
    )


@pytest.fixture(scope="module")
def nodes(
    rambling: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[NodeServer, NodeServer]]:
    roots = tmp_path_factory.mktemp("a"), tmp_path_factory.mktemp("b")
    with running_node(settings(rambling, roots[0])) as a, running_node(settings(rambling, roots[1])) as b:
        yield a, b


def ask(
    node: NodeServer, messages: list[dict[str, str]], session: str | None = None, max_tokens: int = 24
) -> dict[str, Any]:
    model = node.node.pool.ready()[0].ref
    answer = HTTP.post(
        f"{node.url}/v1/chat/completions",
        json={"model": model, "messages": messages, "temperature": 0, "max_tokens": max_tokens},
        headers={"x-mecroute-session": session} if session else {},
    )
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def said(answer: dict[str, Any]) -> str:
    return str(answer["choices"][0]["message"]["content"])


def cached(answer: dict[str, Any]) -> int:
    return int(answer["usage"]["prompt_tokens_details"]["cached_tokens"])


def export(node: NodeServer, name: str, **query: str) -> httpx.Response:
    return HTTP.post(f"{node.url}/admin/sessions/{name}/export", params=query)


def put(node: NodeServer, name: str, data: bytes, **query: str) -> httpx.Response:
    return HTTP.post(f"{node.url}/admin/sessions/{name}/import", content=data, params=query)


def code(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, str(answer.json()["error"]["code"])


@pytest.mark.parametrize("by", ["session", "key"])
def test_a_conversation_goes_on_at_another_node(nodes: tuple[NodeServer, NodeServer], by: str) -> None:
    a, b = nodes
    talk = [{"role": "system", "content": f"This is about moving by {by}."}, *TALK[1:]]
    answer = ask(a, talk, session=f"moving-{by}")
    first, prompt_tokens = said(answer), answer["usage"]["prompt_tokens"]
    name = f"moving-{by}" if by == "session" else prefix_keys(talk)[-1]
    exported = export(a, name)
    assert exported.headers["content-type"] == "application/octet-stream"
    assert put(b, name, exported.content).json()["tokens"] == prompt_tokens + 23

    longer = [*talk, {"role": "assistant", "content": first}, {"role": "user", "content": "And then?"}]
    at_b, at_a = ask(b, longer), ask(a, longer)
    assert said(at_b) == said(at_a)
    assert cached(at_b) == cached(at_a) >= prompt_tokens

    listed = httpx.get(f"{b.url}/admin/sessions").json()["sessions"]
    assert listed[0]["key"] == prefix_keys(longer)[-1]
    assert listed[0]["model"] == b.node.pool.ready()[0].ref


def test_the_node_reports_what_is_in_memory(nodes: tuple[NodeServer, NodeServer]) -> None:
    a, _ = nodes
    talk = [{"role": "user", "content": "What do you report?"}]
    before = httpx.get(f"{a.url}/admin/node").json()["models"][0]
    assert not set(prefix_keys(talk)) & set(before["prefixes"])
    answer = said(ask(a, talk))
    longer = [*talk, {"role": "assistant", "content": answer}, {"role": "user", "content": "More?"}]
    ask(a, longer)
    after = httpx.get(f"{a.url}/admin/node").json()["models"][0]
    keys = prefix_keys(longer)
    assert after["prefixes"][:3] == [keys[2], keys[1], keys[0]]
    assert 0 < after["prefix_hit_rate"] < 1
    metrics = httpx.get(f"{a.url}/metrics").text
    for name in ("prefix_hit_rate", "kv_cached_tokens", "prefix_evictions_total"):
        assert f'mecroute_{name}{{model="rambling"}}' in metrics


def test_what_is_not_there_and_what_is_not_a_name(nodes: tuple[NodeServer, NodeServer]) -> None:
    a, _ = nodes
    assert code(export(a, "nobody")) == (404, "session_not_found")
    assert export(a, "nobody", model="absent").status_code == 404
    assert code(export(a, "no spaces")) == (400, "invalid_request")
    refused = httpx.post(
        f"{a.url}/v1/chat/completions",
        json={"model": "rambling", "messages": TALK},
        headers={"x-mecroute-session": "x" * 129},
    )
    assert refused.status_code == 400


def test_a_conversation_that_is_being_answered_stays(rambling: Path, tmp_path: Path) -> None:
    long = write_tiny_gguf(tmp_path / "long.gguf", context_length=32768, says="HELO-WRD")
    with running_node(settings(long, tmp_path, context=32768)) as node:
        body: dict[str, Any] = {
            "model": "long",
            "messages": TALK,
            "max_tokens": 30000,
            "temperature": 0,
            "stream": True,
        }
        with httpx.stream(
            "POST",
            f"{node.url}/v1/chat/completions",
            json=body,
            headers={"x-mecroute-session": "busy"},
            timeout=60,
        ) as stream:
            lines = stream.iter_lines()  # held: the stream ends with its reader
            next(lines)
            assert code(export(node, "busy")) == (409, "session_conflict")


def test_another_model_is_refused(nodes: tuple[NodeServer, NodeServer], tmp_path: Path) -> None:
    a, _ = nodes
    ask(a, TALK, session="mine")
    data = export(a, "mine").content
    other = write_tiny_gguf(tmp_path / "other.gguf", context_length=2048, seed=6)
    with running_node(settings(other, tmp_path)) as node:
        assert code(put(node, "mine", data)) == (409, "session_conflict")


def test_what_does_not_fit_is_refused(
    nodes: tuple[NodeServer, NodeServer], rambling: Path, tmp_path: Path
) -> None:
    a, _ = nodes
    ask(a, [{"role": "user", "content": "word " * 100}], session="wide")
    data = export(a, "wide").content
    small = settings(rambling, tmp_path, context=128, max_session_bytes=len(data) + 1)
    with running_node(small) as node:
        assert code(put(node, "wide", data)) == (409, "session_conflict")
        assert code(put(node, "wide", data + b"xx")) == (413, "request_too_large")


def test_whatever_is_imported_the_node_lives_on(nodes: tuple[NodeServer, NodeServer]) -> None:
    a, b = nodes
    talk = [{"role": "user", "content": "This one is going to be damaged in every way."}]
    ask(a, talk, session="fuzz")
    data = export(a, "fuzz").content
    (length,) = struct.unpack_from("<I", data, len(MAGIC))
    head_at = len(MAGIC) + 4
    header = json.loads(data[head_at : head_at + length])
    state_at = head_at + length + 4 * header["tokens"]

    def with_header(**changes: Any) -> bytes:
        changed = json.dumps({**header, **changes}).encode()
        return resealed(MAGIC + struct.pack("<I", len(changed)) + changed + data[head_at + length :])

    def resealed(content: bytes) -> bytes:
        return content[:-32] + hashlib.sha256(content[:-32]).digest()

    def with_state(at: int, value: bytes) -> bytes:
        where = state_at + at
        return resealed(data[:where] + value + data[where + len(value) :])

    bad: dict[str, bytes] = {
        "empty": b"",
        "text": b"{}",
        "magic": MAGIC,
        "length": MAGIC + struct.pack("<I", 2**32 - 1) + b"{}",
        "not json": MAGIC + struct.pack("<I", 3) + b"{x}",
        "a list": MAGIC + struct.pack("<I", 2) + b"[]",
        "deep": MAGIC + struct.pack("<I", 60000) + b"[" * 60000,
        "cut": data[:-1],
        "half": data[: len(data) // 2],
        "longer": data + b"x",
        "digest": data[:-1] + bytes([data[-1] ^ 1]),
        "version": with_header(version=2),
        "no tokens": with_header(tokens=0),
        "many tokens": with_header(tokens=10**6),
        "tokens are text": with_header(tokens="7"),
        "tokens are true": with_header(tokens=True),
        "fewer tokens": with_header(tokens=header["tokens"] - 1),
        "state size": with_header(state_bytes=header["state_bytes"] + 4),
        "keys": with_header(keys=["x"]),
        "many keys": with_header(keys=["0" * 16] * 65),
        "session": with_header(session="no spaces"),
        "token": resealed(data[: state_at - 4] + struct.pack("<i", 10**6) + data[state_at:]),
        "negative token": resealed(data[: state_at - 4] + struct.pack("<i", -1) + data[state_at:]),
        "state magic": with_state(0, b"\0\0\0\0"),
        "streams": with_state(8, struct.pack("<I", 2)),
        "cells": with_state(12, struct.pack("<I", 2**31)),
        "position": with_state(16, struct.pack("<i", -5)),
        "position twice": with_state(16, struct.pack("<i", 1)),
        "position far": with_state(16, struct.pack("<i", 2**31 - 1)),
        "sequences of a cell": with_state(20, struct.pack("<I", 2**31)),
        "sequence": with_state(24, struct.pack("<i", 999)),
        "layers": with_state(16 + 12 * header["tokens"] + 4, struct.pack("<I", 3)),
        "type": with_state(16 + 12 * header["tokens"] + 8, struct.pack("<i", 2)),
        "row": with_state(16 + 12 * header["tokens"] + 12, struct.pack("<Q", 2**40)),
        "not finite": with_state(16 + 12 * header["tokens"] + 20, struct.pack("<e", float("nan"))),
    }
    for name, content in bad.items():
        answer = put(b, "fuzz", content)
        assert code(answer) == (400, "invalid_snapshot"), name
    for field in ("model", "build", "layout"):
        assert code(put(b, "fuzz", with_header(**{field: "another"}))) == (409, "session_conflict")

    rng = random.Random(0)
    for number in range(150):
        damaged = bytearray(data)
        for _ in range(rng.randint(1, 4)):
            # Mostly where the structure is; the numbers in the cells are most of the bytes.
            limit = state_at + 16 + 12 * header["tokens"] + 40 if rng.random() < 0.8 else len(data)
            damaged[rng.randrange(limit)] = rng.randrange(256)
        content = resealed(bytes(damaged)) if number % 2 else bytes(damaged)
        answer = put(b, "fuzz", content)
        assert answer.status_code in (200, 400, 409), answer.text
        if answer.status_code == 200 and rng.random() < 0.5:
            ask(b, talk, max_tokens=3)  # whatever the cells say, an answer comes
    huge = struct.pack("<e", 65504.0) * ((header["state_bytes"] - 16 - 12 * header["tokens"]) // 8)
    put(b, "fuzz", with_state(16 + 12 * header["tokens"] + 20, huge[:2000]))
    ask(b, [*talk, {"role": "assistant", "content": "x"}], max_tokens=3)
    # And the true one is taken still.
    assert put(b, "fuzz", data).status_code == 200
    assert httpx.get(f"{b.url}/readyz").status_code == 200


def test_only_admins_move_conversations(rambling: Path, tmp_path: Path) -> None:
    with running_node(settings(rambling, tmp_path, api_keys=("secret",))) as node:
        assert export(node, "x").status_code == 401
    for path in ("/admin/sessions", "/admin/sessions/x/export", "/admin/sessions/x/import"):
        assert {str(scope) for scope in scopes_for("POST", path)} == {"admin"}
