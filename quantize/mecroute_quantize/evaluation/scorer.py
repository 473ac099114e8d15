"""Log-probabilities that a model gives to the tokens of a text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from mecroute.device.hardware import default_threads
from mecroute.engines.llama import native
from mecroute.engines.llama.model import LlamaModel
from mecroute.errors import InvalidModelFileError, MissingExtraError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

#: Rows of logits turned into probabilities at a time: 64 rows of a 152k vocabulary are 39 MB as float32.
_ROWS = 64


class Scorer:
    """A llama.cpp context that scores given tokens and never samples.

    Args:
        model: stays open for as long as this is used.
        n_cells: tokens that fit one call, all sequences together; > 0.
        n_sequences: independent sequences that fit one call, 1 to 256.
        n_threads: > 0; all usable CPUs by default.

    Raises:
        InvalidModelFileError: the model cannot generate text, or has no room for the context.
        MissingExtraError: numpy or llama-cpp-python is not installed.

    Not thread-safe. `close` must be called.
    """

    def __init__(
        self, model: LlamaModel, *, n_cells: int, n_sequences: int = 1, n_threads: int | None = None
    ) -> None:
        try:
            import numpy  # noqa: F401
        except ImportError as error:
            raise MissingExtraError("device", "evaluating a model") from error
        self._lib: Any = native.llama()
        self._model = model
        if not self._lib.llama_model_has_decoder(model.handle):
            raise _not_generative(model)
        params = self._lib.llama_context_default_params()
        params.n_ctx = n_cells
        params.n_batch = n_cells
        params.n_ubatch = min(n_cells, 512)
        params.n_seq_max = n_sequences
        params.kv_unified = True  # tokens shared by several sequences are computed once
        params.n_threads = params.n_threads_batch = n_threads or default_threads()
        params.no_perf = True
        with native.captured_log() as log:
            self._context = self._lib.llama_init_from_model(model.handle, params)
        if not self._context:
            raise InvalidModelFileError(
                f"llama.cpp cannot make a context for {model.path}{native.last_words(log)}",
                hint="free some memory, or evaluate a smaller model",
            )
        self._batch = self._lib.llama_batch_init(n_cells, 0, n_sequences)
        self.n_cells = n_cells
        self.n_sequences = n_sequences

    def score(
        self,
        tokens: Sequence[int],
        sequences: Sequence[Sequence[int]],
        positions: Sequence[int],
        outputs: Sequence[int],
        targets: Sequence[tuple[int, int]],
    ) -> npt.NDArray[np.float64]:
        """Decode a batch from an empty cache and return log-probabilities.

        Args:
            tokens: token ids [n], n at most `n_cells`.
            sequences: which sequences each token belongs to [n].
            positions: its position in them [n].
            outputs: indices of the tokens whose next-token distribution is wanted, ascending.
            targets: pairs (row, token): the distribution after `outputs[row]`, and the token to look up.

        Returns:
            float64 [len(targets)], natural logarithms, each ≤ 0.

        Raises:
            InvalidModelFileError: llama.cpp cannot compute the batch, or gives numbers that are not finite.
        """
        import numpy as np

        lib, batch = self._lib, self._batch
        wanted = set(outputs)
        for i, (token, members, position) in enumerate(zip(tokens, sequences, positions, strict=True)):
            batch.token[i] = token
            batch.pos[i] = position
            batch.n_seq_id[i] = len(members)
            for j, member in enumerate(members):
                batch.seq_id[i][j] = member
            batch.logits[i] = i in wanted
        batch.n_tokens = len(tokens)
        lib.llama_memory_clear(lib.llama_get_memory(self._context), False)
        with native.captured_log() as log:
            status = lib.llama_decode(self._context, batch)
        if status != 0:
            raise InvalidModelFileError(
                f"llama.cpp cannot compute {self._model.path} (status {status}){native.last_words(log)}",
                hint="free some memory, or evaluate a smaller model",
            )
        # The rows of all outputs lie one after the other, in batch order.
        pointer = lib.llama_get_logits(self._context)
        if not pointer:
            raise _not_generative(self._model)
        logits = np.ctypeslib.as_array(pointer, shape=(len(outputs), self._model.n_vocab))
        normalizers = np.empty(len(outputs))
        for start in range(0, len(outputs), _ROWS):
            rows = logits[start : start + _ROWS]
            peak = rows.max(axis=1, keepdims=True)
            sums = np.exp(rows - peak).sum(axis=1, dtype=np.float64)
            normalizers[start : start + _ROWS] = peak[:, 0] + np.log(sums)
        picked = np.array([logits[row, token] for row, token in targets], dtype=np.float64)
        scores: npt.NDArray[np.float64] = picked - normalizers[[row for row, _ in targets]]
        if not math.isfinite(float(scores.sum())):
            raise InvalidModelFileError(
                f"{self._model.path} gives probabilities that are not numbers",
                hint="the file is damaged, or this quantization does not work for the model",
            )
        return scores

    def close(self) -> None:
        """Free the context; a second call does nothing."""
        if self._context:
            self._lib.llama_batch_free(self._batch)
            self._lib.llama_free(self._context)
            self._context = None


def _not_generative(model: LlamaModel) -> InvalidModelFileError:
    return InvalidModelFileError(
        f"{model.path} gives no next-token probabilities to evaluate",
        hint="evaluate a text generation model, not an encoder",
    )
