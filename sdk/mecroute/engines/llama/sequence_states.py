"""What llama.cpp holds for a sequence, read, written and moved as bytes."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import struct
import sys
from typing import Any

#: Of a sequence's state: magic and id, then the number of streams, then how many cells it has in each.
_HEAD_BYTES = 8
_COUNT = struct.Struct("<I")
_BYTES = ctypes.POINTER(ctypes.c_uint8)


class SequenceStates:
    """The states of a context's sequences. The GIL is free while they are copied.

    Args:
        lib: llama.cpp.
        handle: the context.
        n_streams: 1, or as many as there are sequences.

    Not thread-safe: one thread uses it, and the context, at a time.
    """

    def __init__(self, lib: Any, handle: Any, *, n_streams: int) -> None:
        self._lib = lib
        self._handle = handle
        self._memory = lib.llama_get_memory(handle)
        self._n_streams = n_streams

    def read(self, sequence: int) -> memoryview:
        """See `DecodeContext.read_state`."""
        buffer = self._read(sequence)
        if buffer is None:
            return memoryview(b"")
        if self._n_streams == 1:
            return memoryview(buffer)
        # Before its cells stands a zero for each stream before its own, and after them one for each other.
        start = _COUNT.size * sequence
        end = len(buffer) - _COUNT.size * (self._n_streams - 1 - sequence)
        buffer[start : start + _HEAD_BYTES] = buffer[:_HEAD_BYTES]
        _COUNT.pack_into(buffer, start + _HEAD_BYTES, 1)
        return memoryview(buffer)[start:end]

    def write(self, sequence: int, state: memoryview) -> bool:
        """See `DecodeContext.write_state`."""
        import numpy as np

        address = np.frombuffer(state, dtype=np.uint8).ctypes.data
        if self._n_streams == 1:
            return self._write(address, len(state), sequence)
        # Its cells are those of the first stream, and no other has any.
        whole = _untouched(len(state) + _COUNT.size * (self._n_streams - 1))
        ctypes.memmove(_address(whole), address, len(state))
        _COUNT.pack_into(whole, _HEAD_BYTES, self._n_streams)
        return self._write(_address(whole), len(whole), sequence)

    def copy(self, source: int, target: int) -> bool:
        """Give an empty sequence all that another holds; False if that fails."""
        state = self._read(source)
        return state is not None and self._write(_address(state), len(state), target)

    def exchange(self, one: int, other: int) -> tuple[bool, bool]:
        """Let two sequences change places.

        Returns:
            Whether they did, and whether the other one still holds what it held; the first one always does.
        """
        mine, theirs = self._read(one), self._read(other)
        if mine is None or theirs is None:
            return False, True
        self._empty(other)
        if not self._write(_address(mine), len(mine), other):
            return False, self._write(_address(theirs), len(theirs), other)
        self._empty(one)
        return True, self._write(_address(theirs), len(theirs), one)

    def _read(self, sequence: int) -> mmap.mmap | None:
        """A sequence's state as llama.cpp writes it; None if it does not."""
        size = int(self._lib.llama_state_seq_get_size(self._handle, sequence))
        # What no cells follow is the state of an encoder, which has none.
        if size < _HEAD_BYTES + _COUNT.size * self._n_streams:
            return None
        buffer = _untouched(size)
        pointer = ctypes.cast(_address(buffer), _BYTES)
        written = int(self._lib.llama_state_seq_get_data(self._handle, pointer, size, sequence))
        return buffer if written == size else None

    def _write(self, address: int, size: int, sequence: int) -> bool:
        pointer = ctypes.cast(address, _BYTES)
        taken = int(self._lib.llama_state_seq_set_data(self._handle, pointer, size, sequence))
        if taken != size:
            self._empty(sequence)
        return taken == size

    def _empty(self, sequence: int) -> None:
        self._lib.llama_memory_seq_rm(self._memory, sequence, 0, -1)


def _untouched(size: int) -> mmap.mmap:
    """So many zeros, > 0. Unlike a bytearray's they are made where they are touched, without the GIL.

    In huge pages, where there are any: to fill 16 MB took 3 ms so and 10 otherwise.
    """
    if sys.platform == "win32":
        return mmap.mmap(-1, size)
    buffer = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if sys.platform == "linux":
        with contextlib.suppress(OSError):  # a kernel without them
            buffer.madvise(mmap.MADV_HUGEPAGE)
    return buffer


def _address(buffer: mmap.mmap) -> int:
    return ctypes.addressof(ctypes.c_uint8.from_buffer(buffer))
