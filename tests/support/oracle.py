"""What a model greedily says, found without the engine: the reference its answers are compared with."""

from __future__ import annotations

import math
from collections.abc import Iterable
from itertools import islice
from pathlib import Path

import numpy as np

from mecroute.engines.llama import LlamaModel, native
from mecroute.engines.llama.context import DecodeContext


class Oracle:
    """Greedy decoding of one sequence, one token at a time, with none of the engine's scheduling."""

    #: How far apart the two best logits must be. Which kernels run depends on the rows of a batch, and they
    #: round differently: by up to 0.005 on this model, where the margin is 1 on average.
    MARGIN = 0.05

    def __init__(self, path: Path) -> None:
        self._model = LlamaModel(path)
        self._context = DecodeContext(
            self._model, n_ctx=512, n_seq_max=1, n_batch=512, n_outputs=1, n_threads=1
        )

    def answer(self, prompt: tuple[int, ...], max_tokens: int) -> str | None:
        """The answer to a prompt, or None where rounding could change it."""
        context, lib = self._context, native.llama()
        context.clear()
        pending, done, answer = list(prompt), 0, []
        for _ in range(max_tokens):
            rows = len(pending)
            context.tokens[:rows] = pending
            context.positions[:rows] = range(done, done + rows)
            context.sequences[:rows] = 0
            context.wants_logits[:rows] = 0
            context.wants_logits[rows - 1] = 1
            assert context.decode(rows) == 0
            done += rows
            logits = np.ctypeslib.as_array(
                lib.llama_get_logits_ith(context.handle, rows - 1), shape=(self._model.n_vocab,)
            )
            second, best = np.argsort(logits)[-2:]
            if logits[best] - logits[second] < self.MARGIN:
                return None
            pending = [int(best)]
            answer += pending
        return self._model.detokenize(answer).decode()

    def logprobs(self, prompt: tuple[int, ...]) -> list[float]:
        """The natural logarithm of every token's probability to come after a prompt."""
        context, lib, rows = self._context, native.llama(), len(prompt)
        context.clear()
        context.tokens[:rows] = prompt
        context.positions[:rows] = range(rows)
        context.sequences[:rows] = 0
        context.wants_logits[:rows] = 0
        context.wants_logits[rows - 1] = 1
        assert context.decode(rows) == 0
        pointer = lib.llama_get_logits_ith(context.handle, rows - 1)
        logits = [float(pointer[token]) for token in range(self._model.n_vocab)]
        return [logit - math.log(math.fsum(map(math.exp, logits))) for logit in logits]

    def decided(
        self, prompts: Iterable[tuple[int, ...]], count: int, max_tokens: int
    ) -> list[tuple[tuple[int, ...], str]]:
        """The first `count` prompts with an answer that rounding cannot change, and those answers."""
        answers = ((prompt, self.answer(prompt, max_tokens)) for prompt in prompts)
        return list(islice(((prompt, answer) for prompt, answer in answers if answer is not None), count))

    def close(self) -> None:
        self._context.close()
        self._model.close()
