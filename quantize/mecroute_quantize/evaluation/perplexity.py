"""Perplexity by the method of llama.cpp's `llama-perplexity`, so that figures can be compared.

The text is cut into windows of `n_ctx` tokens that do not overlap; what is left at the end is dropped.
In each window only the second half is scored, so that every scored token has at least half a window
before it: with first = n_ctx // 2, the tokens at first + 1 … n_ctx - 1. Where the model begins texts with
BOS, it takes the place of the window's first token. Perplexity = exp(-mean log-probability).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from mecroute.engines.llama import native
from mecroute.engines.llama.model import LlamaModel
from mecroute.errors import InvalidModelFileError
from mecroute_quantize.evaluation.scorer import Scorer

WINDOW_TOKENS = 512


@dataclass(frozen=True, slots=True)
class Perplexity:
    """A perplexity (≥ 1, lower is better) and the number of tokens it was taken over."""

    value: float
    tokens: int


def measure_perplexity(
    model: LlamaModel,
    text: str,
    *,
    n_threads: int | None = None,
    progress: Callable[[float], None] | None = None,
) -> Perplexity:
    """Measure how well a model predicts a text.

    Args:
        model: an open text generation model.
        text: at least two windows long.
        n_threads: > 0; all usable CPUs by default.
        progress: called with the share done, 0 to 1.

    Raises:
        InvalidModelFileError: the model cannot score text, or the text is shorter than two windows of it.
    """
    window = min(WINDOW_TOKENS, model.n_ctx_train)
    first = window // 2
    tokens = list(model.tokenize(text, parse_special=False))
    windows = len(tokens) // window
    if windows < 2:
        raise InvalidModelFileError(
            f"the text is only {len(tokens)} tokens for {model.path}, too few for two windows of {window}",
            hint="measure perplexity on a longer text",
        )
    add_bos = native.llama().llama_vocab_get_add_bos(model.vocab)
    scored = range(first, window - 1)
    total = 0.0
    scorer = Scorer(model, n_cells=window, n_threads=n_threads)
    try:
        for index in range(windows):
            chunk = tokens[index * window : (index + 1) * window]
            targets = [(row, chunk[at + 1]) for row, at in enumerate(scored)]
            if add_bos and model.bos_token is not None:
                chunk[0] = model.bos_token
            scores = scorer.score(chunk, [(0,)] * window, range(window), scored, targets)
            total += float(scores.sum())
            if progress is not None:
                progress((index + 1) / windows)
    finally:
        scorer.close()
    count = windows * len(scored)
    mean = -total / count
    # A broken model can be worse than a float can say.
    return Perplexity(value=math.exp(min(mean, 700.0)), tokens=count)
