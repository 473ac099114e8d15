"""The topics of requests without instructions: by word vectors, by hashed pieces, and by an encoder."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mecroute import Client, Config
from mecroute.config import (
    CloudConfig,
    DeviceConfig,
    RegistryConfig,
    RouterConfig,
    StateConfig,
    TextModelConfig,
)
from mecroute.engines.onnx import open_onnx
from mecroute.errors import ConfigError
from mecroute.predict.topic import TOPICS, hashed_topic, word_topic
from support.tiny_encoder import write_encoder
from support.upstream import Upstream, upstream

BAKING = "How long should bread dough rise before I bake it?"
LAW = "May a landlord raise the rent during a fixed lease?"
SENTENCE = "ᎣᏏᏲ ᏙᎯᏧ ᎠᏂᏴᏫᏯ ᏧᎾᏕᎶᏆᏍᏗ ᎤᏙᏢᏒ"


def nearest(folder: Path, text: str) -> str:
    """The topic whose description the encoder of a folder finds nearest to a text."""
    with open_onnx(folder, n_threads=1) as engine:
        assert engine.encoder is not None
        rows, _ = engine.encoder.embed([*TOPICS.values(), text])
    return list(TOPICS)[int((rows[:-1] @ rows[-1]).argmax())]


@pytest.fixture
def up() -> Iterator[Upstream]:
    with upstream() as up:
        yield up


def config(folder: Path, up: Upstream, **router: Any) -> Config:
    return Config(
        registry=RegistryConfig(path=folder / "registry"),
        device=DeviceConfig(
            text_models=(TextModelConfig(name="words", path=write_encoder(folder / "words")),)
        ),
        state=StateConfig(path=folder / "state.sqlite3"),
        cloud=(CloudConfig(name="sky", base_url=f"{up.url}/v1", model="big"),),
        router=RouterConfig(**router),
    )


def kind_of(client: Client, text: str, **asked: Any) -> str | None:
    messages = [{"role": "user", "content": text}]
    return client.route(messages=messages, requirements=asked or None).features.kind


def test_a_topic_is_the_same_in_every_process() -> None:
    code = (
        "from mecroute.predict.topic import hashed_topic, word_topic\n"
        f"print(word_topic({BAKING!r}), hashed_topic({SENTENCE!r}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [word_topic(BAKING), hashed_topic(SENTENCE)]


def test_a_script_that_the_vectors_do_not_know_is_hashed(tmp_path: Path, up: Upstream) -> None:
    assert word_topic(SENTENCE) is None
    assert hashed_topic(SENTENCE) == hashed_topic(f"  {SENTENCE}\n")
    assert hashed_topic("Ꭳ") is None
    with Client(config(tmp_path, up)) as client:
        assert kind_of(client, SENTENCE) == f"topic-{hashed_topic(SENTENCE)}"


def test_instructions_name_the_kind_where_there_are_any(tmp_path: Path, up: Upstream) -> None:
    with Client(config(tmp_path, up)) as client:
        assert kind_of(client, BAKING) == f"topic-{word_topic(BAKING)}"
        told = [{"role": "system", "content": "You bake."}, {"role": "user", "content": BAKING}]
        kind = client.route(messages=told).features.kind
        assert kind is not None
        assert kind.startswith("chat-")


def test_an_encoder_names_the_topic_once_it_is_loaded(
    tmp_path: Path, up: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "edge cloud fast slow"
    settings = config(tmp_path, up, encoder="words")
    by_words, by_encoder = f"topic-{word_topic(text)}", f"topic-words-{nearest(tmp_path / 'words', text)}"
    with Client(settings) as client:
        assert kind_of(client, text) == by_words, "nobody waits for it to be loaded"
        for _ in range(400):
            if (kind := kind_of(client, text)) != by_words:
                break
            time.sleep(0.05)
        assert kind == by_encoder
        # Of a long text the beginning is read, and the mark that it ends with.
        words = (f"{text} " * 500)[:512].split()
        read = " ".join((*words[:31], words[-1]))
        for _ in range(400):
            if (kind := kind_of(client, f"{text} " * 500) or "").startswith("topic-words-"):
                break
            time.sleep(0.05)
        assert kind == f"topic-words-{nearest(tmp_path / 'words', read)}"
        # Who is in a hurry does not wait for it.
        assert kind_of(client, text, policy="latency-first") == by_words
        assert kind_of(client, text, max_latency_ms=50) == by_words
        monkeypatch.setattr("mecroute.agents.router._ENCODES_FROM_MS", 60_000.0)
        assert kind_of(client, text, deadline_ms=50_000) == by_words


@pytest.mark.parametrize("named", ["nobody", "Nonsense/:"])
def test_an_encoder_that_is_not_there_is_said_at_once(tmp_path: Path, up: Upstream, named: str) -> None:
    with (
        pytest.raises(ConfigError, match=r"router\.encoder"),
        Client(config(tmp_path, up, encoder=named)),
    ):
        pass


def test_what_was_judged_of_a_topic_counts_there_most(tmp_path: Path, up: Upstream) -> None:
    def predicted(client: Client, text: str) -> float:
        primary = client.route(messages=[{"role": "user", "content": text}]).primary
        assert primary is not None
        return primary.quality

    with Client(config(tmp_path, up)) as client:
        before = predicted(client, BAKING), predicted(client, LAW)
        for _ in range(15):
            reply = client.chat.completions.create(messages=[{"role": "user", "content": BAKING}])
            client.feedback(reply.id, score=0.0)
        client._loop.run(client._async._runtime()).pipeline.monitor.flush()
        lost = before[0] - predicted(client, BAKING), before[1] - predicted(client, LAW)
    assert lost[0] > 0.4
    assert lost[0] > lost[1] + 0.1
