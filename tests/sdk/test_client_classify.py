"""`client.classify` and `client.infer`: classifiers of the device and of a real node, and chat models."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from mecroute import Client, Config
from mecroute.config import (
    BudgetConfig,
    CloudConfig,
    DeviceConfig,
    NodeConfig,
    RegistryConfig,
    RouterConfig,
    StateConfig,
    TextModelConfig,
)
from mecroute.errors import AllTargetsFailedError, InvalidRequestError, NoClassError, NoEligibleTargetError
from mecroute_registry.facts import ModelFacts
from mecroute_registry.store import Registry
from mecroute_server.settings import ServerSettings
from support.server import running_server
from support.tiny_encoder import WORDS, embedding, word_logits, write_encoder, write_text_classifier
from support.tiny_gguf import write_tiny_gguf
from support.tiny_onnx import classify as logits_of
from support.tiny_onnx import write_classifier
from support.upstream import Upstream, upstream

LABELS = ("calm", "angry", "sad")


def logits(text: str) -> np.ndarray:
    return word_logits(3)[[WORDS.index(word) for word in text.split()]].sum(0)


def chosen(text: str, labels: tuple[str, ...]) -> str:
    """What the classifier must say if it may choose from these labels alone."""
    return max(labels, key=lambda label: logits(text)[LABELS.index(label)])


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


def on_device(folder: Path, *models: TextModelConfig, **tables: object) -> Config:
    return Config(
        registry=RegistryConfig(path=folder / "registry"),
        device=DeviceConfig(threads=1, text_models=models),
        state=StateConfig(path=folder / "state.sqlite3"),
        router=RouterConfig(hedge="never"),
        **tables,
    )


def learned(client: Client) -> None:
    """Wait until what happened is learned."""
    client._loop.run(client._async._runtime()).pipeline.monitor.flush()


def cloud(up: Upstream, **more: object) -> CloudConfig:
    return CloudConfig(name="sky", base_url=f"{up.url}/v1", model="big", **more)


def test_texts_get_their_classes(client: Client) -> None:
    answer = client.classify(["edge cloud", "slow"], model="moods", top_k=2)
    for text, item in zip(["edge cloud", "slow"], answer.data, strict=True):
        assert item.label == LABELS[int(logits(text).argmax())]
        assert sum(item.probs) == pytest.approx(1)
        assert [score.label for score in item.scores] == [LABELS[at] for at in np.argsort(-logits(text))[:2]]
        assert item.score == max(item.probs)
    assert (answer.mecroute.tier, answer.mecroute.node) == ("mec", "mec-1")
    # Of the two models there, only one classifies.
    assert client.classify("slow").model == "moods"


def test_labels_that_are_given_are_all_that_is_chosen_from(client: Client, tmp_path: Path) -> None:
    text, wanted = "edge cloud", ("sad", "calm")
    device = TextModelConfig(name="moods", path=write_text_classifier(tmp_path / "moods", LABELS))
    with Client(on_device(tmp_path, device)) as local:
        for answer in (client.classify(text, labels=wanted), local.classify(text, labels=wanted)):
            (item,) = answer.data
            two = np.exp([logits(text)[LABELS.index(label)] for label in wanted])
            assert item.probs == pytest.approx(two / two.sum())
            assert item.label == chosen(text, wanted)
            assert item.num_classes == 2


def test_a_classifier_without_a_label_is_refused_by_name(client: Client) -> None:
    with pytest.raises(NoEligibleTargetError) as caught:
        client.classify("slow", labels=["calm", "bored"])
    reasons = {r.target.id: (r.reason, r.detail) for r in caught.value.decision.rejected}
    assert reasons["mec/mec-1/moods"] == ("labels", "has no class 'bored'")
    assert reasons["mec/mec-1/c"][0] == "capability"


def test_the_device_classifies_and_embeds_by_itself(tmp_path: Path) -> None:
    models = (
        TextModelConfig(
            name="moods", path=write_text_classifier(tmp_path / "moods", LABELS, max_position_embeddings=9)
        ),
        TextModelConfig(name="words", path=write_encoder(tmp_path / "words")),
    )
    with Client(on_device(tmp_path, *models)) as client:
        before = client.route(input="slow", labels=LABELS)
        assert before.primary is not None
        assert before.primary.cold
        answer = client.classify(["slow", "edge cloud fast"], labels=LABELS)
        assert [item.label for item in answer.data] == [
            chosen(t, LABELS) for t in ("slow", "edge cloud fast")
        ]
        assert answer.mecroute.tier == "device"
        assert answer.usage is not None
        assert answer.usage.prompt_tokens == 4
        after = client.route(input="slow", labels=LABELS)
        assert after.primary is not None
        assert not after.primary.cold
        assert "device/words: capability" in after.explain()
        vector = client.embeddings.create(input="edge fast").data[0].embedding
        np.testing.assert_allclose(vector, embedding("edge fast"), rtol=1e-5)
        # Each of many texts is read by itself: together they may be longer than what the model reads.
        assert len(client.classify(["edge cloud"] * 40, labels=LABELS).data) == 40
        assert client.classify("slow", requirements={"privacy": "device"}).data[0].label in LABELS
        with pytest.raises(NoEligibleTargetError, match="context_length"):
            client.classify("edge " * 200, model="moods")


def test_a_text_model_comes_from_the_registry_with_its_digest_checked(tmp_path: Path) -> None:
    folder = write_text_classifier(tmp_path / "moods", LABELS)
    registry = Registry(tmp_path / "registry")
    facts = ModelFacts(
        name="moods", version="int8", format="onnx", deployment_tiers=("device",), accuracy=0.9
    )
    registered = registry.register(folder, facts)
    with Client(on_device(tmp_path)) as client:
        answer = client.classify("slow", labels=LABELS)
        assert answer.data[0].label == chosen("slow", LABELS)
        (candidate,) = answer.mecroute.decision.candidates
        assert (candidate.target.id, candidate.target.digest) == ("device/moods:int8", registered.digest)
        assert candidate.quality == pytest.approx(1 - 2 / 3 * 0.1)
        with pytest.raises(NoEligibleTargetError, match="labels"):
            client.classify("slow", labels=["calm", "bored"])
    path = registry.path(registered)
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[:-1] + b"\x00")
    with Client(on_device(tmp_path)) as client, pytest.raises(AllTargetsFailedError, match="damaged"):
        client.classify("slow", labels=LABELS)


@pytest.mark.parametrize("missing", ["model.onnx", "tokenizer.json"])
def test_a_text_model_without_its_files_says_so_until_they_come(tmp_path: Path, missing: str) -> None:
    folder = write_text_classifier(tmp_path / "moods", LABELS)
    (folder / missing).rename(tmp_path / "away")
    with Client(on_device(tmp_path, TextModelConfig(name="moods", path=folder))) as client:
        decision = client.route(input="slow", labels=LABELS)
        assert [(r.target.id, r.reason) for r in decision.rejected] == [("device/moods", "unavailable")]
        assert str(folder) in decision.rejected[0].detail
        (tmp_path / "away").rename(folder / missing)
        time.sleep(1.05)  # they are looked for once a second
        assert client.classify("slow", labels=LABELS).mecroute.tier == "device"


def test_an_encoder_whose_configuration_names_classes_is_no_classifier(tmp_path: Path) -> None:
    folder = write_encoder(tmp_path / "words")
    (folder / "config.json").write_text(json.dumps({"id2label": {"0": "a", "1": "b"}}))
    with Client(on_device(tmp_path, TextModelConfig(name="words", path=folder))) as client:
        with pytest.raises(NoEligibleTargetError, match="capability"):
            client.classify("slow", labels=["a", "b"])
        assert client.embeddings.create(input="slow").mecroute.model == "words"


def test_a_chat_model_is_asked_with_a_schema_of_the_labels(tmp_path: Path) -> None:
    with upstream(words=['{"label": ', '"sad"}']) as up, Client(on_device(tmp_path, cloud=(cloud(up),))) as c:
        answer = c.classify(["so blue", "rain again"], labels=LABELS)
        assert [item.label for item in answer.data] == ["sad", "sad"]
        assert [(item.num_classes, item.probs, item.score) for item in answer.data] == [(3, [], None)] * 2
        assert answer.usage is not None
        assert answer.usage.prompt_tokens == 10
        decision = answer.mecroute.decision
        assert decision.candidates[0].task == "chat"
        assert "asked in a chat" in decision.explain()
        with pytest.raises(NoEligibleTargetError, match="needs labels="):
            c.classify("so blue")
    assert len(up.requests) == 2
    assert {json.dumps(body["messages"][1]["content"]) for body in up.requests} == {
        '"so blue"',
        '"rain again"',
    }
    schema = up.requests[0]["response_format"]["json_schema"]["schema"]
    assert schema["properties"]["label"]["enum"] == list(LABELS)


@pytest.mark.parametrize(("said", "label"), [("Angry.", "angry"), ('{"label": "calm"}', "calm")])
def test_a_cloud_that_keeps_to_no_schema_is_understood_where_it_is_clear(
    tmp_path: Path, said: str, label: str
) -> None:
    with upstream(words=[said]) as up, Client(on_device(tmp_path, cloud=(cloud(up),))) as client:
        assert client.classify("so blue", labels=LABELS).data[0].label == label


def test_a_chat_model_that_names_no_class_is_passed_over_and_remembered(tmp_path: Path, url: str) -> None:
    clouds = {"cloud": (), "nodes": (NodeConfig(name="mec-1", url=url),)}
    with upstream(words=["Who knows?"]) as up:
        config = on_device(tmp_path, **(clouds | {"cloud": (cloud(up, quality=1.0),)}))
        with Client(config) as client:
            asked = {"labels": LABELS, "requirements": {"policy": "quality-first"}}
            answer = client.classify("slow", **asked)
            assert answer.data[0].label == chosen("slow", LABELS)
            failed, answered = answer.mecroute.segments
            assert failed.target_id == "cloud/sky/big"
            assert failed.error is not None
            assert "one of 3 classes" in failed.error
            assert answered.tier == "mec"
            # It did answer, and need not rest; but it is known to be no good at this.
            learned(client)
            again = client.route(input="fast", **asked)
            (sky,) = [c for c in again.candidates if c.target.id == "cloud/sky/big"]
            assert sky.quality_adjusted_by < 0
            assert again.primary is not None
            assert again.primary.target.tier == "mec"
            with pytest.raises(AllTargetsFailedError) as caught:
                client.classify("slow", model="cloud/big", labels=LABELS)
            assert isinstance(caught.value.attempts[0][1], NoClassError)


def test_the_device_takes_over_from_a_chat_model_that_is_lost(tmp_path: Path) -> None:
    device = TextModelConfig(
        name="moods", path=write_text_classifier(tmp_path / "moods", LABELS), accuracy=0.5
    )
    with upstream(status=500) as up:
        config = on_device(tmp_path, device, cloud=(cloud(up, quality=1.0),))
        with Client(config) as client:
            answer = client.classify("slow", labels=LABELS, requirements={"policy": "quality-first"})
    assert [segment.tier for segment in answer.mecroute.segments] == ["cloud", "device"]
    assert answer.data[0].label == chosen("slow", LABELS)


def test_a_classifier_that_lost_for_being_cold_is_there_the_next_time(tmp_path: Path) -> None:
    device = TextModelConfig(name="moods", path=write_text_classifier(tmp_path / "moods", LABELS))
    asked = {"labels": LABELS, "requirements": {"max_latency_ms": 600, "policy": "latency-first"}}
    with (
        upstream(words=['{"label": "sad"}']) as up,
        Client(on_device(tmp_path, device, cloud=(cloud(up, quality=1.0),))) as client,
    ):
        assert client.classify("slow", **asked).mecroute.tier == "cloud"
        for _ in range(400):
            found = client.route(input="slow", **asked).candidates
            if not any(candidate.cold for candidate in found):
                break
            time.sleep(0.05)
        assert found[0].target.id == "device/moods"


def test_feedback_moves_requests_with_these_labels_alone(tmp_path: Path) -> None:
    device = TextModelConfig(name="moods", path=write_text_classifier(tmp_path / "moods", LABELS))
    with Client(on_device(tmp_path, device)) as client:

        def predicted(labels: tuple[str, ...]) -> float:
            primary = client.route(input="slow", labels=labels).primary
            assert primary is not None
            return primary.quality

        before = predicted(LABELS), predicted(LABELS[:2])
        # Fewer classes are easier.
        assert 0 < before[0] < before[1] < 1
        for number in range(12):
            answer = client.classify("slow " * (number + 1), labels=LABELS[::-1])
            client.feedback(answer.id, score=0.0)
        learned(client)
        after = predicted(LABELS), predicted(LABELS[:2])
        assert after[0] < before[0] - 0.3
        assert after[1] > after[0] + 0.1


# A label that is JSON of another type, and those that a grammar or JSON has to escape.
@pytest.mark.parametrize("labels", [LABELS, ("1", "null"), ('a "b" \\', "two\nlines", "größer")])
def test_a_local_chat_model_says_how_likely_its_label_was(tmp_path: Path, labels: tuple[str, ...]) -> None:
    registry = Registry(tmp_path / "registry")
    model = write_tiny_gguf(tmp_path / "tiny.gguf", context_length=2048)
    registry.register(model, ModelFacts(name="tiny", version="1", deployment_tiers=("device",)))
    with Client(on_device(tmp_path)) as client:
        answer = client.classify("slow", labels=labels)
    assert answer.mecroute.model == "tiny:1"
    assert answer.data[0].label in labels
    assert answer.data[0].score is not None
    assert 0 < answer.data[0].score < 1


def test_instructions_that_a_node_remembers_are_not_reckoned_again(tmp_path: Path) -> None:
    model = write_tiny_gguf(tmp_path / "tiny.gguf", context_length=2048)
    settings = ServerSettings(
        port=0, registry_root=tmp_path / "other", model_files=(model,), threads=1, context=1024
    )
    with running_server(settings) as url:
        node = NodeConfig(name="mec-1", url=url)
        with Client(on_device(tmp_path, nodes=(node,))) as client:
            first = client.classify("slow", labels=LABELS)
            assert first.data[0].label in LABELS
            assert first.mecroute.decision.candidates[0].cached_prompt_tokens == 0
            deadline = time.monotonic() + 20
            while True:  # until the node has told what it holds
                (candidate,) = client.route(input="another", labels=LABELS).candidates
                if candidate.cached_prompt_tokens or time.monotonic() > deadline:
                    break
                time.sleep(0.05)
            told = first.mecroute.decision.features.chat_prompt_tokens
            assert 0 < candidate.cached_prompt_tokens <= told
            assert client.route(input="another", labels=LABELS[:2]).candidates[0].cached_prompt_tokens == 0


def test_every_chat_call_for_a_class_is_reserved_for(tmp_path: Path) -> None:
    paid = {"input_usd_per_mtok": 1000.0, "output_usd_per_mtok": 1000.0}
    budget = BudgetConfig(name="team", limit_usd=1.5)
    with upstream(words=['{"label": "sad"}']) as up:
        config = on_device(tmp_path, cloud=(cloud(up, **paid),), budgets=(budget,))
        with Client(config) as client:
            # A dozen conversations of some 200 bytes do not fit, one does.
            with pytest.raises(NoEligibleTargetError, match="budget"):
                client.classify([f"text {n}" for n in range(12)], labels=LABELS)
            assert client.classify("text", labels=LABELS).data[0].label == "sad"
    assert len(up.requests) == 1


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([], "at least one"),
        ("calm", "list of texts"),
        (["calm", 3], r"labels\[1\]"),
        (["calm", " "], r"labels\[1\]"),
        (["calm", "calm"], "twice"),
        ([str(n) for n in range(1025)], "limit is 1024"),
    ],
)
def test_odd_labels_are_refused(client: Client, labels: list[str], message: str) -> None:
    with pytest.raises(InvalidRequestError, match=message):
        client.classify("slow", labels=labels)


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
        client.classify([])
    with pytest.raises(InvalidRequestError, match="top_k"):
        client.classify("a", top_k=0)
    with pytest.raises(InvalidRequestError, match="inputs"):
        client.infer(model="c", inputs=[])
    with pytest.raises(InvalidRequestError, match="datatype"):
        client.infer(model="c", inputs=[{"name": "x"}])
    with pytest.raises(InvalidRequestError, match="one model"):
        client.infer(model="auto", inputs=[{"name": "x", "shape": [1], "datatype": "FP32", "data": [1]}])
    with pytest.raises(NoEligibleTargetError):
        client.classify("a", requirements={"privacy": "device"})
    with pytest.raises(NoEligibleTargetError):
        client.classify("a", model="c")
