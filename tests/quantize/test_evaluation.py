"""Perplexity and accuracy: the method, and the data that comes with the package."""

from __future__ import annotations

import ctypes
import math
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFReader

from mecroute.engines.llama import LlamaModel
from mecroute.engines.llama.native import llama
from mecroute.errors import InvalidModelFileError
from mecroute_quantize.evaluation import (
    Question,
    accuracy_standard_error,
    dataset_name,
    evaluate,
    load_questions,
    load_text,
    measure_accuracy,
    measure_perplexity,
)
from support.tiny_gguf import write_tiny_gguf


@pytest.fixture
def model(tmp_path: Path) -> Iterator[LlamaModel]:
    opened = LlamaModel(write_tiny_gguf(tmp_path / "tiny.gguf", context_length=64))
    yield opened
    opened.close()


@pytest.fixture
def parrot(tmp_path: Path) -> Iterator[LlamaModel]:
    """A model that expects X after anything, then YZW, for ever."""
    opened = LlamaModel(write_tiny_gguf(tmp_path / "parrot.gguf", context_length=64, says="XYZW"))
    yield opened
    opened.close()


def _slow_perplexity(model: LlamaModel, text: str, window: int) -> float:
    """The definition, one token at a time, without any batching."""
    lib = llama()
    params = lib.llama_context_default_params()
    params.n_ctx = window
    params.n_threads = 1
    context = lib.llama_init_from_model(model.handle, params)
    tokens = model.tokenize(text, parse_special=False)
    losses: list[float] = []
    for start in range(0, len(tokens) // window * window, window):
        lib.llama_memory_clear(lib.llama_get_memory(context), True)
        chunk = [lib.llama_vocab_bos(model.vocab), *tokens[start + 1 : start + window]]
        for position in range(window - 1):
            one = (ctypes.c_int32 * 1)(chunk[position])
            assert lib.llama_decode(context, lib.llama_batch_get_one(one, 1)) == 0
            if position >= window // 2:
                row = np.ctypeslib.as_array(lib.llama_get_logits(context), shape=(model.n_vocab,)).astype(
                    float
                )
                losses.append(np.log(np.exp(row - row.max()).sum()) + row.max() - row[chunk[position + 1]])
    lib.llama_free(context)
    return math.exp(float(np.mean(losses)))


def test_perplexity_is_what_its_definition_says(model: LlamaModel) -> None:
    text = load_text()[:700]
    steps: list[float] = []
    measured = measure_perplexity(model, text, n_threads=1, progress=steps.append)
    assert measured.value == pytest.approx(_slow_perplexity(model, text, 64), rel=1e-3)
    windows = len(model.tokenize(text, parse_special=False)) // 64
    assert measured.tokens == windows * 31
    assert steps[-1] == 1.0


def test_a_model_that_knows_the_text_has_a_low_perplexity(parrot: LlamaModel) -> None:
    known = measure_perplexity(parrot, "XYZW" * 64, n_threads=1).value
    unknown = measure_perplexity(parrot, "XZWY" * 64, n_threads=1).value
    assert known < unknown / 10


def test_a_text_that_is_too_short_is_refused(model: LlamaModel) -> None:
    with pytest.raises(InvalidModelFileError, match="too few"):
        measure_perplexity(model, "short")


def test_the_likeliest_ending_counts(parrot: LlamaModel) -> None:
    endings = ("XZYW", "WZYX", "XYZWXYZW", "YX")
    right = Question("Say it", endings, 2)
    wrong = Question("Say that", endings, 0)
    result = measure_accuracy(parrot, [right, right, right, wrong], n_threads=1)
    assert result.value == 0.75
    assert result.items == 4
    assert result.standard_error == pytest.approx(math.sqrt(0.75 * 0.25 / 4))


def test_endings_may_begin_alike_or_be_another_s_beginning(parrot: LlamaModel) -> None:
    # One surprise (the Q) in every ending: the longer the ending, the less it weighs.
    nested = Question("Say", ("XQ", "XQX", "XQXY", "XQXYZ"), 3)
    apart = Question("Say", ("XQ", "XQX", "QQ", "Q"), 1)
    assert measure_accuracy(parrot, [nested, apart], n_threads=1).value == 1


def test_items_do_not_influence_each_other(model: LlamaModel) -> None:
    questions = load_questions()
    alone = [measure_accuracy(model, [question], n_threads=1).value for question in questions]
    together = measure_accuracy(model, questions, n_threads=1)
    assert together.value * together.items == pytest.approx(sum(alone), abs=1)
    assert 0 < sum(alone) < len(questions), "random weights guess"


def test_evaluate_gives_every_figure(tmp_path: Path) -> None:
    path = write_tiny_gguf(tmp_path / "tiny.gguf")
    steps: list[float] = []
    result = evaluate(path, n_threads=1, progress=steps.append)
    assert result.dataset == dataset_name()
    assert result.perplexity is not None
    assert result.perplexity > 10
    assert result.perplexity_tokens is not None
    assert result.perplexity_tokens > 1000
    assert result.accuracy is not None
    assert 0 < result.accuracy < 0.7
    assert result.accuracy_items == 100
    assert steps == sorted(steps)
    assert steps[-1] == pytest.approx(1)
    assert accuracy_standard_error(0.5, 100) == 0.05


def test_evaluate_gives_the_same_figures_again(tmp_path: Path) -> None:
    path = write_tiny_gguf(tmp_path / "tiny.gguf")
    first, second = evaluate(path, n_threads=1), evaluate(path, n_threads=1)
    assert first.perplexity == second.perplexity
    assert first.accuracy == second.accuracy


def test_a_model_that_answers_with_nonsense_is_refused(tmp_path: Path) -> None:
    path = write_tiny_gguf(tmp_path / "tiny.gguf")
    reader = GGUFReader(path, "r+")
    for tensor in reader.tensors:
        if tensor.name == "output_norm.weight":
            tensor.data[:] = np.nan
    reader.data.flush()
    del reader, tensor
    with pytest.raises(InvalidModelFileError, match="not numbers"):
        evaluate(path, n_threads=1)


def test_a_truncated_model_is_refused(tmp_path: Path) -> None:
    path = write_tiny_gguf(tmp_path / "tiny.gguf")
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(InvalidModelFileError, match="tiny.gguf"):
        evaluate(path)


def test_the_questions_are_sound() -> None:
    questions = load_questions()
    assert len(questions) == 100
    assert len({question.stem for question in questions}) == 100
    for question in questions:
        assert len(set(question.endings)) == 4
        assert all(ending == ending.strip() != "" for ending in question.endings)
        assert question.stem == question.stem.strip()
    assert Counter(question.answer for question in questions) == dict.fromkeys(range(4), 25)


def test_the_text_is_plain_prose() -> None:
    text = load_text()
    assert 10_000 < len(text) < 16_000
    assert text.isascii()
    assert dataset_name().startswith("mecroute-eval-1@sha256:")
