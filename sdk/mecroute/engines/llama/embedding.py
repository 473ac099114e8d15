"""Text embeddings from a generative model: the mean of its last hidden states."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

from mecroute.engines.llama.context import DecodeContext
from mecroute.engines.llama.model import LlamaModel
from mecroute.errors import ContextLengthError, InvalidRequestError, TierError, TierUnreachableError


class Embedder:
    """Embeds texts on a context of its own, so that it never disturbs running generations' memory.

    Args:
        model: the weights, which must outlive this.
        name: names the engine in errors.
        n_ctx: tokens a text may have.
        n_threads: CPU threads.

    Thread-safe: one call at a time runs, others wait.
    """

    #: Texts decoded together at most.
    N_SEQUENCES = 32

    def __init__(self, model: LlamaModel, *, name: str, n_ctx: int, n_threads: int) -> None:
        self._model = model
        self._name = name
        self._n_ctx = n_ctx
        self._lock = threading.Lock()
        self._context = DecodeContext(
            model,
            n_ctx=n_ctx,
            n_seq_max=self.N_SEQUENCES,
            # The mean is taken within a batch, so a text's tokens must all be in the same one.
            n_batch=n_ctx,
            n_outputs=n_ctx,
            n_threads=n_threads,
            mean_pooled=True,
        )

    def embed(self, texts: Sequence[str | Sequence[int]]) -> tuple[list[list[float]], int]:
        """Embed texts; see `LlamaEngine.embed`."""
        prompts = [self._model.tokenize(text) if isinstance(text, str) else tuple(text) for text in texts]
        for at, prompt in enumerate(prompts):
            if not prompt:
                raise ContextLengthError(f"text {at} of the input is empty", hint="send at least one token")
            # llama.cpp aborts a whole batch for one token that is not in the vocabulary.
            if min(prompt) < 0 or max(prompt) >= self._model.n_vocab:
                raise InvalidRequestError(
                    f"text {at} of the input has a token outside the vocabulary of {self._model.n_vocab}",
                    hint="tokenize it with this model",
                )
            if len(prompt) > self._n_ctx:
                raise ContextLengthError(
                    f"text {at} of the input has {len(prompt)} tokens, "
                    f"and {self._name} embeds up to {self._n_ctx}",
                    hint="split the text into shorter ones",
                )
        vectors: list[list[float]] = []
        with self._lock:
            if self._context.handle is None:
                raise TierUnreachableError(f"the engine of {self._name} was closed", model=self._name)
            group: list[tuple[int, ...]] = []
            for prompt in prompts:
                full = sum(map(len, group)) + len(prompt) > self._n_ctx
                if full or len(group) == self.N_SEQUENCES:
                    vectors += self._embed_group(group)
                    group = []
                group.append(prompt)
            if group:
                vectors += self._embed_group(group)
        return vectors, sum(map(len, prompts))

    def _embed_group(self, group: Sequence[tuple[int, ...]]) -> list[list[float]]:
        import numpy as np

        context = self._context
        context.clear()
        rows = 0
        for sequence, prompt in enumerate(group):
            end = rows + len(prompt)
            context.tokens[rows:end] = prompt
            context.positions[rows:end] = range(len(prompt))
            context.sequences[rows:end] = sequence
            rows = end
        context.wants_logits[:rows] = 1
        status = context.decode(rows)
        if status != 0:
            raise TierError(
                f"llama.cpp failed to embed a batch for {self._name} (status {status})",
                hint="send the request again",
                retryable=True,
                model=self._name,
            )
        vectors: list[list[float]] = []
        for sequence in range(len(group)):
            vector: Any = context.pooled(sequence, self._model.n_embd)
            norm = float(np.linalg.norm(vector))
            vectors.append((vector / norm if norm > 0 else vector).tolist())
        return vectors

    def close(self) -> None:
        """Free the context."""
        with self._lock:
            self._context.close()
