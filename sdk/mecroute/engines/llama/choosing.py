"""After a step: the next token of every request that can have one, and what its reader gets of it."""

from __future__ import annotations

import time

from mecroute.engines.llama.batch import Batch
from mecroute.engines.llama.context import DecodeContext
from mecroute.engines.llama.generation import wake
from mecroute.engines.llama.logprobs import token_logprob
from mecroute.engines.llama.model import LlamaModel
from mecroute.engines.llama.sequence import Sequence
from mecroute.errors import InvalidRequestError


class TokenChooser:
    """Chooses tokens from the logits of a step.

    Args:
        model: the weights, which must outlive this.
        context: what the step was decoded on.

    Not thread-safe: only the engine's thread uses it.
    """

    def __init__(self, model: LlamaModel, context: DecodeContext) -> None:
        self._model = model
        self._context = context
        self._pieces: dict[int, bytes | None] = {}

    def choose(self, batch: Batch) -> list[Sequence]:
        """Give every sequence of a decoded batch its token, and wake the readers.

        Returns:
            The sequences whose answers are complete, or failed.
        """
        finished = [sequence for sequence, row in batch.choices if self._choose(sequence, row)]
        wake([sequence.generation for sequence, _ in batch.choices])
        return finished

    def _choose(self, sequence: Sequence, row: int) -> bool:
        context, sampler = self._context, sequence.sampler
        if sampler.constrained is None:
            token = context.sample(sampler.handle, row)
        else:
            try:
                token = sampler.constrained.choose(context.logits(row, self._model.n_vocab))
            except InvalidRequestError as error:
                sequence.generation.fail(error)
                return True
        pieces = self._pieces
        piece = pieces[token] if token in pieces else self._learn_piece(token)
        if sequence.top_logprobs is not None and piece is not None:
            logits = context.logits(row, self._model.n_vocab)
            sequence.note(token_logprob(logits, token, sequence.top_logprobs, self._model.spell), piece)
        return sequence.accept(token, piece, time.perf_counter())

    def _learn_piece(self, token: int) -> bytes | None:
        piece = None if self._model.is_end(token) else self._model.piece(token)
        self._pieces[token] = piece
        return piece
