"""What llama.cpp holds for a sequence, read, written and moved as bytes."""

from __future__ import annotations

import ctypes
import struct
from typing import Any

#: Of a sequence's state: magic and id, then the number of streams, then how many cells it has in each.
_HEAD_BYTES = 8
_COUNT = struct.Struct("<I")
_BYTES = ctypes.POINTER(ctypes.c_uint8)
#: A larger buffer is not kept for the next time.
_MAX_KEPT_BYTES = 32 * 1024 * 1024


class SequenceStates:
    """The states of a context's sequences.

    What is moved within the context goes through buffers that are used again: to touch 16 MB of new memory
    took 8 ms, and to copy as much into memory that had been touched 2.

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
        self._buffers: list[bytearray] = []

    def read(self, sequence: int) -> memoryview:
        """See `DecodeContext.read_state`."""
        size = self._size(sequence)
        buffer = bytearray(size)
        if not self._read_into(buffer, size, sequence):
            return memoryview(b"")
        if self._n_streams == 1:
            return memoryview(buffer)
        # Before its cells stands a zero for each stream before its own, and after them one for each other.
        start, end = _COUNT.size * sequence, size - _COUNT.size * (self._n_streams - 1 - sequence)
        buffer[start : start + _HEAD_BYTES] = buffer[:_HEAD_BYTES]
        _COUNT.pack_into(buffer, start + _HEAD_BYTES, 1)
        return memoryview(buffer)[start:end]

    def write(self, sequence: int, state: memoryview) -> bool:
        """See `DecodeContext.write_state`."""
        import numpy as np

        if self._n_streams == 1:
            return self._write_from(np.frombuffer(state, dtype=np.uint8).ctypes.data, len(state), sequence)
        size = len(state) + _COUNT.size * (self._n_streams - 1)
        buffer = self._buffer(0, size)
        buffer[: len(state)] = state
        buffer[len(state) : size] = bytes(size - len(state))
        _COUNT.pack_into(buffer, _HEAD_BYTES, self._n_streams)
        return self._write_from(_address(buffer), size, sequence)

    def copy(self, source: int, target: int) -> bool:
        """Give an empty sequence all that another holds; False if that fails."""
        size = self._size(source)
        buffer = self._buffer(0, size)
        read = self._read_into(buffer, size, source)
        return read and self._write_from(_address(buffer), size, target)

    def exchange(self, one: int, other: int) -> tuple[bool, bool]:
        """Let two sequences change places.

        Returns:
            Whether they did, and whether the other one still holds what it held; the first one always does.
        """
        sizes = self._size(one), self._size(other)
        mine, theirs = self._buffer(0, sizes[0]), self._buffer(1, sizes[1])
        if not (self._read_into(mine, sizes[0], one) and self._read_into(theirs, sizes[1], other)):
            return False, True
        self._empty(other)
        if not self._write_from(_address(mine), sizes[0], other):
            return False, self._write_from(_address(theirs), sizes[1], other)
        self._empty(one)
        return True, self._write_from(_address(theirs), sizes[1], one)

    def free_buffers(self) -> None:
        """Give back the memory that moving has left; the next move takes longer."""
        self._buffers.clear()

    def _size(self, sequence: int) -> int:
        return int(self._lib.llama_state_seq_get_size(self._handle, sequence))

    def _buffer(self, number: int, size: int) -> bytearray:
        """One of the buffers, with room for so many bytes."""
        if size > _MAX_KEPT_BYTES:
            return bytearray(size)
        while len(self._buffers) <= number:
            self._buffers.append(bytearray())
        if len(self._buffers[number]) < size:
            self._buffers[number] = bytearray(size)
        return self._buffers[number]

    def _read_into(self, buffer: bytearray, size: int, sequence: int) -> bool:
        pointer = ctypes.cast(_address(buffer), _BYTES)
        written = int(self._lib.llama_state_seq_get_data(self._handle, pointer, size, sequence))
        # What no cells follow is the state of an encoder, which has none.
        return written == size and size >= _HEAD_BYTES + _COUNT.size * self._n_streams

    def _write_from(self, address: int, size: int, sequence: int) -> bool:
        pointer = ctypes.cast(address, _BYTES)
        taken = int(self._lib.llama_state_seq_set_data(self._handle, pointer, size, sequence))
        if taken != size:
            self._empty(sequence)
        return taken == size

    def _empty(self, sequence: int) -> None:
        self._lib.llama_memory_seq_rm(self._memory, sequence, 0, -1)


def _address(buffer: bytearray) -> int:
    return ctypes.addressof((ctypes.c_uint8 * len(buffer)).from_buffer(buffer))
