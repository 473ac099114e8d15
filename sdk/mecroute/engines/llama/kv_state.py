"""The bytes in which llama.cpp hands out a sequence's KV cells, and what they must look like to be taken in.

`llama_state_seq_set_data` checks sizes and types, and ends the process where something else is wrong (a
position that occurs twice). What comes from outside is therefore compared here, byte by byte, with how this
context writes a sequence of as many tokens itself; only the numbers in the cells may differ.
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass

#: magic, sequence id, streams, cells.
_HEAD = struct.Struct("<IiII")
#: position, number of sequence ids, sequence id.
_CELL = struct.Struct("<iIi")
#: whether values are transposed, layers.
_DATA = struct.Struct("<II")
_KEY_HEAD = struct.Struct("<iQ")
_TRANSPOSED_HEAD = struct.Struct("<iII")
_MAX_SEQUENCES = 256
#: ggml's numbers for its types of float, with numpy's names and the bits of an exponent that is all ones.
_FLOATS = {0: ("<u4", 0x7F80_0000), 1: ("<u2", 0x7C00), 30: ("<u2", 0x7F80)}


@dataclass(frozen=True, slots=True)
class StateLayout:
    """How a context writes the state of a sequence.

    Attributes:
        magic: the number it begins with.
        transposed: whether values are stored across cells.
        n_layers: layers with a cache.
        sections: the bytes before each block of cell data, and that block's bytes per token.
    """

    magic: int
    transposed: int
    n_layers: int
    sections: tuple[tuple[bytes, int], ...]

    @classmethod
    def of_one_token(cls, state: memoryview) -> StateLayout | None:
        """Read it from the state of a sequence of one token; None if it is of a form not known here.

        Models with more to a token than keys and values (M-RoPE positions, a sliding window, a recurrent
        state) write other forms.
        """
        try:
            magic, _, streams, cells = _HEAD.unpack_from(state)
            position, ids, _ = _CELL.unpack_from(state, _HEAD.size)
            at = _HEAD.size + _CELL.size
            transposed, n_layers = _DATA.unpack_from(state, at)
            if (streams, cells, position, ids) != (1, 1, 0, 1) or transposed > 1 or not 0 < n_layers < 10_000:
                return None
            at += _DATA.size
            sections: list[tuple[bytes, int]] = []
            while at < len(state):
                if len(sections) >= n_layers and transposed:
                    _, element, width = _TRANSPOSED_HEAD.unpack_from(state, at)
                    head, size = _TRANSPOSED_HEAD.size, element * width
                else:
                    _, size = _KEY_HEAD.unpack_from(state, at)
                    head = _KEY_HEAD.size
                sections.append((bytes(state[at : at + head]), size))
                at += head + size
        except struct.error:
            return None
        if at != len(state) or not n_layers < len(sections) <= 2 * n_layers:
            return None
        return cls(magic, transposed, n_layers, tuple(sections))

    @property
    def fingerprint(self) -> str:
        """Tells layouts apart: a state of one fits only contexts with the same."""
        parts = repr((self.magic, self.transposed, self.n_layers, self.sections))
        return hashlib.sha256(parts.encode()).hexdigest()[:16]

    @property
    def bytes_per_token(self) -> int:
        """How much a state grows by a token."""
        return _CELL.size + sum(size for _, size in self.sections)

    def size_of(self, n_tokens: int) -> int:
        """Bytes of the state of a sequence of `n_tokens`."""
        heads = _HEAD.size + _DATA.size + sum(len(head) for head, _ in self.sections)
        return heads + n_tokens * self.bytes_per_token

    def flaw_in(self, state: memoryview, n_tokens: int) -> str | None:
        """What is wrong with a state of `n_tokens` (≥ 1), or None if this context may take it in.

        Args:
            state: its bytes.
            n_tokens: how many tokens it is said to be of.
        """
        import numpy as np

        if len(state) != self.size_of(n_tokens):
            return f"it has {len(state):,} bytes, not the {self.size_of(n_tokens):,} of {n_tokens} tokens"
        magic, _, streams, cells = _HEAD.unpack_from(state)
        if (magic, streams, cells) != (self.magic, 1, n_tokens):
            return "its head is not that of one sequence with as many cells as tokens"
        table = np.frombuffer(state, dtype="<i4", count=3 * n_tokens, offset=_HEAD.size).reshape(-1, 3)
        if not np.array_equal(np.sort(table[:, 0]), np.arange(n_tokens)):
            return "its positions are not each of those from 0 on, once"
        if (table[:, 1] != 1).any() or (table[:, 2] < 0).any() or (table[:, 2] >= _MAX_SEQUENCES).any():
            return "a cell belongs to another number of sequences than one"
        at = _HEAD.size + n_tokens * _CELL.size
        if _DATA.unpack_from(state, at) != (self.transposed, self.n_layers):
            return "it is of another number of layers, or stored the other way round"
        at += _DATA.size
        for number, (head, size) in enumerate(self.sections):
            if bytes(state[at : at + len(head)]) != head:
                return f"the head of section {number} is not this model's"
            at += len(head)
            kind = _FLOATS.get(struct.unpack_from("<i", head)[0])
            if kind is not None:
                dtype, exponent = kind
                count = n_tokens * size // np.dtype(dtype).itemsize
                numbers = np.frombuffer(state, dtype=dtype, count=count, offset=at)
                # Not a number in the memory is not a number in every probability computed from it.
                if ((numbers & exponent) == exponent).any():
                    return f"section {number} has numbers that are not finite"
            at += n_tokens * size
        return None
