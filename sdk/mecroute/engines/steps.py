"""How prompts and answers share the steps of our engine: what it does, and what is predicted of it."""

from __future__ import annotations

#: Rows of a step. More does not make a prompt faster on a CPU, and holds up whoever joins meanwhile.
STEP_ROWS = 512
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
