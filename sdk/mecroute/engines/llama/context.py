"""A llama.cpp context: the KV memory of all sequences and the batch that is decoded each step."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Sequence
from typing import Any, Literal

from mecroute.engines.llama import native
from mecroute.engines.llama.model import LlamaModel
from mecroute.engines.llama.pooling import NUMBERS, Pooling
from mecroute.engines.llama.sequence_states import SequenceStates
from mecroute.engines.llama.threads import ThreadGovernor
from mecroute.engines.llama.turns import Turns
from mecroute.errors import InvalidModelFileError

#: LoRA adapters as llama.cpp has them, and how much of each is added.
Adapters = Sequence[tuple[Any, float]]


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
        self._has_streams = streams and n_seq_max > 1
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
        self._states = SequenceStates(lib, self.handle, n_streams=n_seq_max if self._has_streams else 1)

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
        if self._has_streams:
            return self._states.copy(source, target) and self.keep_prefix(target, length)
        self._lib.llama_memory_seq_cp(self._memory, source, target, 0, length)
        return True

    def exchange(self, one: int, other: int) -> tuple[bool, bool]:
        """See `SequenceStates.exchange`."""
        return self._states.exchange(one, other)

    def decode_one(self, sequence: int) -> bool:
        """Put some token into an empty sequence, at position 0; False where that fails."""
        self.tokens[0] = self.positions[0] = self.wants_logits[0] = 0
        self.sequences[0] = sequence
        return self.decode(1) == 0

    def read_state(self, sequence: int) -> memoryview:
        """What llama.cpp writes of a sequence's cells, equal with streams and without; empty if it cannot."""
        return self._states.read(sequence)

    def write_state(self, sequence: int, state: memoryview) -> bool:
        """Fill an empty sequence with what `read_state` gave; False if llama.cpp refuses it.

        Args:
            sequence: its id.
            state: checked, see `StateLayout.flaw_in`: on some mistakes llama.cpp ends the process.
        """
        return self._states.write(sequence, state)

    def clear(self) -> None:
        """Forget every sequence."""
        if self._memory:
            self._lib.llama_memory_clear(self._memory, False)

    def close(self) -> None:
        """Free the memory; a second call does nothing."""
        if self.handle:
            self._lib.llama_free(self.handle)
            self.handle = None
