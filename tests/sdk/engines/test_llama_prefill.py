from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from mecroute.engines.llama.prefill import (
    MIN_PREFILL_ROWS,
    SHORT_PROMPT_TOKENS,
    SLICE_S,
    STEPS_PER_SLICE,
    PrefillPace,
    left_of_prompt,
    prefill_rows,
)


def waiting(*left: int) -> list[Any]:
    """Sequences with so much of their prompts left, 10 tokens of which are computed."""
    return [
        SimpleNamespace(prompt=[0] * (tokens + 10), slot=SimpleNamespace(tokens=[0] * 10)) for tokens in left
    ]


def rows(*left: int, decoding: int = 0, n_batch: int = 512, slice_rows: int = 0) -> int:
    return prefill_rows(waiting(*left), decoding=decoding, n_batch=n_batch, slice_rows=slice_rows)


def test_what_is_left_of_a_prompt() -> None:
    assert left_of_prompt(waiting(7)[0]) == 7


@pytest.mark.parametrize("decoding", [0, 5])
def test_short_prompts_are_taken_whole_while_they_fit_together(decoding: int) -> None:
    assert rows(50, decoding=decoding) == 50
    assert rows(50, 60, decoding=decoding) == 110
    assert rows(50, 50, 50, 50, 80, decoding=decoding) == 280
    assert rows(*[100] * 6, decoding=decoding) == 500
    assert rows(*[SHORT_PROMPT_TOKENS] * 6, decoding=0) == 4 * SHORT_PROMPT_TOKENS


def test_a_long_prompt_has_the_whole_batch_while_nobody_generates() -> None:
    assert rows(4000) == 512
    assert rows(4000, 5000, n_batch=300) == 300


def test_a_short_prompt_does_not_wait_for_a_long_one() -> None:
    assert rows(40, 4000) == 40


def test_a_long_prompt_has_a_slice_while_others_generate() -> None:
    assert rows(4000, decoding=3, slice_rows=200) == 200
    assert rows(40, 4000, decoding=3, slice_rows=200) == 240
    assert rows(40, 4000, decoding=3, slice_rows=0) == 40
    assert rows(4000, decoding=3, slice_rows=0) == 0


def test_those_that_generate_and_a_long_prompt_have_half_of_the_time_each() -> None:
    pace, speed, step_s = PrefillPace(), 400.0, 0.025
    assert pace.slice_rows(None) == MIN_PREFILL_ROWS
    slices, steps = 0, 0
    for _ in range(500):
        rows = pace.slice_rows(speed)
        if rows:
            assert rows == SLICE_S * speed
            pace.took(rows / speed, sliced=1)
            slices += 1
        else:
            pace.took(step_s, sliced=0)
            steps += 1
    assert slices * SLICE_S == pytest.approx(steps * step_s, rel=0.1)


def test_slow_steps_of_those_that_generate_are_not_cut_short() -> None:
    pace, slices = PrefillPace(), 0
    for _ in range(500):
        if pace.slice_rows(400.0):
            pace.took(SLICE_S, sliced=1)
            slices += 1
        else:
            pace.took(SLICE_S / 4, sliced=0)
    assert slices == 500 // (STEPS_PER_SLICE + 1)


def test_where_several_long_prompts_wait_they_have_more_of_the_time() -> None:
    pace = PrefillPace()
    pace.took(1.0, sliced=4)
    for _ in range(STEPS_PER_SLICE // 4):
        assert pace.slice_rows(400.0) == 0
        pace.took(0.05, sliced=0)
    assert pace.slice_rows(400.0) > 0


def test_a_step_never_has_more_rows_than_a_batch() -> None:
    assert rows(100, 4000, decoding=60, n_batch=128, slice_rows=1000) == 68
    assert rows(100, decoding=100, n_batch=128) == 28
