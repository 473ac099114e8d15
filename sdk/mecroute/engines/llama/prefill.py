"""How much of the waiting prompts one step computes."""

from __future__ import annotations

from collections.abc import Sequence as Line

from mecroute.engines.llama.sequence import Sequence

#: While others are generating, a step's share of prompt is what takes about this long, so that a long
#: prompt slows their tokens down but never stops them.
PREFILL_SLICE_S = 0.1
#: What is left of a prompt is computed at once when it is this short: requests that arrive together then get
#: their first tokens together, and slicing it would only put their decoding steps in between.
SHORT_PROMPT_TOKENS = 128
#: Never fewer, so that a prompt gets on even while many others generate on a slow machine.
MIN_PREFILL_ROWS = 32


def prefill_rows(waiting: Line[Sequence], *, decoding: int, n_batch: int, speed: float | None) -> int:
    """How many prompt tokens a step may have: all of the short prompts, and a slice of the others.

    Args:
        waiting: sequences whose prompts are not computed yet, the shortest rest first; at least one.
        decoding: rows that the step has for sequences that generate.
        n_batch: rows a step may have.
        speed: measured prompt tokens per second, or None.
    """
    most = n_batch - decoding
    if not decoding:
        return most
    left = [left_of_prompt(sequence) for sequence in waiting]
    rows = sum(tokens for tokens in left if tokens <= SHORT_PROMPT_TOKENS)
    if left[-1] > SHORT_PROMPT_TOKENS:
        rows += max(MIN_PREFILL_ROWS, int(speed * PREFILL_SLICE_S) if speed else 0)
    return min(most, rows)


def left_of_prompt(sequence: Sequence) -> int:
    """Tokens of the prompt that are not computed yet."""
    return len(sequence.prompt) - len(sequence.slot.tokens)
