"""Goes on with an answer that was cut within a token, as if it had not been cut.

What was said of the answer is split into tokens again, and at its end that may go wrong: where the model
wrote " Red" and only " R" was delivered, it would have to go on from a token that it never writes there. So
the last word is taken off the prompt, and tokens are chosen among those that spell it, until it has been said
again; the last of them may say more than that. (Known as token healing.)
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mecroute.engines.llama.grammar import ConstrainedChoice

#: What is taken off at most, where no word begins: more would not change what a tokenizer makes of the end.
MAX_TOKENS, MAX_BYTES = 8, 64


class Pieces:
    """A vocabulary by the bytes of its tokens.

    Args:
        pieces: of each token, by id; empty ones (control tokens) spell nothing.

    Thread-safe.
    """

    def __init__(self, pieces: Sequence[bytes]) -> None:
        import numpy as np

        order = sorted((token for token, piece in enumerate(pieces) if piece), key=pieces.__getitem__)
        self._pieces = [pieces[token] for token in order]
        self._tokens = np.array(order, dtype=np.int32)

    def spells(self, text: bytes) -> bool:
        """Whether each byte of a text is a token, so that any way of beginning to spell it can be ended."""
        return all(self._range(bytes((byte,)), whole=True)[0] >= 0 for byte in set(text))

    def compatible(self, rest: bytes) -> Any:
        """Tokens that spell a text, the beginning of it, or more than it; int32 [n].

        Args:
            rest: at least one byte.
        """
        import numpy as np

        found = [self._tokens[slice(*self._range(rest[:end], whole=True))] for end in range(1, len(rest))]
        return np.concatenate([*found, self._tokens[slice(*self._range(rest, whole=False))]])

    def _range(self, text: bytes, *, whole: bool) -> tuple[int, int]:
        """Where the tokens are that spell a text, or begin with it; (-1, -1): nowhere."""
        pieces = self._pieces
        start = bisect_left(pieces, text)
        end = start
        if whole:
            while end < len(pieces) and pieces[end] == text:
                end += 1
        else:
            # What begins with it comes before the first text that is larger in one of its own bytes.
            larger = text.rstrip(b"\xff")
            after = larger[:-1] + bytes((larger[-1] + 1,)) if larger else None
            end = bisect_left(pieces, after, start) if after is not None else len(pieces)
        return (start, end) if end > start else (-1, -1)


def taken_off(pieces: Sequence[bytes], said: bytes) -> int:
    """How many tokens at the end of a prompt are to be chosen again.

    Args:
        pieces: what its last ones spell, in their order.
        said: what was said of the answer; no more than that is taken off.
    """
    count, taken = 0, b""
    for piece in reversed(pieces):
        taken = piece + taken
        if not piece or not said.endswith(taken) or len(taken) > MAX_BYTES:
            break
        count += 1
        # A word begins with its space; white space alone may belong to what stands before it.
        if piece[:1].isspace() and not piece.isspace():
            break
    return count


class HealedChoice:
    """Chooses tokens that say again what was taken off a prompt, and from then on leaves it to another.

    Args:
        choice: chooses a token among logits, and goes on behind it.
        pieces: the vocabulary.
        piece: the bytes of a token.
        rest: what is to be said again.

    Not thread-safe.
    """

    __slots__ = ("_choice", "_piece", "_pieces", "_rest")

    def __init__(
        self, choice: ConstrainedChoice, pieces: Pieces, piece: Callable[[int], bytes], rest: bytes
    ) -> None:
        self._choice = choice
        self._pieces = pieces
        self._piece = piece
        self._rest = rest

    def choose(self, logits: Any) -> int:
        """Choose the next token, and go on behind it; see `ConstrainedChoice.choose`."""
        import numpy as np

        if not self._rest:
            return self._choice.choose(logits)
        tokens = self._pieces.compatible(self._rest)
        allowed = np.full_like(logits, -np.inf)
        allowed[tokens] = logits[tokens]
        token = self._choice.choose(allowed)
        self._rest = self._rest[len(self._piece(token)) :]
        return token
