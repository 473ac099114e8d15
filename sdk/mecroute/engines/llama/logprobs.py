"""How likely a chosen token was, and what else could have come in its place."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

#: Stands for "impossible" in answers: JSON has no infinity. It is OpenAI's value too.
IMPOSSIBLE = -9999.0


class TokenLogprob(NamedTuple):
    """A token of an answer or a candidate for one.

    Attributes:
        token: its id.
        piece: its bytes; control tokens as they are written in templates.
        logprob: natural logarithm of its probability, before any sampling parameter or grammar.
        top: the most likely candidates, best first; empty for a candidate.
    """

    token: int
    piece: bytes
    logprob: float
    top: tuple[TokenLogprob, ...] = ()


def token_logprob(logits: Any, token: int, n_top: int, spell: Callable[[int], bytes]) -> TokenLogprob:
    """Look up a token in a row of logits.

    Args:
        logits: float32 [n_vocab], as the model gave them.
        token: the one that was chosen.
        n_top: 0..n_vocab; candidates to list.
        spell: the bytes of a token.
    """
    import numpy as np

    row = logits.astype(np.float64)
    highest = row.max()
    log_sum = float(highest + np.log(np.exp(row - highest).sum()))

    def entry(at: int, top: tuple[TokenLogprob, ...] = ()) -> TokenLogprob:
        return TokenLogprob(at, spell(at), max(IMPOSSIBLE, float(row[at]) - log_sum), top)

    if not n_top:
        return entry(token)
    best = np.argpartition(row, -n_top)[-n_top:]
    # Equal logits in the order of their ids, as greedy sampling takes them.
    best = best[np.lexsort((best, -row[best]))]
    return entry(token, tuple(entry(int(at)) for at in best))
