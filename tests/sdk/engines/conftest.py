"""Tiny models for the engine's tests, written once a session."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mecroute.engines.llama import LlamaEngine
from support.oracle import Oracle
from support.tiny_gguf import IM_END, write_tiny_gguf

#: Greedy output of the `talking` model, over and over. Its characters have 1, 2, 3 and 4 bytes, each byte a
#: token, and none of them is in a longer piece of the vocabulary.
SAYS = "ABCDEFGÉ€😀"


@pytest.fixture(scope="session")
def says() -> str:
    return SAYS


@pytest.fixture(scope="session")
def random_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_gguf(tmp_path_factory.mktemp("models") / "random.gguf", context_length=8192)


@pytest.fixture(scope="session")
def talking_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_gguf(tmp_path_factory.mktemp("models") / "talking.gguf", says=SAYS, context_length=8192)


@pytest.fixture(scope="session")
def oracle(random_model: Path) -> Iterator[Oracle]:
    one = Oracle(random_model)
    yield one
    one.close()


@pytest.fixture(scope="session")
def decided(oracle: Oracle) -> list[tuple[tuple[int, ...], str]]:
    """Twelve prompts of different lengths, and what the random model greedily says to each in 16 tokens."""
    rng = np.random.default_rng(0)
    prompts = (tuple(rng.integers(IM_END + 1, 320, 4 + i % 40).tolist()) for i in range(1000))
    answers = oracle.decided(prompts, 12, 16)
    assert len({answer for _, answer in answers}) == 12
    return answers


@pytest.fixture
def engine(random_model: Path) -> Iterator[Callable[..., LlamaEngine]]:
    """Makes engines (of the random model, unless told another) that are closed after the test."""
    made: list[LlamaEngine] = []

    def make(path: Path | None = None, **options: Any) -> LlamaEngine:
        made.append(LlamaEngine(path or random_model, **{"n_threads": 1, **options}))
        return made[-1]

    yield make
    for one in made:
        one.close()
