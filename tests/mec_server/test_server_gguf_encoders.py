"""GGUF encoders: embeddings pooled as their files say, rerankers, and nothing that they cannot do."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import numpy as np
import openai
import pytest

from mecroute_server.run import NodeServer
from mecroute_server.settings import ServerSettings
from support.server import running_node
from support.tiny_bert_gguf import hidden, ids_of, probability, write_tiny_bert_gguf

TEXTS = ["edge cloud", "device", "fast slow model edge edge"]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NodeServer]:
    folder = tmp_path_factory.mktemp("encoders")
    settings = ServerSettings(
        port=0,
        registry_root=tmp_path_factory.mktemp("registry"),
        model_files=tuple(
            write_tiny_bert_gguf(folder / f"{pooling.lower()}.gguf", pooling)
            for pooling in ("MEAN", "CLS", "LAST", "RANK")
        ),
        threads=1,
    )
    with running_node(settings) as node:
        yield node


@pytest.fixture
def http(server: NodeServer) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=30) as client:
        yield client


@pytest.mark.parametrize("pooling", ["mean", "cls", "last"])
def test_vectors_are_pooled_as_the_file_says(server: NodeServer, pooling: str) -> None:
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
    answer = client.embeddings.create(model=pooling, input=TEXTS)
    for text, item in zip(TEXTS, answer.data, strict=True):
        rows = hidden(ids_of(text))
        expected = {"mean": rows.mean(0), "cls": rows[0], "last": rows[-1]}[pooling]
        np.testing.assert_allclose(item.embedding, expected / np.linalg.norm(expected), atol=1e-3)
    assert answer.usage.prompt_tokens == sum(len(ids_of(text)) for text in TEXTS)


def test_a_reranker_reads_query_and_document_together(http: httpx.Client) -> None:
    body = {"model": "rank", "query": "edge cloud", "documents": TEXTS}
    answer = http.post("/v1/rerank", json=body).json()
    scores = {item["index"]: item["relevance_score"] for item in answer["results"]}
    expected = {at: probability("edge cloud", text) for at, text in enumerate(TEXTS)}
    assert scores == pytest.approx(expected, abs=1e-3)
    assert list(scores) == sorted(expected, key=lambda at: -expected[at])
    assert max(expected.values()) - min(expected.values()) > 0.01  # or the order would mean nothing


def test_an_embedder_reranks_by_the_cosine(http: httpx.Client) -> None:
    answer = http.post("/v1/rerank", json={"model": "cls", "query": "device", "documents": TEXTS}).json()
    assert answer["results"][0]["index"] == 1
    assert answer["results"][0]["relevance_score"] == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(
    ("path", "body", "says"),
    [
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "edge"}]}, "encoder"),
        ("/v1/completions", {"prompt": "edge"}, "encoder"),
        ("/v1/completions", {"prompt": "edge", "stream": True}, "encoder"),
        ("/v1/responses", {"input": "edge"}, "encoder"),
        ("/v1/embeddings", {"input": "edge"}, "/v1/rerank"),
        ("/v1/classify", {"input": "edge"}, "as a GGUF model it has no classes, and can be asked for rerank"),
        (
            "/v2/models/rank/infer",
            {"inputs": [{"name": "x", "datatype": "FP32", "shape": [0], "data": []}]},
            "is a GGUF model, which takes no tensors (ask it with POST /v1/rerank)",
        ),
        ("/v1/rerank", {"query": "edge", "documents": ["edge " * 70]}, "document 0"),
    ],
)
def test_what_a_reranker_cannot_do_is_refused(
    http: httpx.Client, path: str, body: dict[str, object], says: str
) -> None:
    answer = http.post(path, json={"model": "rank", **body})
    assert answer.status_code == 400, answer.text
    assert says in answer.text


def test_the_node_says_what_they_can_be_asked(http: httpx.Client) -> None:
    models = {model["ref"]: model["tasks"] for model in http.get("/admin/node").json()["models"]}
    assert models == {"mean": ["embed"], "cls": ["embed"], "last": ["embed"], "rank": ["rerank"]}
