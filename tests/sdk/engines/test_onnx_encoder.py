"""Sentence embeddings from a tiny ONNX encoder whose vectors are known."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from mecroute.engines.onnx import OnnxEngine, TextEncoder, open_onnx
from mecroute.errors import ContextLengthError, InvalidModelFileError, InvalidRequestError
from support.tiny_encoder import embedding, write_encoder
from support.tiny_onnx import write_classifier

TEXTS = ["edge", "cloud model slow", "fast fast edge device cloud model", "device " * 40]


def encoder_of(engine: OnnxEngine) -> TextEncoder:
    assert engine.encoder is not None
    return engine.encoder


@pytest.mark.parametrize("file", ["model.onnx", "onnx/model.onnx", "other.onnx"])
def test_vectors_are_means_over_the_tokens_of_length_one(tmp_path: Path, file: str) -> None:
    with open_onnx(write_encoder(tmp_path / "encoder", file=file), n_threads=1) as engine:
        assert engine.batches
        vectors, tokens = encoder_of(engine).embed(TEXTS)
    np.testing.assert_allclose(vectors, [embedding(text) for text in TEXTS], atol=1e-6)
    assert vectors.dtype == np.float32
    assert tokens == 1 + 3 + 6 + 40


def test_a_file_with_its_tokenizer_beside_it(tmp_path: Path) -> None:
    with open_onnx(write_encoder(tmp_path) / "model.onnx", n_threads=1) as engine:
        assert engine.encoder is not None


def test_many_texts_keep_their_order(tmp_path: Path) -> None:
    texts = [TEXTS[n % 4] for n in range(100)]
    with open_onnx(write_encoder(tmp_path), n_threads=1, max_batch=8, max_queue=0) as engine:
        vectors, _ = encoder_of(engine).embed(texts)
        assert engine.stats().batches_total == 13
    np.testing.assert_allclose(vectors, [embedding(text) for text in texts], atol=1e-6)


def test_fewer_dimensions_have_length_one_again(tmp_path: Path) -> None:
    with open_onnx(write_encoder(tmp_path), n_threads=1) as engine:
        vectors, _ = encoder_of(engine).embed(["edge cloud"], dimensions=2)
        np.testing.assert_allclose(vectors, [embedding("edge cloud", 2)], atol=1e-6)
        with pytest.raises(InvalidRequestError, match="gives 6"):
            encoder_of(engine).embed(["edge"], dimensions=7)


def test_a_model_that_pools_itself_is_taken_at_its_word(tmp_path: Path) -> None:
    with open_onnx(write_encoder(tmp_path, pooled=True), n_threads=1, max_batch=1) as engine:
        vectors, _ = encoder_of(engine).embed(["edge cloud fast"])
    np.testing.assert_allclose(vectors, [embedding("edge cloud fast")], atol=1e-6)


def test_too_long_and_empty_texts_are_refused(tmp_path: Path) -> None:
    folder = write_encoder(tmp_path)
    (folder / "config.json").write_text(json.dumps({"max_position_embeddings": 8}))
    (folder / "tokenizer_config.json").write_text(json.dumps({"model_max_length": 10**30}))
    with open_onnx(folder, n_threads=1) as engine:
        encoder = encoder_of(engine)
        assert encoder.embed(["edge " * 8])[1] == 8
        with pytest.raises(ContextLengthError, match="text 1 of the input has 9 tokens"):
            encoder.embed(["edge", "edge " * 9])
        with pytest.raises(ContextLengthError, match="empty"):
            encoder.embed(["  "])


def test_models_that_take_no_tokens_are_plain(tmp_path: Path) -> None:
    folder = write_encoder(tmp_path)
    with open_onnx(write_classifier(folder / "c.onnx"), n_threads=1) as engine:
        assert engine.encoder is None


@pytest.mark.parametrize("content", ["", "{}", "not json", '{"model": {"type": "BPE", "vocab": 3}}', "\x00"])
def test_a_damaged_tokenizer_is_refused(tmp_path: Path, content: str) -> None:
    folder = write_encoder(tmp_path)
    (folder / "tokenizer.json").write_text(content)
    with pytest.raises(InvalidModelFileError, match="not a tokenizer"):
        open_onnx(folder, n_threads=1)


def test_a_folder_must_say_which_model(tmp_path: Path) -> None:
    with pytest.raises(InvalidModelFileError, match="has 0 ONNX models"):
        open_onnx(tmp_path)
    for name in ("a.onnx", "b.onnx"):
        write_classifier(tmp_path / name)
    with pytest.raises(InvalidModelFileError, match="has 2 ONNX models"):
        open_onnx(tmp_path)
