"""The semantic cache with a real encoder: word order does not matter to a mean of word vectors."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from mecroute.agents.cache import CacheAgent, open_embedder, open_similar
from mecroute.caching.calibration import Calibration, save_calibration
from mecroute.caching.encoder_embedder import EncoderEmbedder
from mecroute.config import CacheConfig
from mecroute.errors import InvalidModelFileError
from mecroute.request import Request, ingest
from support.answered import answered_by
from support.tiny_encoder import embedding, write_encoder
from support.tiny_onnx import FLOAT, write_onnx


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_encoder(tmp_path / "encoder")


def test_similarity_is_the_cosine_of_the_model_s_vectors(folder: Path) -> None:
    embedder = EncoderEmbedder(folder, threads=1)
    try:
        one, other, third = embedder.embed(["edge model", "model edge", "slow cloud"])
        assert embedder.similarity(one, other) == pytest.approx(1)
        expected = float(embedding("edge model") @ embedding("slow cloud"))
        assert embedder.similarity(one, third) == pytest.approx(expected, abs=1e-5)
        assert embedder.nearest([third, one], [other, third]) == [
            (1, pytest.approx(1)),
            (0, pytest.approx(1)),
        ]
    finally:
        embedder.close()


def test_an_agent_with_an_encoder_gives_what_is_similar_and_no_more(folder: Path) -> None:
    config = CacheConfig(semantic=True, encoder=folder)
    embedder = open_embedder(config)
    name = embedder.name
    embedder.close()
    save_calibration(Calibration(name, 0.99, 0.01, 0.95, 1000, 500, 0, 0.006, 1000, 500, 1))

    async def run() -> None:
        agent = CacheAgent(config)

        def ask(text: str) -> Request:
            return ingest(
                "chat", model="auto", body={"messages": [{"role": "user", "content": text}], "temperature": 0}
            )

        first = ask("fast edge model")
        assert await agent.lookup_similar(first) is None
        agent.remember(first, {"choices": []}, answered_by(first))
        found = await agent.lookup_similar(ask("edge model fast"))
        assert found is not None
        assert found.kind == "semantic"
        assert await agent.lookup_similar(ask("slow cloud device")) is None
        # Too long for the model: then it is simply answered.
        assert await agent.lookup_similar(ask("edge " * 390)) is None
        agent.close()

    asyncio.run(run())


def test_another_model_in_the_folder_needs_another_calibration(folder: Path) -> None:
    save_calibration(Calibration("encoder:encoder:1", 0.9, 0.01, 0.95, 1, 1, 0, 0.1, 1, 1, 0))
    assert open_similar(CacheConfig(semantic=True, encoder=folder)) is None


def test_a_model_that_is_no_encoder_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    from onnx import helper

    write_onnx(
        tmp_path / "model.onnx",
        [helper.make_node("Identity", ["x"], ["y"])],
        [("x", FLOAT, ["n"])],
        [("y", FLOAT, ["n"])],
        {},
    )
    with pytest.raises(InvalidModelFileError, match="no text encoder"):
        EncoderEmbedder(tmp_path)
    assert open_similar(CacheConfig(semantic=True, encoder=tmp_path)) is None
    assert "the semantic cache is off" in caplog.text
