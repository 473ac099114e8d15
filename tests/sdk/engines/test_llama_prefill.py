from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from mecroute.engines.llama.prefill import (
    MIN_PREFILL_ROWS,
    PREFILL_SLICE_S,
    SHARED_PREFILL_ROWS,
    SHORT_PROMPT_TOKENS,
    left_of_prompt,
    prefill_rows,
)


def waiting(*left: int) -> list[Any]:
    """Sequences with so much of their prompts left, 10 tokens of which are computed."""
    return [
        SimpleNamespace(prompt=[0] * (tokens + 10), slot=SimpleNamespace(tokens=[0] * 10)) for tokens in left
    ]


def rows(*left: int, decoding: int = 0, n_batch: int = 512, speed: float | None = None) -> int:
    return prefill_rows(waiting(*left), decoding=decoding, n_batch=n_batch, speed=speed)


def test_what_is_left_of_a_prompt() -> None:
    assert left_of_prompt(waiting(7)[0]) == 7


@pytest.mark.parametrize("decoding", [0, 5])
def test_short_prompts_are_taken_whole_while_they_fit_together(decoding: int) -> None:
    assert rows(50, decoding=decoding) == 50
    assert rows(50, 60, decoding=decoding) == 110
    assert rows(50, 50, 50, 50, decoding=decoding) == 100
    assert rows(SHORT_PROMPT_TOKENS, SHORT_PROMPT_TOKENS, decoding=decoding) == SHORT_PROMPT_TOKENS
    assert rows(50, 50, 50, 50, decoding=decoding, speed=3000.0) == 200, (
        "as much as a slice on a fast machine"
    )


def test_a_long_prompt_has_the_whole_batch_while_nobody_generates() -> None:
    assert rows(4000) == 512
    assert rows(4000, 5000, n_batch=300) == 300


def test_a_short_prompt_does_not_wait_for_a_long_one() -> None:
    assert rows(40, 4000) == 40


def test_a_long_prompt_has_a_slice_while_others_generate() -> None:
    assert rows(4000, decoding=3, speed=1000.0) == 1000 * PREFILL_SLICE_S
    assert rows(4000, decoding=3, speed=10.0) == MIN_PREFILL_ROWS
    assert rows(4000, decoding=3) == MIN_PREFILL_ROWS
    assert rows(40, 4000, decoding=3, speed=1000.0) == 40 + 1000 * PREFILL_SLICE_S


def test_a_step_never_has_more_rows_than_a_batch() -> None:
    assert rows(100, 4000, decoding=60, n_batch=128, speed=1e6) == 68
    assert rows(SHARED_PREFILL_ROWS, decoding=100, n_batch=128) == 28
