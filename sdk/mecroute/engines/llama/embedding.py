"""Vectors of texts, and the relevance of documents, from a GGUF model: its last hidden states, pooled."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator, Sequence
from typing import Any

from mecroute.engines.llama.context import DecodeContext
from mecroute.engines.llama.model import LlamaModel
from mecroute.errors import ContextLengthError, InvalidRequestError, TierError, TierUnreachableError

#: A text's number, the place of its first token here, and the tokens.
_Piece = tuple[int, int, tuple[int, ...]]


class Embedder:
    """Embeds texts or judges documents, on a context of its own, apart from running generations' memory.

    Args:
        model: the weights, which must outlive this.
        name: names the engine in errors.
        n_ctx: tokens a text may have.
        n_threads: CPU threads.
        in_pieces: whether a text may be computed in several batches: no token looks at those after it.

    Thread-safe: one call at a time runs, others wait.
    """

    #: Texts decoded together at most.
    N_SEQUENCES = 32
    #: For each row of a batch llama.cpp keeps room for its logits, which nobody asks for: 0.6 MB with a
    #: vocabulary of 152,000 tokens. So batches have as many rows as that makes this.
    LOGITS_BYTES = 64 << 20
    MIN_ROWS = 32

    def __init__(self, model: LlamaModel, *, name: str, n_ctx: int, n_threads: int, in_pieces: bool) -> None:
        self._model = model
        self._name = name
        self._n_ctx = n_ctx
        self._lock = threading.Lock()
        self._rows = min(n_ctx, max(self.MIN_ROWS, self.LOGITS_BYTES // (4 * model.n_vocab)))
        # llama.cpp pools within a batch, so that a text's tokens must all be in the same one. Of a text in
        # pieces what they give is pooled here; not where a classifier follows.
        self._in_pieces = in_pieces and model.pooling != "rank"
        rows = self._rows if self._in_pieces else n_ctx
        self._context = DecodeContext(
            model,
            n_ctx=n_ctx,
            n_seq_max=self.N_SEQUENCES,
            n_batch=rows,
            n_outputs=rows,
            n_threads=n_threads,
            pooling="none" if self._in_pieces else model.pooling,
        )

    def embed(self, texts: Sequence[str | Sequence[int]]) -> tuple[list[list[float]], int]:
        """Embed texts; see `LlamaEngine.embed`."""
        if self._model.pooling == "rank":
            raise InvalidRequestError(
                f"'{self._name}' judges the relevance of documents and has no embeddings",
                hint="ask it with POST /v1/rerank",
                model=self._name,
            )
        prompts = [self._model.tokenize(text) if isinstance(text, str) else tuple(text) for text in texts]
        vectors = [_unit(vector) for vector in self._pooled(prompts, "text {} of the input")]
        return vectors, sum(map(len, prompts))

    def relevance(self, query: str, documents: Sequence[str]) -> tuple[list[float], int]:
        """Judge documents; see `LlamaEngine.relevance`."""
        model = self._model
        if model.pooling != "rank":
            raise InvalidRequestError(
                f"'{self._name}' embeds texts and does not judge documents", hint="ask it for embeddings"
            )
        pairs = [model.tokenize_pair(query, document) for document in documents]
        scores = [float(row[0]) for row in self._pooled(pairs, "the query with document {}")]
        if not model.scores_are_probabilities:
            scores = [
                0.5 * (1.0 + math.tanh(0.5 * score)) for score in scores
            ]  # a sigmoid that cannot overflow
        return scores, sum(map(len, pairs))

    def _pooled(self, prompts: Sequence[tuple[int, ...]], called: str) -> list[Any]:
        """What each prompt is pooled to, float32 [dim]; `called` names one in errors."""
        for at, prompt in enumerate(prompts):
            if not prompt:
                raise ContextLengthError(f"{called.format(at)} is empty", hint="send at least one token")
            # llama.cpp aborts a whole batch for one token that is not in the vocabulary.
            if min(prompt) < 0 or max(prompt) >= self._model.n_vocab:
                raise InvalidRequestError(
                    f"{called.format(at)} has a token outside the vocabulary of {self._model.n_vocab}",
                    hint="tokenize it with this model",
                )
            if len(prompt) > self._n_ctx:
                raise ContextLengthError(
                    f"{called.format(at)} has {len(prompt)} tokens, "
                    f"and {self._name} reads up to {self._n_ctx}",
                    hint="split the text into shorter ones",
                )
        vectors: list[Any] = []
        with self._lock:
            if self._context.handle is None:
                raise TierUnreachableError(f"the engine of {self._name} was closed", model=self._name)
            group: list[tuple[int, ...]] = []
            most = self._n_ctx if self._in_pieces else self._rows
            for prompt in prompts:
                full = bool(group) and sum(map(len, group)) + len(prompt) > most
                if full or len(group) == self.N_SEQUENCES:
                    vectors += self._pooled_group(group)
                    group = []
                group.append(prompt)
            if group:
                vectors += self._pooled_group(group)
        return vectors

    def _pooled_group(self, group: Sequence[tuple[int, ...]]) -> list[Any]:
        self._context.clear()
        if self._in_pieces:
            return self._pooled_in_pieces(group)
        self._decode([(sequence, 0, prompt) for sequence, prompt in enumerate(group)])
        size = self._model.n_scores if self._model.pooling == "rank" else self._model.n_embd
        return [self._context.pooled(sequence, size) for sequence in range(len(group))]

    def _pooled_in_pieces(self, group: Sequence[tuple[int, ...]]) -> list[Any]:
        import numpy as np

        pooling, size = self._model.pooling, self._model.n_embd
        pooled = [np.zeros(size, dtype=np.float32) for _ in group]
        for pieces in _batches(group, self._rows):
            vectors = self._context.vectors(self._decode(pieces), size)
            row = 0
            for sequence, start, tokens in pieces:
                of_piece = vectors[row : row + len(tokens)]
                row += len(tokens)
                if pooling == "mean":
                    pooled[sequence] += of_piece.sum(axis=0) / len(group[sequence])
                elif pooling == "last":
                    pooled[sequence][:] = of_piece[-1]
                elif start == 0:
                    pooled[sequence][:] = of_piece[0]
        return pooled

    def _decode(self, pieces: Sequence[_Piece]) -> int:
        """Compute pieces of texts in one batch; returns its rows."""
        context = self._context
        rows = 0
        for sequence, start, tokens in pieces:
            end = rows + len(tokens)
            context.tokens[rows:end] = tokens
            context.positions[rows:end] = range(start, start + len(tokens))
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
        return rows

    def close(self) -> None:
        """Free the context."""
        with self._lock:
            self._context.close()


def _batches(group: Sequence[tuple[int, ...]], rows: int) -> Iterator[list[_Piece]]:
    """The texts of a group, cut into batches of at most so many rows."""
    batch: list[_Piece] = []
    left = rows
    for sequence, prompt in enumerate(group):
        start = 0
        while start < len(prompt):
            tokens = prompt[start : start + left]
            batch.append((sequence, start, tokens))
            start, left = start + len(tokens), left - len(tokens)
            if not left:
                yield batch
                batch, left = [], rows
    if batch:
        yield batch


def _unit(vector: Any) -> list[float]:
    import numpy as np

    norm = float(np.linalg.norm(vector))
    unit: list[float] = (vector / norm if norm > 0 else vector).tolist()
    return unit
