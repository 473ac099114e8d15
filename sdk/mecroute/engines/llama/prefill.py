"""How much of the waiting prompts one step computes."""

from __future__ import annotations

from collections.abc import Sequence as Line

from mecroute.engines.llama.sequence import Sequence

#: While others are generating, a step's share of prompt is what takes about this long, so that a long
#: prompt slows their tokens down but never stops them.
PREFILL_SLICE_S = 0.1
#: What is left of a prompt is computed at once when it is this short: slicing it would only put decoding
#: steps in between.
SHORT_PROMPT_TOKENS = 128
#: Several prompts share a step up to so many rows, or a slice where that is more. On a processor more rows
#: take no less time each, the first prompt would wait for the last, and attention looks at the cells of all
#: sequences in the step.
SHARED_PREFILL_ROWS = 128
#: Never fewer, so that a prompt gets on even while many others generate on a slow machine.
MIN_PREFILL_ROWS = 32


def prefill_rows(waiting: Line[Sequence], *, decoding: int, n_batch: int, speed: float | None) -> int:
    """How many prompt tokens a step may have: some whole short prompts, and a slice of a longer one.

    Args:
        waiting: sequences whose prompts are not computed yet, the shortest rest first; at least one.
        decoding: rows that the step has for sequences that generate.
        n_batch: rows a step may have.
        speed: measured prompt tokens per second, or None.
    """
    most = n_batch - decoding
    part = int(speed * PREFILL_SLICE_S) if speed else 0
    left = [left_of_prompt(sequence) for sequence in waiting]
    if not decoding and left[0] > SHORT_PROMPT_TOKENS:
        return most
    rows = 0
    for tokens in left:
        if tokens > SHORT_PROMPT_TOKENS or (rows and rows + tokens > max(SHARED_PREFILL_ROWS, part)):
            break
        rows += tokens
    if left[-1] > SHORT_PROMPT_TOKENS and decoding:
        rows += max(MIN_PREFILL_ROWS, part)
    return min(most, rows)


def left_of_prompt(sequence: Sequence) -> int:
    """Tokens of the prompt that are not computed yet."""
    return len(sequence.prompt) - len(sequence.slot.tokens)
