"""A small model that guesses what a larger one of the same vocabulary is going to say."""

from __future__ import annotations

from collections.abc import Sequence as Line
from pathlib import Path

from mecroute.engines.llama.context import DecodeContext
from mecroute.engines.llama.model import LlamaModel
from mecroute.engines.llama.radix import common_prefix
from mecroute.errors import InvalidModelFileError

#: Tokens that the draft model reads of a prompt at one step of the large one, so that the others do not wait.
CATCH_UP_ROWS = 128


class DraftModel:
    """Drafts for sequences with the ids of the large model's; it keeps their tokens in a context of its own.

    Args:
        path: a GGUF file.
        target: the large model.
        n_ctx: tokens a sequence may have.
        kv_tokens: tokens that all sequences may have together.
        n_sequences: sequences that may exist.
        n_threads: CPU threads at most.
        n_gpu_layers: layers to put on a GPU.

    Raises:
        InvalidModelFileError: the file cannot be loaded, its vocabulary is not the target's, or its memory
            cannot take a token back.

    Not thread-safe.
    """

    def __init__(
        self,
        path: Path,
        *,
        target: LlamaModel,
        n_ctx: int,
        kv_tokens: int,
        n_sequences: int,
        n_threads: int,
        n_gpu_layers: int = 0,
    ) -> None:
        self._model = LlamaModel(path, n_gpu_layers=n_gpu_layers)
        try:
            self._check(target)
            # A draft model may have been trained for fewer tokens; beyond them it is not asked.
            self._n_ctx = min(n_ctx, self._model.n_ctx_train or n_ctx)
            self._context = DecodeContext(
                self._model,
                n_ctx=kv_tokens,
                n_seq_max=n_sequences,
                n_batch=max(CATCH_UP_ROWS, n_sequences),
                n_outputs=n_sequences,
                n_threads=n_threads,
            )
        except BaseException:
            self._model.close()
            raise
        self._held: list[list[int]] = [[] for _ in range(n_sequences)]

    def _check(self, target: LlamaModel) -> None:
        own = self._model
        if own.n_vocab != target.n_vocab or any(
            own.spell(token) != target.spell(token) for token in range(own.n_vocab)
        ):
            raise InvalidModelFileError(
                f"the draft model '{own.path}' has another vocabulary than '{target.path}'",
                hint='choose a small model of the same family, or speculation = "prompt-lookup"',
            )
        if not own.can_drop_suffix:
            raise InvalidModelFileError(
                f"the draft model '{own.path}' cannot take tokens back",
                hint="choose one without recurrent layers or sliding windows",
            )

    def draft(self, wanted: Line[tuple[int, list[int], int]]) -> list[list[int]]:
        """Guess how sequences go on.

        Args:
            wanted: a sequence's id, its tokens, and how many to guess (≥ 1), for each.

        Returns:
            The guesses; none for a sequence whose tokens have not all been read yet, or are too many.
        """
        context = self._context
        drafts: list[list[int]] = [[] for _ in wanted]
        room, rows = context.n_batch - len(wanted), 0
        active: list[tuple[int, int]] = []  # index into `wanted`, row of its logits
        for at, (sequence, tokens, count) in enumerate(wanted):
            if len(tokens) + count > self._n_ctx:
                continue
            held = self._held[sequence]
            same = min(common_prefix(held, tokens), len(tokens) - 1)
            if same < len(held):
                context.keep_prefix(sequence, same)
                del held[same:]
            new = tokens[same : same + 1 + min(room, len(tokens) - same - 1)]
            room -= len(new) - 1
            for token in new:
                self._put(rows, sequence, token)
                rows += 1
            if len(held) == len(tokens):
                context.wants_logits[rows - 1] = 1
                active.append((at, rows - 1))
        while rows:
            if context.decode(rows) != 0:
                self._forget_all()
                return [[] for _ in wanted]
            rows, going_on = 0, []
            likely = context.most_likely([row for _, row in active])
            chosen = [(at, likely[row]) for at, row in active]
            for at, token in chosen:
                sequence, _, count = wanted[at]
                drafts[at].append(token)
                if len(drafts[at]) < count:
                    self._put(rows, sequence, token)
                    context.wants_logits[rows] = 1
                    going_on.append((at, rows))
                    rows += 1
            active = going_on
        return drafts

    def _put(self, row: int, sequence: int, token: int) -> None:
        context, held = self._context, self._held[sequence]
        context.tokens[row] = token
        context.positions[row] = len(held)
        context.sequences[row] = sequence
        context.wants_logits[row] = 0
        held.append(token)

    def _forget_all(self) -> None:
        self._context.clear()
        for held in self._held:
            held.clear()

    def close(self) -> None:
        """Free context and weights; a second call does nothing."""
        self._context.close()
        self._model.close()
