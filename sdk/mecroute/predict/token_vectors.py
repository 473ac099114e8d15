"""What a text is about, as one vector: the mean of learned vectors of its word pieces.

The table ships with the package: the word pieces of all-MiniLM-L6-v2, each with the vector that the encoder
gives to it alone, reduced by PCA (the way of model2vec, github.com/MinishLab/model2vec). Reading a text is a
sum of table rows, in pure Python: a row is one big integer whose lanes are the dimensions, so that adding
two rows is one addition.
"""

from __future__ import annotations

import re
import struct
import sys
import unicodedata
from array import array
from collections.abc import Sequence
from functools import lru_cache
from importlib.resources import files
from operator import mul

from mecroute.errors import ConfigError
from mecroute.predict.excerpt import excerpt

_MAGIC = b"MRTV"
_VERSION = 1
_HEADER = struct.Struct("<4sHHIIf")  # magic, version, dimensions, pieces, bytes of the vocabulary, scale
_MAX_DIM, _MAX_PIECES = 1024, 200_000
_LANE_BYTES = 4
_LOW_BYTE = 0 if sys.byteorder == "little" else _LANE_BYTES - 1
_OFFSET = 128  # lanes hold unsigned numbers: what is stored is value + 128
_WORDS = re.compile(r"[^\W_]+|[^\w\s]|_")
_LONGEST_WORD = 64
_FRACTION_BITS = 32
_WORDS_REMEMBERED = 50_000


def read_words(text: str) -> list[str]:
    """The words and marks of a text, lower case, without accents.

    Of a text beyond 4,000 characters the beginning and the end are read.
    """
    text = excerpt(text).lower()
    if not text.isascii():
        text = "".join(c for c in unicodedata.normalize("NFD", text) if unicodedata.category(c) != "Mn")
    return _WORDS.findall(text)


class TokenVectors:
    """A table of word pieces and their vectors.

    Thread-safe: the only state that changes is a cache of words.

    Args:
        pieces: word pieces in the BERT way, continuations beginning with `##`.
        rows: int8 [pieces, dim], row after row.
        dim: dimensions.
    """

    def __init__(self, pieces: list[str], rows: bytes, dim: int) -> None:
        self.dim = dim
        self._rows = rows
        self._index = {piece: number for number, piece in enumerate(pieces)}
        self._words: dict[str, tuple[int, int]] = {}
        self._spread = bytes(_LANE_BYTES * dim)

    @classmethod
    def unpack(cls, data: bytes, name: str) -> TokenVectors:
        """Read a file of `pack_table`.

        Args:
            name: what an error calls it.

        Raises:
            ConfigError: it is not a table this version reads, or it is damaged.
        """
        if len(data) < _HEADER.size:
            raise ConfigError(f"{name} is not a table of token vectors: it holds only {len(data)} bytes")
        magic, version, dim, count, vocabulary_bytes, scale = _HEADER.unpack_from(data)
        if magic != _MAGIC:
            raise ConfigError(f"{name} is not a table of token vectors")
        if version != _VERSION:
            raise ConfigError(f"{name} has version {version}, this program reads version {_VERSION}")
        del scale  # the mean is brought to length 1, so that the scale does not matter here
        whole = _HEADER.size + vocabulary_bytes + dim * count
        if not (0 < dim <= _MAX_DIM and 0 < count <= _MAX_PIECES) or len(data) != whole:
            raise ConfigError(f"{name} is damaged: {len(data)} bytes where {whole} are declared")
        begin = _HEADER.size + vocabulary_bytes
        try:
            pieces = data[_HEADER.size : begin].decode("utf-8").split("\n")
        except UnicodeDecodeError as error:
            raise ConfigError(f"{name} is damaged: its vocabulary is not UTF-8") from error
        if len(pieces) != count or len(set(pieces)) != count:
            raise ConfigError(f"{name} is damaged: its vocabulary does not have {count} different pieces")
        return cls(pieces, data[begin:], dim)

    def vector(self, text_words: Sequence[str], dims: int | None = None) -> list[float]:
        """The direction of a text.

        Args:
            text_words: as `read_words` gives them.
            dims: only the first so many dimensions, which tell the most; all of them by default.

        Returns:
            [dims], of length 1; all 0 where no word of the text is known.
        """
        values, length = self._sum(text_words, self.dim if dims is None else dims)
        return [value / length for value in values]

    def steps(self, text_words: Sequence[str], scale: int, dims: int) -> list[int]:
        """As `vector`, in whole numbers: coordinates times a scale, rounded down."""
        values, length = self._sum(text_words, dims)
        # Whole numbers shifted take half the time of floating point numbers cut off.
        factor = int(scale / length * (1 << _FRACTION_BITS))
        return [value * factor >> _FRACTION_BITS for value in values]

    def _sum(self, text_words: Sequence[str], dims: int) -> tuple[list[int], float]:
        """The summed rows of a text's words, and the length of that vector (1 where it is 0)."""
        known = list(map(self._words.get, text_words))
        if None in known:
            known = [
                self._read_word(word) if one is None else one
                for word, one in zip(text_words, known, strict=True)
            ]
        total, count = 0, 0
        for one in known:
            if one is not None:
                total += one[0]
                count += one[1]
        if not count:
            return [0] * dims, 1.0
        lanes = array("I", total.to_bytes(_LANE_BYTES * self.dim, sys.byteorder))
        shift = _OFFSET * count
        values = [lane - shift for lane in lanes[:dims]]
        return values, sum(map(mul, values, values)) ** 0.5 or 1.0

    def _read_word(self, word: str) -> tuple[int, int]:
        """The summed rows of a word's pieces, and their number; nothing for a word that has none."""
        numbers = self._pieces(word)
        total = 0
        for number in numbers:
            wide = bytearray(self._spread)
            row = self._rows[number * self.dim : (number + 1) * self.dim]
            wide[_LOW_BYTE::_LANE_BYTES] = row.translate(_UNSIGNED)
            total += int.from_bytes(wide, sys.byteorder)
        read = (total, len(numbers))
        if len(self._words) < _WORDS_REMEMBERED:
            self._words[word] = read
        return read

    def _pieces(self, word: str) -> list[int]:
        """Longest piece first, as BERT's tokenizer does."""
        if len(word) > _LONGEST_WORD:
            return []
        found, begin = [], 0
        while begin < len(word):
            for end in range(len(word), begin, -1):
                piece = word[begin:end] if begin == 0 else f"##{word[begin:end]}"
                number = self._index.get(piece)
                if number is not None:
                    found.append(number)
                    begin = end
                    break
            else:
                return []
        return found


#: int8 to int8 + 128, byte by byte.
_UNSIGNED = bytes((value + _OFFSET) % 256 for value in range(256))


def pack_table(pieces: list[str], rows: bytes, dim: int, scale: float) -> bytes:
    """The file of a table; see `TokenVectors`. `scale`: what an int8 step stands for."""
    vocabulary = "\n".join(pieces).encode()
    header = _HEADER.pack(_MAGIC, _VERSION, dim, len(pieces), len(vocabulary), scale)
    return header + vocabulary + rows


@lru_cache(maxsize=1)
def shipped_vectors() -> TokenVectors:
    """The table that comes with the package; read on first use."""
    data = files("mecroute.predict").joinpath("data", "token_vectors.bin").read_bytes()
    return TokenVectors.unpack(data, "the shipped table of token vectors")
