from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any, cast

import pytest

from mecroute.engines.llama.prefill import PrefillSlices, left_of_prompt
from mecroute.engines.steps import (
    MIN_PREFILL_ROWS,
    MIN_STEP_ROWS,
    SHORT_PROMPT_TOKENS,
    SLICE_S,
    STEP_ROWS,
    STEP_S,
    STEPS_PER_SLICE,
    prompt_rows,
)

#: Prompt tokens per second at which a step may be full.
FAST = 2 * STEP_ROWS / STEP_S


def rows(
    *left: int, generating: bool = False, room: int = 512, speed: float | None = FAST, owed: bool = False
) -> float:
    return prompt_rows(left, room=room, speed=speed, generating=generating, owed=owed)


def test_what_is_left_of_a_prompt() -> None:
    sequence = SimpleNamespace(prompt=[0] * 17, slot=SimpleNamespace(tokens=[0] * 10))
    assert left_of_prompt(cast("Any", sequence)) == 7


@pytest.mark.parametrize("generating", [False, True])
def test_short_prompts_are_taken_whole_while_they_fit_together(generating: bool) -> None:
    assert rows(50, generating=generating) == 50
    assert rows(50, 60, generating=generating) == 110
    assert rows(50, 50, 50, 50, 80, generating=generating) == 280
    assert rows(*[100] * 6, generating=generating) == 500
    assert rows(*[SHORT_PROMPT_TOKENS] * 6, generating=generating) == 4 * SHORT_PROMPT_TOKENS


def test_a_long_prompt_has_the_whole_batch_while_nobody_generates() -> None:
    assert rows(4000) == 512
    assert rows(4000, 5000, room=300) == 300


def test_a_step_takes_no_longer_than_a_second_and_short_prompts_two() -> None:
    assert rows(4000, speed=170.0) == 170
    assert rows(50, 60, 70, 80, speed=130.0) == 260
    assert rows(50, 60, 70, 80, speed=85.0) == 110
    assert rows(50, 60, 70, 80, speed=85.0, generating=True) == 110
    # Beyond that, few rows are too slow; and a short prompt is never cut.
    assert rows(4000, speed=10.0) == MIN_STEP_ROWS
    assert rows(SHORT_PROMPT_TOKENS, 4000, speed=10.0) == SHORT_PROMPT_TOKENS
    assert rows(4000, speed=None) == MIN_STEP_ROWS
    assert rows(4000, speed=math.inf) == STEP_ROWS


def test_a_short_prompt_does_not_wait_for_a_long_one() -> None:
    assert rows(40, 4000) == 40


def test_a_long_prompt_has_a_slice_while_others_generate() -> None:
    assert rows(4000, generating=True, speed=200.0) == 200
    assert rows(40, 4000, generating=True, speed=200.0) == 240
    assert rows(40, 4000, generating=True, speed=200.0, owed=True) == 40
    assert rows(4000, generating=True, speed=200.0, owed=True) == 0
    for slow in (10.0, None):
        assert rows(4000, generating=True, speed=slow) == MIN_PREFILL_ROWS


def test_those_that_generate_and_a_long_prompt_have_half_of_the_time_each() -> None:
    turns, speed, step_s = PrefillSlices(), 400.0, 0.025
    slices, steps = 0, 0
    for _ in range(500):
        if of_prompt := rows(4000, generating=True, speed=speed, owed=turns.owed):
            assert of_prompt == SLICE_S * speed
            turns.took(of_prompt / speed, sliced=1)
            slices += 1
        else:
            turns.took(step_s, sliced=0)
            steps += 1
    assert slices * SLICE_S == pytest.approx(steps * step_s, rel=0.1)


def test_slow_steps_of_those_that_generate_are_not_cut_short() -> None:
    turns, slices = PrefillSlices(), 0
    for _ in range(500):
        if turns.owed:
            turns.took(SLICE_S / 4, sliced=0)
        else:
            turns.took(SLICE_S, sliced=1)
            slices += 1
    assert slices == 500 // (STEPS_PER_SLICE + 1)


def test_where_several_long_prompts_wait_they_have_more_of_the_time() -> None:
    turns = PrefillSlices()
    turns.took(1.0, sliced=4)
    for _ in range(STEPS_PER_SLICE // 4):
        assert turns.owed
        turns.took(0.05, sliced=0)
    assert not turns.owed


def test_a_step_never_has_more_rows_than_there_is_room_for() -> None:
    assert rows(100, 4000, generating=True, room=68) == 68
    assert rows(100, generating=True, room=28) == 28
