"""`/v1/classify` and `/v1/rerank`: what the models say, batched, and nothing else."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from mecroute.errors import InvalidModelFileError
from mecroute_server.run import NodeServer
from mecroute_server.settings import ServerSettings
from support.server import SAYS, running_node
from support.tiny_encoder import (
    WORDS,
    embedding,
    relevance,
    word_logits,
    write_cross_encoder,
    write_encoder,
    write_text_classifier,
)

LABELS = ("calm", "angry", "sad")
DOCUMENTS = ["edge", "cloud cloud fast", "device slow model", "edge cloud"]


@pytest.fixture(scope="module")
def server(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[NodeServer]:
    folder = tmp_path_factory.mktemp("scoring")
    settings = ServerSettings(
        port=0,
        registry_root=tmp_path_factory.mktemp("registry"),
        model_files=(
            write_text_classifier(folder / "moods", LABELS),
            write_text_classifier(folder / "tags", LABELS, problem_type="multi_label_classification"),
            write_cross_encoder(folder / "judge"),
            write_encoder(folder / "encoder"),
            tiny,
        ),
        threads=1,
    )
    with running_node(settings) as node:
        yield node


@pytest.fixture
def http(server: NodeServer) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=30) as client:
        yield client


def logits_of(text: str) -> Any:
    return word_logits(len(LABELS))[[WORDS.index(word) for word in text.split()]].sum(0)


def test_classes_with_their_probabilities(http: httpx.Client) -> None:
    texts = ["edge cloud", "device", "fast model fast slow"]
    body = http.post("/v1/classify", json={"model": "moods", "input": texts}).json()
    assert [item["index"] for item in body["data"]] == [0, 1, 2]
    for text, item in zip(texts, body["data"], strict=True):
        logits = logits_of(text).astype(np.float64)
        expected = np.exp(logits) / np.exp(logits).sum()
        np.testing.assert_allclose(item["probs"], expected, atol=1e-6)
        assert sum(item["probs"]) == pytest.approx(1)
        assert item["num_classes"] == 3
        assert item["label"] == item["scores"][0]["label"] == LABELS[int(expected.argmax())]
        assert [one["score"] for one in item["scores"]] == sorted(item["probs"], reverse=True)
    assert body["usage"]["prompt_tokens"] == 7
    assert body["model"] == "moods"
    (one,) = http.post("/v1/classify", json={"model": "moods", "input": "edge", "top_k": 1}).json()["data"]
    assert len(one["scores"]) == 1
    assert len(one["probs"]) == 3


def test_labels_are_all_that_a_classifier_chooses_from(http: httpx.Client) -> None:
    wanted = list(LABELS[:0:-1])
    ask = {"model": "moods", "input": ["edge cloud", "device"], "labels": wanted}
    for text, item in zip(ask["input"], http.post("/v1/classify", json=ask).json()["data"], strict=True):
        few = np.exp(logits_of(text)[[LABELS.index(label) for label in wanted]].astype(np.float64))
        np.testing.assert_allclose(item["probs"], few / few.sum(), atol=1e-6)
        assert item["label"] in wanted
    reports = {model["ref"]: model for model in http.get("/admin/node").json()["models"]}
    assert reports["moods"]["labels"] == list(LABELS)
    assert reports["encoder"]["labels"] is None


def test_classes_that_may_hold_together_do_not_share_their_probability(http: httpx.Client) -> None:
    (item,) = http.post("/v1/classify", json={"model": "tags", "input": "edge cloud"}).json()["data"]
    np.testing.assert_allclose(item["probs"], 1 / (1 + np.exp(-logits_of("edge cloud"))), atol=1e-6)


def test_a_cross_encoder_reads_query_and_document_together(http: httpx.Client) -> None:
    ask = {"model": "judge", "query": "cloud fast", "documents": DOCUMENTS, "return_documents": True}
    body = http.post("/v1/rerank", json=ask).json()
    expected = {text: relevance("cloud fast", text) for text in DOCUMENTS}
    order = sorted(DOCUMENTS, key=lambda text: -expected[text])
    assert [one["document"]["text"] for one in body["results"]] == order
    assert [DOCUMENTS[one["index"]] for one in body["results"]] == order
    for one in body["results"]:
        assert one["relevance_score"] == pytest.approx(expected[DOCUMENTS[one["index"]]], abs=1e-5)
    objects = [{"text": text} for text in DOCUMENTS]
    best = http.post("/v1/rerank", json={**ask, "documents": objects, "top_n": 2, "return_documents": False})
    assert best.json()["results"] == [
        {"index": one["index"], "relevance_score": pytest.approx(one["relevance_score"])}
        for one in body["results"][:2]
    ]


def test_an_encoder_judges_by_cosine(http: httpx.Client) -> None:
    body = http.post(
        "/v1/rerank", json={"model": "encoder", "query": "cloud fast", "documents": DOCUMENTS}
    ).json()
    assert len(body["results"]) == len(DOCUMENTS)
    for one in body["results"]:
        cosine = embedding("cloud fast") @ embedding(DOCUMENTS[one["index"]])
        assert one["relevance_score"] == pytest.approx(cosine, abs=1e-5)
    scores = [one["relevance_score"] for one in body["results"]]
    assert scores == sorted(scores, reverse=True)


def test_a_generative_model_judges_by_cosine(http: httpx.Client) -> None:
    ask = {"model": "tiny", "query": SAYS[:4], "documents": [SAYS[4:], SAYS[:4]]}
    best, other = http.post("/v1/rerank", json=ask).json()["results"]
    assert best["index"] == 1
    assert best["relevance_score"] == pytest.approx(1, abs=1e-4)
    assert other["relevance_score"] < 1


@pytest.mark.parametrize(
    ("path", "fields", "says"),
    [
        ("classify", {"model": "moods"}, "'input'"),
        ("classify", {"model": "moods", "input": []}, "'input'"),
        ("classify", {"model": "moods", "input": ["a", 1]}, "input[1]"),
        ("classify", {"model": "moods", "input": "a", "top_k": 0}, "top_k"),
        ("classify", {"model": "moods", "input": "a", "labels": []}, "'labels'"),
        ("classify", {"model": "moods", "input": "a", "labels": ["sad", "sad"]}, "'labels'"),
        ("classify", {"model": "moods", "input": "a", "labels": ["x"]}, "no class 'x'"),
        ("classify", {"model": "moods", "input": "edge " * 513}, "513 tokens"),
        ("classify", {"model": "encoder", "input": "a"}, "does not classify"),
        ("classify", {"model": "tiny", "input": "a"}, "no classes"),
        ("classify", {"input": "a"}, "'model'"),
        ("rerank", {"model": "judge", "query": "", "documents": ["a"]}, "'query'"),
        ("rerank", {"model": "judge", "query": 3, "documents": ["a"]}, "query"),
        ("rerank", {"model": "judge", "query": "a", "documents": []}, "'documents'"),
        ("rerank", {"model": "judge", "query": "a", "documents": ["a", {"title": "b"}]}, "documents[1]"),
        ("rerank", {"model": "judge", "query": "a", "documents": ["a"], "top_n": 0}, "top_n"),
        ("rerank", {"model": "judge", "query": "a", "documents": ["a"], "return_documents": 1}, "return"),
        ("rerank", {"model": "moods", "query": "a", "documents": ["a"]}, "does not judge"),
        ("rerank", {"query": "a", "documents": ["a"]}, "'model'"),
    ],
)
def test_a_wrong_request_says_what_is_wrong(
    http: httpx.Client, path: str, fields: dict[str, Any], says: str
) -> None:
    answer = http.post(f"/v1/{path}", json=fields)
    assert answer.status_code == 400
    assert says in answer.json()["error"]["message"]


def test_an_unknown_model_is_not_found(http: httpx.Client) -> None:
    assert http.post("/v1/classify", json={"model": "nope", "input": "a"}).status_code == 404
    asked = {"model": "nope", "query": "a", "documents": ["a"]}
    assert http.post("/v1/rerank", json=asked).status_code == 404


def test_the_task_is_reported(http: httpx.Client) -> None:
    tasks = {model["ref"]: model["tasks"] for model in http.get("/admin/models").json()["models"]}
    assert tasks["moods"] == ["classify", "infer"]
    assert tasks["encoder"] == ["embed", "infer"]
    for action, state in (("unload", "unloaded"), ("load", "ready")):
        http.post(f"/admin/models/moods/{action}").raise_for_status()
        deadline = time.monotonic() + 30
        while (model := http.get("/admin/models/moods").json())["state"] != state:
            assert time.monotonic() < deadline, model
            time.sleep(0.02)
        assert model["tasks"] == ["classify", "infer"]  # also while it is not in memory


@pytest.mark.parametrize("named", [{"0": "a", "1": "b"}, {"0": "a", "1": "b", "5": "c"}, ["a", "b", "c"], 7])
def test_classes_that_do_not_fit_the_model_are_refused(tmp_path: Path, named: Any) -> None:
    folder = write_text_classifier(tmp_path / "m", LABELS, id2label=named)
    settings = ServerSettings(port=0, registry_root=tmp_path / "registry", model_files=(folder,), threads=1)
    with pytest.raises(InvalidModelFileError, match="classes"), running_node(settings):
        pass
