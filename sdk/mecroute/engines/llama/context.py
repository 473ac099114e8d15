"""A llama.cpp context: the KV memory of all sequences and the batch that is decoded each step."""

from __future__ import annotations

import contextlib
import ctypes
import struct
from collections.abc import Sequence
from typing import Any, Literal

from mecroute.engines.llama import native
from mecroute.engines.llama.model import LlamaModel
from mecroute.engines.llama.pooling import NUMBERS, Pooling
from mecroute.engines.llama.threads import ThreadGovernor
from mecroute.engines.llama.turns import Turns
from mecroute.errors import InvalidModelFileError

#: LoRA adapters as llama.cpp has them, and how much of each is added.
Adapters = Sequence[tuple[Any, float]]

#: Of a sequence's state: magic and id, then the number of streams, then how many cells it has in each.
_STATE_HEAD = 8
_COUNT = struct.Struct("<I")


class DecodeContext:
    """KV memory for `n_seq_max` sequences, and one batch whose buffers are reused at every step.

    To decode, write rows 0..n-1 of `tokens`, `positions`, `sequences` and `wants_logits`, then call
    `decode(n)`.

    Args:
        model: the weights.
        n_ctx: KV cells of all sequences together.
        n_seq_max: sequences that may exist at a time.
        n_batch: rows a step may have.
        n_outputs: rows of a step whose logits may be asked for.
        n_threads: CPU threads at most; fewer are used while other processes need the cores.
        pooling: compute one vector a sequence, pooled so, instead of logits; `none` makes it one a row.
        adapters: llama.cpp's LoRA adapters and their scales, applied to every row.
        turns: whose turn it is to compute, where several contexts share the CPU.
        streams: each sequence has an equal part of the cells for itself, and its attention looks at those
            alone. Otherwise they are one memory: what sequences have in common is in the same cells, and
            attention passes over everybody's.

    Raises:
        InvalidModelFileError: llama.cpp cannot make a context of that size for this model.

    Attributes:
        tokens, positions, sequences: int32 [n_batch].
        wants_logits: int8 [n_batch], 0 or 1.

    Not thread-safe: one thread uses it at a time.
    """

    def __init__(
        self,
        model: LlamaModel,
        *,
        n_ctx: int,
        n_seq_max: int,
        n_batch: int,
        n_outputs: int,
        n_threads: int,
        pooling: Pooling | Literal["none"] | None = None,
        adapters: Adapters = (),
        turns: Turns | None = None,
        streams: bool = False,
    ) -> None:
        import numpy as np

        lib: Any = native.llama()
        self._lib = lib
        self.n_batch = n_batch
        self.n_outputs = n_outputs
        params = lib.llama_context_default_params()
        params.n_ctx = n_ctx
        params.n_seq_max = n_seq_max
        params.n_batch = n_batch
        params.n_ubatch = n_batch
        # Without this llama.cpp reserves logits for every row of a batch: 100 MB for a 49k vocabulary.
        params.n_outputs_max = n_outputs
        params.n_threads = n_threads
        params.n_threads_batch = n_threads
        params.kv_unified = not streams
        self._streams = n_seq_max if streams and n_seq_max > 1 else 1
        params.no_perf = True
        if pooling is not None:
            params.embeddings = True
            params.pooling_type = 0 if pooling == "none" else NUMBERS[pooling]
        with native.captured_log() as tail:
            self.handle = lib.llama_init_from_model(model.handle, params)
        if not self.handle:
            raise InvalidModelFileError(
                f"llama.cpp cannot make a context of {n_ctx} tokens for '{model.path}'"
                f"{native.last_words(tail)}",
                hint="ask for a shorter context or fewer parallel sequences",
            )
        self._turns = turns or contextlib.nullcontext()
        if adapters:
            handles = (lib.llama_adapter_lora_p_ctypes * len(adapters))(*(handle for handle, _ in adapters))
            scales = (ctypes.c_float * len(adapters))(*(scale for _, scale in adapters))
            lib.llama_set_adapters_lora(self.handle, handles, len(adapters), scales)
        self._governor = ThreadGovernor(n_threads)
        self._memory = lib.llama_get_memory(self.handle)

        self.tokens = np.zeros(n_batch, dtype=np.int32)
        self.positions = np.zeros(n_batch, dtype=np.int32)
        self.sequences = np.zeros(n_batch, dtype=np.int32)
        self.wants_logits = np.zeros(n_batch, dtype=np.int8)
        # Each row belongs to exactly one sequence, so the pointers to its sequence ids never change.
        self._sequence_counts = np.ones(n_batch, dtype=np.int32)
        self._sequence_pointers = self.sequences.ctypes.data + 4 * np.arange(n_batch, dtype=np.uintp)
        batch = lib.llama_batch()
        for field, array in (
            ("token", self.tokens),
            ("pos", self.positions),
            ("n_seq_id", self._sequence_counts),
            ("seq_id", self._sequence_pointers),
            ("logits", self.wants_logits),
        ):
            kind: Any = dict(lib.llama_batch._fields_)[field]
            setattr(batch, field, ctypes.cast(array.ctypes.data, kind))
        self._batch = batch
        self._decode = lib.llama_decode
        self._sample = native.keeping_gil("llama_sampler_sample")
        self._logits = native.keeping_gil("llama_get_logits_ith")
        self._logits_address = native.keeping_gil("llama_get_logits")
        self._logits_address.restype = ctypes.c_void_p
        self._n_vocab = model.n_vocab
        self._logits_shape = (0, 0)
        self._logits_views: list[Any] = []

    def decode(self, n_rows: int) -> int:
        """Run the first `n_rows` rows through the model; the GIL is free meanwhile.

        Returns:
            llama_decode's status: 0 done, 1 no room in the KV memory, else a failure.
        """
        threads = self._governor.threads()
        if threads is not None:
            self._lib.llama_set_n_threads(self.handle, threads, threads)
        self._batch.n_tokens = n_rows
        with self._turns:
            status = int(self._decode(self.handle, self._batch))
        self._governor.worked()
        return status

    def sample(self, sampler: Any, row: int) -> int:
        """Choose the token after a row of the last step.

        Args:
            sampler: handle of a sampler chain; it accepts the token.
            row: a row whose `wants_logits` was 1.
        """
        return int(self._sample(sampler, self.handle, row))

    def most_likely(self, rows: Sequence[int]) -> dict[int, int]:
        """The most likely token after each row, by row.

        A chain of one greedy sampler finds the same, but copies the whole vocabulary first: 0.1 ms a row.

        Args:
            rows: all rows of the last step whose `wants_logits` was 1, in their order.
        """
        address = self._logits_address(self.handle)
        if (address, len(rows)) != self._logits_shape:  # views take as long to make as a token to choose
            self._logits_shape = address, len(rows)
            self._logits_views = self._views_of_logits(address, len(rows))
        return {row: int(view.argmax()) for row, view in zip(rows, self._logits_views, strict=True)}

    def _views_of_logits(self, address: int, rows: int) -> list[Any]:
        import numpy as np

        pointer = ctypes.cast(address, ctypes.POINTER(ctypes.c_float))
        return list(np.ctypeslib.as_array(pointer, shape=(rows, self._n_vocab)))

    def logits(self, row: int, n_vocab: int) -> Any:
        """The logits of a row of the last step, float32 [n_vocab]; llama.cpp's own memory, not to be kept.

        Args:
            row: a row whose `wants_logits` was 1.
            n_vocab: size of the vocabulary.
        """
        import numpy as np

        return np.ctypeslib.as_array(self._logits(self.handle, row), shape=(n_vocab,))

    @property
    def has_memory(self) -> bool:
        """Whether there is KV memory; an encoder (BERT and its like) has none, and generates nothing."""
        return bool(self._memory)

    def pooled(self, sequence: int, size: int) -> Any:
        """What the tokens of a sequence of the last step were pooled to, float32 [size]; a copy."""
        import numpy as np

        pointer = self._lib.llama_get_embeddings_seq(self.handle, sequence)
        return np.ctypeslib.as_array(pointer, shape=(size,)).copy()

    def vectors(self, rows: int, size: int) -> Any:
        """The vectors of the first rows of the last step, float32 [rows, size]; llama.cpp's own memory."""
        import numpy as np

        return np.ctypeslib.as_array(self._lib.llama_get_embeddings(self.handle), shape=(rows, size))

    def keep_prefix(self, sequence: int, length: int) -> bool:
        """Forget a sequence's tokens from position `length` on; False if the memory cannot do that."""
        return bool(self._lib.llama_memory_seq_rm(self._memory, sequence, length, -1))

    def share_prefix(self, source: int, target: int, length: int) -> bool:
        """Give an empty sequence the first `length` tokens of another; with streams they are copied.

        Returns:
            Whether it has them.
        """
        if self._streams > 1:
            state = self.read_state(source)
            return len(state) > 0 and self.write_state(target, state) and self.keep_prefix(target, length)
        self._lib.llama_memory_seq_cp(self._memory, source, target, 0, length)
        return True

    def decode_one(self, sequence: int) -> bool:
        """Put some token into an empty sequence, at position 0; False where that fails."""
        self.tokens[0] = self.positions[0] = self.wants_logits[0] = 0
        self.sequences[0] = sequence
        return self.decode(1) == 0

    def read_state(self, sequence: int) -> memoryview:
        """What llama.cpp writes of a sequence's cells, equal with streams and without; empty if it cannot."""
        size = int(self._lib.llama_state_seq_get_size(self.handle, sequence))
        buffer = bytearray(size)
        written = int(self._lib.llama_state_seq_get_data(self.handle, _address(buffer), size, sequence))
        # What no cells follow is the state of an encoder, which has none.
        if written != size or size < _STATE_HEAD + _COUNT.size * self._streams:
            return memoryview(b"")
        if self._streams == 1:
            return memoryview(buffer)
        # Before its cells stands a zero for each stream before its own, and after them one for each other.
        start, end = _COUNT.size * sequence, size - _COUNT.size * (self._streams - 1 - sequence)
        buffer[start : start + _STATE_HEAD] = buffer[:_STATE_HEAD]
        _COUNT.pack_into(buffer, start + _STATE_HEAD, 1)
        return memoryview(buffer)[start:end]

    def write_state(self, sequence: int, state: memoryview) -> bool:
        """Fill an empty sequence with what `read_state` gave; False if llama.cpp refuses it.

        Args:
            sequence: its id.
            state: checked, see `StateLayout.flaw_in`: on some mistakes llama.cpp ends the process.
        """
        import numpy as np

        if self._streams > 1:
            whole = bytearray(len(state) + _COUNT.size * (self._streams - 1))
            whole[: len(state)] = state
            _COUNT.pack_into(whole, _STATE_HEAD, self._streams)
            state = memoryview(whole)
        address = np.frombuffer(state, dtype=np.uint8).ctypes.data
        pointer = ctypes.cast(address, ctypes.POINTER(ctypes.c_uint8))
        taken = int(self._lib.llama_state_seq_set_data(self.handle, pointer, len(state), sequence))
        if taken != len(state):
            self.keep_prefix(sequence, 0)
        return taken == len(state)

    def clear(self) -> None:
        """Forget every sequence."""
        if self._memory:
            self._lib.llama_memory_clear(self._memory, False)

    def close(self) -> None:
        """Free the memory; a second call does nothing."""
        if self.handle:
            self._lib.llama_free(self.handle)
            self.handle = None


def _address(buffer: bytearray) -> Any:
    return ctypes.cast((ctypes.c_uint8 * len(buffer)).from_buffer(buffer), ctypes.POINTER(ctypes.c_uint8))
