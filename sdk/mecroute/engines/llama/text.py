"""From token bytes to text that may be shown: whole UTF-8 characters, and nothing of a stop string."""

from __future__ import annotations

import codecs
from collections.abc import Sequence


class TextStream:
    """Turns the bytes of one answer's tokens into text as early as it is certain.

    Args:
        stop: strings that end the answer and are never part of it, none of them empty.

    Attributes:
        met: the stop string that has been met; nothing may be fed after that.

    Not thread-safe.
    """

    __slots__ = ("_decode", "_decoder", "_held", "_longest", "_partial", "_stop", "met")

    def __init__(self, stop: Sequence[str] = ()) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._decode = self._decoder.decode
        self._stop = tuple(stop)
        self._longest = max(map(len, self._stop), default=0)
        self._held = ""
        self._partial = False
        self.met: str | None = None

    @property
    def stopped(self) -> bool:
        """Whether a stop string has been met."""
        return self.met is not None

    def feed(self, piece: bytes) -> str:
        """Add a token's bytes.

        Returns:
            The text that is certain now; what may yet turn out to be part of a stop string, or is only a
            part of a character, is kept for later.
        """
        if not self._partial and piece.isascii():
            text = piece.decode("ascii")
        else:
            text = self._decode(piece)
            self._partial = bool(self._decoder.getstate()[0])
        if not self._stop:
            return text
        return self._hold_back(text)

    def _hold_back(self, text: str) -> str:
        text = self._held + text
        cut, met = min(
            ((at, stop) for stop in self._stop if (at := text.find(stop)) >= 0), default=(-1, None)
        )
        if met is not None:
            self.met = met
            self._held = ""
            return text[:cut]
        for length in range(min(self._longest - 1, len(text)), 0, -1):
            ending = text[-length:]
            if any(stop.startswith(ending) for stop in self._stop):
                self._held = ending
                return text[:-length]
        self._held = ""
        return text

    def finish(self) -> str:
        """End the answer.

        Returns:
            The text that was held back. The first bytes of a character whose end never came are dropped.
        """
        held, self._held = self._held, ""
        return held
