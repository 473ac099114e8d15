"""`/v1/embeddings` over an ONNX encoder, as OpenAI's own client and plain HTTP see it."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import ollama
import openai
import pytest

from mecroute_server.run import NodeServer
from mecroute_server.settings import ServerSettings
from support.server import running_node
from support.tiny_encoder import WORDS, embedding, write_encoder
from support.tiny_onnx import write_classifier


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NodeServer]:
    """A node with an encoder, served from its folder, and a classifier."""
    folder = tmp_path_factory.mktemp("onnx")
    encoder = write_encoder(folder / "encoder")
    (encoder / "config.json").write_text('{"model_type": "bert", "max_position_embeddings": 512}')
    classifier = write_classifier(folder / "c.onnx")
    settings = ServerSettings(
        port=0,
        registry_root=tmp_path_factory.mktemp("registry"),
        model_files=(encoder, classifier),
        threads=1,
    )
    with running_node(settings) as node:
        yield node


@pytest.fixture
def http(server: NodeServer) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=30) as client:
        yield client


def test_openai_client(server: NodeServer) -> None:
    texts = ["edge cloud", "device", "fast model fast"]
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        answer = client.embeddings.create(model="encoder", input=texts)
        short = client.embeddings.create(model="encoder", input="edge cloud", dimensions=3)
    vectors = [item.embedding for item in answer.data]
    np.testing.assert_allclose(vectors, [embedding(text) for text in texts], atol=1e-6)
    np.testing.assert_allclose(short.data[0].embedding, embedding("edge cloud", 3), atol=1e-6)
    assert answer.usage.prompt_tokens == 6
    assert answer.model == "encoder"


def test_ollamas_client(server: NodeServer) -> None:
    with ollama.Client(server.url, timeout=30) as client:
        answer = client.embed(model="encoder", input=["edge cloud", "device"])
        np.testing.assert_allclose(
            answer.embeddings, [embedding("edge cloud"), embedding("device")], atol=1e-6
        )
        assert answer.prompt_eval_count == 3
        short = client.embed(model="encoder", input="edge cloud", dimensions=3)
        np.testing.assert_allclose(short.embeddings[0], embedding("edge cloud", 3), atol=1e-6)
        with pytest.raises(ollama.ResponseError, match="does not embed texts"):
            client.embed(model="c", input="device")
    loaded = server.node.pool.find("c").loaded
    assert loaded is not None
    assert loaded.in_flight == 0


def test_ollamas_client_finds_the_embedder_and_nothing_else(server: NodeServer) -> None:
    with ollama.Client(server.url, timeout=30) as client:
        (listed,) = client.list().models
        assert (listed.model, listed.size is not None) == ("encoder", True)
        shown = client.show("encoder")
        assert listed.details
        assert listed.details == shown.details
        assert (listed.details.format, listed.details.family) == ("onnx", "bert")
        assert listed.details.families == ["bert"]
        assert listed.details.quantization_level == "float32"
        assert shown.capabilities == ["embedding"]
        assert shown.modelinfo
        assert shown.modelinfo["bert.context_length"] == 512
        with pytest.raises(ollama.ResponseError, match="embeds no texts"):
            client.show("c")


def test_token_ids_are_read_as_they_are(http: httpx.Client) -> None:
    ids = [WORDS.index("edge"), WORDS.index("cloud")]
    of_ids, mixed = (
        http.post("/v1/embeddings", json={"model": "encoder", "input": given}).json()["data"]
        for given in (ids, ["slow", ids])
    )
    np.testing.assert_allclose(of_ids[0]["embedding"], embedding("edge cloud"), atol=1e-6)
    np.testing.assert_allclose(mixed[1]["embedding"], embedding("edge cloud"), atol=1e-6)
    np.testing.assert_allclose(mixed[0]["embedding"], embedding("slow"), atol=1e-6)


def test_base64_is_the_same_as_numbers(http: httpx.Client) -> None:
    ask = {"model": "encoder", "input": ["edge cloud"]}
    (plain,) = http.post("/v1/embeddings", json=ask).json()["data"]
    (packed,) = http.post("/v1/embeddings", json={**ask, "encoding_format": "base64"}).json()["data"]
    got = np.frombuffer(base64.b64decode(packed["embedding"]), "<f4")
    np.testing.assert_array_equal(got, np.array(plain["embedding"], np.float32))


def test_a_burst_of_requests_of_all_lengths(server: NodeServer) -> None:
    texts = [" ".join(["edge", "cloud", "slow"][: 1 + n % 3] * (1 + n % 11)) for n in range(60)]

    async def ask() -> list[Any]:
        async with httpx.AsyncClient(base_url=server.url, timeout=60) as client:
            answers = await asyncio.gather(
                *(client.post("/v1/embeddings", json={"model": "encoder", "input": t}) for t in texts)
            )
        return [answer.raise_for_status().json()["data"][0]["embedding"] for answer in answers]

    np.testing.assert_allclose(asyncio.run(ask()), [embedding(text) for text in texts], atol=1e-6)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"input": []}, "at least one"),
        ({"input": [" "]}, "is empty"),
        ({"input": "edge " * 513}, "513 tokens"),
        ({"input": "a", "dimensions": 7}, "gives 6"),
        ({"input": "a", "dimensions": 0}, "at least 1"),
        ({"input": "a", "dimensions": True}, "at least 1"),
        ({"input": "a", "dimensions": "3"}, "at least 1"),
        ({"input": "a", "task": "x"}, "'task'"),
        ({"input": [1, 8]}, "vocabulary of 8"),
        ({"input": [[2], "edge", []]}, "input[2]"),
        ({"input": "a", "model": "c"}, "no tokenizer"),
    ],
)
def test_a_wrong_request_is_refused(http: httpx.Client, fields: dict[str, Any], says: str) -> None:
    answer = http.post("/v1/embeddings", json={"model": "encoder", **fields})
    assert answer.status_code == 400
    assert says in answer.json()["error"]["message"]


def test_the_encoder_is_reported_and_still_takes_tensors(http: httpx.Client) -> None:
    models = {model["ref"]: model for model in http.get("/admin/models").json()["models"]}
    assert models["encoder"]["tasks"] == ["embed", "infer"]
    assert models["c"]["tasks"] == ["infer"]
    tensor = {"datatype": "INT64", "shape": [1, 1], "data": [2]}
    names = ("input_ids", "attention_mask", "token_type_ids")
    body = {"inputs": [{"name": name, **tensor} for name in names]}
    answer = http.post("/v2/models/encoder/infer", json=body)
    assert answer.json()["outputs"][0]["shape"] == [1, 1, 6]


def test_tokens_are_counted(http: httpx.Client) -> None:
    def counted() -> float:
        lines = http.get("/metrics").text.splitlines()
        name = 'mecroute_prompt_tokens_total{model="encoder"}'
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name))

    before = counted()
    http.post("/v1/embeddings", json={"model": "encoder", "input": ["edge cloud", "slow"]}).raise_for_status()
    assert counted() == before + 3


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    from mecroute.errors import InvalidModelFileError

    settings = ServerSettings(port=0, registry_root=tmp_path / "registry", model_files=(tmp_path,))
    with pytest.raises(InvalidModelFileError), running_node(settings):
        pass
