"""LoRA adapters per request: each changes its own answers, and nobody else's."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from mecroute.errors import InvalidModelFileError
from mecroute_server.run import NodeServer
from mecroute_server.settings import ServerSettings
from support.gguf_bytes import ARCHITECTURE, F32, STRING, U32, entry, gguf_bytes, text
from support.server import SAYS, running_node
from support.tiny_lora import write_tiny_lora

BACKWARDS = SAYS[0] + SAYS[:0:-1]
SWAPPED = SAYS[0] + SAYS[4:] + SAYS[1:4]
#: What the model says with which adapter.
EXPECTED: dict[str | None, str] = {None: SAYS, "backwards": BACKWARDS, "swapped": SWAPPED}


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("adapters")
    return {
        "backwards": write_tiny_lora(folder / "backwards.gguf", SAYS, BACKWARDS),
        "swapped": write_tiny_lora(folder / "swapped.gguf", SAYS, SWAPPED),
        "narrow": write_tiny_lora(folder / "narrow.gguf", SAYS, BACKWARDS, embedding=32),
        "foreign": write_tiny_lora(folder / "foreign.gguf", SAYS, BACKWARDS, architecture="qwen2"),
    }


@pytest.fixture(scope="module")
def server(
    tiny: Path, adapters: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[NodeServer]:
    settings = ServerSettings(
        port=0,
        registry_root=tmp_path_factory.mktemp("registry"),
        model_files=(tiny,),
        threads=1,
        parallel=2,
        adapters=adapters,
    )
    with running_node(settings) as node:
        yield node


def lora(adapter: str | None, **fields: Any) -> dict[str, Any]:
    return {} if adapter is None else {"lora": [{"name": adapter, **fields}]}


def ask(server: NodeServer, max_tokens: int = len(SAYS), **fields: Any) -> httpx.Response:
    body = {"model": "tiny", "prompt": "x", "temperature": 0, "max_tokens": max_tokens, **fields}
    return httpx.post(f"{server.url}/v1/completions", json=body, timeout=60)


def says(server: NodeServer, max_tokens: int = len(SAYS), **fields: Any) -> str:
    answer = ask(server, max_tokens, **fields)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["choices"][0]["text"])


def test_an_adapter_changes_the_answer_and_only_that(server: NodeServer) -> None:
    for adapter in (None, "backwards", None, "swapped", "backwards", None):
        assert says(server, **lora(adapter)) == EXPECTED[adapter]
    assert says(server, lora=[{"id": 1}]) == SWAPPED
    assert says(server, lora=[{"id": 0, "scale": 0}]) == SAYS
    assert says(server, lora=[]) == SAYS
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        stream = client.chat.completions.create(
            model="tiny",
            messages=[{"role": "user", "content": "hi"}],
            temperature=0,
            max_tokens=len(SAYS),
            stream=True,
            extra_body=lora("backwards"),
        )
        assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == BACKWARDS


def test_the_scale_is_how_much_of_it_is_added(server: NodeServer) -> None:
    # The base's own preference is 4, and the adapter's 8 against it.
    assert says(server, **lora("backwards", scale=0.1)) == SAYS
    assert says(server, **lora("backwards", scale=0.9)) == BACKWARDS
    both = [{"name": "backwards", "scale": 0.1}, {"name": "swapped"}]
    assert says(server, lora=both) == says(server, lora=both[::-1]) == SWAPPED


def test_requests_at_the_same_time_each_get_what_they_get_alone(server: NodeServer) -> None:
    wanted = list(EXPECTED) * 8
    rounds = 5
    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(lambda adapter: says(server, rounds * len(SAYS), **lora(adapter)), wanted))
    assert answers == [EXPECTED[adapter] * rounds for adapter in wanted]


def test_a_prefix_is_reused_with_the_same_adapter_only(server: NodeServer) -> None:
    prompt = "the same long beginning of a prompt that nobody else has sent"

    def cached(adapter: str | None) -> int:
        answer = ask(server, 2, prompt=prompt, **lora(adapter)).json()
        return int(answer["usage"]["prompt_tokens_details"]["cached_tokens"])

    # Every prompt begins with the same token, which may be there already.
    assert cached("backwards") <= 1
    assert cached("backwards") > 10
    assert cached("swapped") <= 1
    assert cached(None) <= 1
    assert cached(None) > 10


def test_several_answers_share_the_adapter(server: NodeServer) -> None:
    answer = ask(server, n=2, **lora("swapped")).json()
    assert [choice["text"] for choice in answer["choices"]] == [SWAPPED] * 2


def test_more_combinations_than_fit_are_used_in_turn(server: NodeServer) -> None:
    for scale in (0.91, 0.92, 0.93, 0.94, 0.95, 0.96):
        assert says(server, **lora("backwards", scale=scale)) == BACKWARDS
    stats = server.node.pool.find("tiny").loaded.engine.stats()  # type: ignore[union-attr]
    assert stats.kv_total_tokens == 5 * 2 * 256  # without any, and the four that were used last
    assert (stats.running, stats.queued) == (0, 0)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ([{"name": "narrow"}], "wrong base model"),
        ([{"name": "foreign"}], "arch mismatch"),
        ([{"name": "nope"}], "no adapter 'nope'"),
        ([{"id": 9}], "lora[0].id"),
        ([{"id": True}], "lora[0].id"),
        ([{"name": "swapped", "id": 1}], "either"),
        ([{}], "either"),
        ([{"name": "swapped", "scale": "much"}], "scale"),
        ([{"name": "swapped", "scale": 1000}], "scale"),
        ([{"name": "swapped"}, {"id": 1}], "twice"),
        ([{"name": "swapped", "weight": 1}], "lora[0]"),
        ("swapped", "not a list"),
        ([{"name": "swapped"}] * 9, "at most 8"),
    ],
)
def test_a_wrong_request_says_what_is_wrong(server: NodeServer, given: Any, said: str) -> None:
    answer = ask(server, lora=given)
    assert answer.status_code == 400
    assert said in answer.json()["error"]["message"]
    assert says(server) == SAYS


def test_the_adapters_are_listed(server: NodeServer, adapters: dict[str, Path]) -> None:
    assert httpx.get(f"{server.url}/admin/node").json()["adapters"] == list(adapters)


@pytest.mark.parametrize(
    "content",
    [
        b"not GGUF",
        gguf_bytes(),
        gguf_bytes([ARCHITECTURE, entry("general.type", STRING, text("model"))]),
        gguf_bytes([ARCHITECTURE, entry("general.type", U32, struct.pack("<I", 1))]),
        gguf_bytes(
            [
                ARCHITECTURE,
                entry("general.type", STRING, text("adapter")),
                entry("adapter.lora.alpha", U32, struct.pack("<I", 1)),
            ]
        ),
        gguf_bytes(
            [
                ARCHITECTURE,
                entry("general.type", STRING, text("adapter")),
                entry("adapter.type", F32, struct.pack("<f", 1)),
            ]
        ),
    ],
    ids=["no gguf", "a model", "a model that says so", "type no text", "alpha no float", "kind no text"],
)
def test_a_file_that_is_no_adapter_is_refused_at_start(tmp_path: Path, tiny: Path, content: bytes) -> None:
    path = tmp_path / "a.gguf"
    path.write_bytes(content)
    settings = ServerSettings(
        port=0, registry_root=tmp_path / "registry", model_files=(tiny,), adapters={"a": path}
    )
    with pytest.raises(InvalidModelFileError), running_node(settings):
        pass


def test_an_adapter_without_its_half_is_refused_and_the_node_lives_on(tmp_path: Path, tiny: Path) -> None:
    path = tmp_path / "half.gguf"
    head = [
        ARCHITECTURE,
        entry("general.type", STRING, text("adapter")),
        entry("adapter.type", STRING, text("lora")),
        entry("adapter.lora.alpha", F32, struct.pack("<f", 1)),
    ]
    path.write_bytes(gguf_bytes(head))
    settings = ServerSettings(
        port=0, registry_root=tmp_path / "r", model_files=(tiny,), adapters={"half": path}, threads=1
    )
    with running_node(settings) as server:
        answer = ask(server, **lora("half"))
        assert answer.status_code == 400
        assert "half" in json.dumps(answer.json())
        assert says(server) == SAYS
