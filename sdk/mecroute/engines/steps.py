"""How prompts and answers share the steps of our engine: what it does, and what is predicted of it."""

from __future__ import annotations

from collections.abc import Sequence

#: Rows of a step. More does not make a prompt faster on a CPU, and holds up whoever joins meanwhile.
STEP_ROWS = 512
#: Where they would take longer than this, a step has fewer: so long may it hold up whoever joins.
STEP_S = 1.0
#: And short prompts that came together longer than this: in two steps the first of them answer sooner, the
#: others later, and all together take longer.
SHORT_PROMPTS_S = 2.0
#: But not fewer than these. Of a prompt of 1,024 tokens (Qwen2.5-0.5B, 2 threads) steps of 512, 256 and 128
#: rows computed as much a second, of 64 rows a tenth less, and of 32 three tenths less.
MIN_STEP_ROWS = 64
#: What is left of a prompt is computed at once when it is this short, together with all others like it that
#: came meanwhile: slicing them would only put decoding steps in between, with fewer rows than there could be.
SHORT_PROMPT_TOKENS = 128
#: While others generate, a long prompt has slices that take about so long, and between two of them those
#: that generate have as long, or their part of it where several such prompts wait: beside one they keep half
#: their speed. Smaller slices in every step would delay every token.
SLICE_S = 1.0
#: And at least so many steps, so that fewer than one token in twenty comes late.
STEPS_PER_SLICE = 24
#: Never fewer, so that a prompt gets on even while many others generate on a slow machine.
MIN_PREFILL_ROWS = 32


def step_rows(speed: float | None, seconds: float) -> float:
    """The most rows of prompts that a step has, without a slice beside answers, as far as its batch has room.

    Args:
        speed: prompt tokens per second, > 0, None while not measured, infinite where it sets no bound.
        seconds: how long they may take.
    """
    return min(STEP_ROWS, max(MIN_STEP_ROWS, (speed or 0.0) * seconds))


def prompt_rows(
    left: Sequence[float], *, room: float, speed: float | None, generating: bool, owed: bool
) -> float:
    """How many prompt tokens a step computes: the short prompts, whole, and a part of a longer one.

    Args:
        left: tokens that each waiting prompt has left, the least first; at least one.
        room: rows that the batch has for them.
        speed: prompt tokens per second, > 0, None while not measured, infinite where it sets no bound.
        generating: whether answers go on in the step.
        owed: whether those have time to themselves, after a slice of a long prompt.

    Returns:
        Rows, at most `room`; they go to the prompts in the order of `left`. 0: the step is the answers' own.
    """
    if not generating and left[0] > SHORT_PROMPT_TOKENS:
        return min(room, step_rows(speed, STEP_S))
    most = min(room, step_rows(speed, SHORT_PROMPTS_S))
    rows = 0.0
    for tokens in left:
        if tokens > SHORT_PROMPT_TOKENS or (rows and rows + tokens > most):
            break
        rows += tokens
    if generating and not owed and left[-1] > SHORT_PROMPT_TOKENS:
        rows += max(MIN_PREFILL_ROWS, (speed or 0.0) * SLICE_S)
    return min(room, rows)
