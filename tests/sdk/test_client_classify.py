"""`client.classify` and `client.infer`, routed to a real node."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from mecroute import Client, Config
from mecroute.config import NodeConfig
from mecroute.errors import InvalidRequestError, NoEligibleTargetError
from mecroute_server.settings import ServerSettings
from support.server import running_server
from support.tiny_encoder import WORDS, word_logits, write_text_classifier
from support.tiny_onnx import classify as logits_of
from support.tiny_onnx import write_classifier

LABELS = ("calm", "angry", "sad")


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("models")
    settings = ServerSettings(
        port=0,
        registry_root=tmp_path_factory.mktemp("registry"),
        model_files=(write_text_classifier(folder / "moods", LABELS), write_classifier(folder / "c.onnx")),
        threads=1,
    )
    with running_server(settings) as url:
        yield url


@pytest.fixture
def client(url: str) -> Iterator[Client]:
    with Client(Config(nodes=(NodeConfig(name="mec-1", url=url),))) as client:
        yield client


def test_texts_get_their_classes(client: Client) -> None:
    answer = client.classify(model="moods", input=["edge cloud", "slow"], top_k=2)
    for text, item in zip(["edge cloud", "slow"], answer.data, strict=True):
        logits = word_logits(3)[[WORDS.index(word) for word in text.split()]].sum(0)
        assert item.label == LABELS[int(logits.argmax())]
        assert sum(item.probs) == pytest.approx(1)
        assert [score.label for score in item.scores] == [LABELS[at] for at in np.argsort(-logits)[:2]]
    assert (answer.mecroute.tier, answer.mecroute.node) == ("mec", "mec-1")
    # Of the two models there, only one classifies.
    assert client.classify(input="slow").model == "moods"


def test_tensors_go_to_the_model_that_is_named(client: Client) -> None:
    tensor = {"name": "x", "shape": [2, 3], "datatype": "FP32", "data": [1, 2, 3, 4, 5, 6]}
    answer = client.infer(model="c", inputs=[tensor], outputs=["logits"])
    expected = logits_of(np.arange(1, 7, dtype=np.float32).reshape(2, 3))
    assert answer.output("logits").shape == [2, 2]
    np.testing.assert_allclose(answer.output("logits").data, expected.ravel(), rtol=1e-6)
    assert [tensor.name for tensor in answer.outputs] == ["logits"]
    with pytest.raises(KeyError):
        answer.output("label")


def test_what_no_node_could_answer_is_refused(client: Client) -> None:
    with pytest.raises(InvalidRequestError, match="input"):
        client.classify(input=[])
    with pytest.raises(InvalidRequestError, match="inputs"):
        client.infer(model="c", inputs=[])
    with pytest.raises(InvalidRequestError, match="datatype"):
        client.infer(model="c", inputs=[{"name": "x"}])
    with pytest.raises(InvalidRequestError, match="one model"):
        client.infer(model="auto", inputs=[{"name": "x", "shape": [1], "datatype": "FP32", "data": [1]}])
    with pytest.raises(NoEligibleTargetError):
        client.classify(input="a", requirements={"privacy": "device"})
    with pytest.raises(NoEligibleTargetError):
        client.classify(input="a", model="c")
