"""After a step: the next token of every request that can have one, and what its reader gets of it."""

from __future__ import annotations

import math
import time

from mecroute.engines.llama.batch import Batch
from mecroute.engines.llama.context import DecodeContext
from mecroute.engines.llama.gaps import GapHistogram
from mecroute.engines.llama.generation import wake
from mecroute.engines.llama.logprobs import TokenLogprob, token_logprob
from mecroute.engines.llama.model import LlamaModel
from mecroute.engines.llama.sequence import Sequence
from mecroute.engines.llama.speculation import Speculator
from mecroute.errors import InvalidRequestError


class TokenChooser:
    """Chooses tokens from the logits of a step.

    Args:
        model: the weights, which must outlive this.
        context: what the step was decoded on.
        gaps: told how long each token came after the one before.
        speculator: told which drafts were right; None: there are none.

    Not thread-safe: only the engine's thread uses it.
    """

    def __init__(
        self,
        model: LlamaModel,
        context: DecodeContext,
        gaps: GapHistogram,
        *,
        speculator: Speculator | None = None,
    ) -> None:
        self._model = model
        self._context = context
        self._gaps = gaps
        self._speculator = speculator
        self._pieces: dict[int, bytes | None] = {}
        self._most_likely: dict[int, int] = {}

    def choose(self, batch: Batch) -> tuple[list[Sequence], int]:
        """Give every sequence of a decoded batch its token, and more where its draft was right; wake readers.

        Returns:
            The sequences whose answers are complete, or failed; and how many tokens were chosen.
        """
        finished: list[Sequence] = []
        chosen = 0
        for part in batch.scored:
            self._score(*part)
        greedy = any(sequence.sampler.is_greedy for sequence, _ in batch.choices)
        self._most_likely = self._context.most_likely(batch.logit_rows) if greedy else {}
        for at, (sequence, row) in enumerate(batch.choices):
            speculates = self._speculator is not None and at < batch.generating
            tokens, complete = self._choose_run(sequence, row) if speculates else self._choose(sequence, row)
            chosen += tokens
            if complete:
                finished.append(sequence)
        wake([sequence.generation for sequence, _ in batch.choices])
        return finished, chosen

    def _choose_run(self, sequence: Sequence, row: int) -> tuple[int, bool]:
        """Choose tokens as long as they are the drafted ones, and one more; forget the rest."""
        assert self._speculator is not None
        draft = sequence.draft
        tokens: list[int] = []
        complete = False
        while True:
            chosen, complete = self._choose(sequence, row + len(tokens))
            if chosen:
                tokens.append(sequence.next_token)
            at = len(tokens) - 1
            if complete or at >= len(draft) or draft[at] != tokens[at]:
                break
        if tokens:
            self._speculator.verified(sequence, tokens)
        # Where the last token ended the answer nobody needs to know whether the memory holds it.
        wrong = len(draft) - max(0, len(tokens) - 1)
        if wrong:
            slot = sequence.slot
            del slot.tokens[-wrong:]
            self._context.keep_prefix(slot.id, len(slot.tokens))
        sequence.draft = []
        return len(tokens), complete

    def _choose(self, sequence: Sequence, row: int) -> tuple[int, bool]:
        """Choose one token; returns how many (0: it failed), and whether the answer is complete."""
        context, sampler = self._context, sequence.sampler
        if sampler.is_greedy:
            token = self._most_likely[row]
        elif sampler.constrained is None:
            token = context.sample(sampler.handle, row)
        else:
            try:
                token = sampler.constrained.choose(context.logits(row, self._model.n_vocab))
            except InvalidRequestError as error:
                sequence.generation.fail(error)
                return 0, True
        pieces = self._pieces
        piece = pieces[token] if token in pieces else self._learn_piece(token)
        # Whoever has a prompt scored counts on a token for each that was asked for, also where it is the end.
        if sequence.top_logprobs is not None and (piece is not None or sequence.scores_prompt):
            logits = context.logits(row, self._model.n_vocab)
            logprob = token_logprob(logits, token, sequence.top_logprobs, self._model.spell)
            sequence.note(logprob, piece or b"")
        complete = sequence.accept(token, piece, time.perf_counter())
        if sequence.gap_s is not None:
            self._gaps.add(sequence.gap_s)
        return 1, complete

    def _score(self, sequence: Sequence, row: int, place: int, count: int) -> None:
        """Note how likely the tokens of a prompt were, each by the row of the one before it.

        Args:
            sequence: whose prompt it is.
            row: the first one of the step.
            place: of its token in the prompt.
            count: how many rows.
        """
        prompt, spell, n_vocab = sequence.prompt, self._model.spell, self._model.n_vocab
        if place == 0:
            sequence.note_prompt(TokenLogprob(prompt[0], spell(prompt[0]), math.nan))
        for at in range(min(count, len(prompt) - place - 1)):
            logits = self._context.logits(row + at, n_vocab)
            sequence.note_prompt(
                token_logprob(logits, prompt[place + at + 1], sequence.top_logprobs or 0, spell)
            )

    def _learn_piece(self, token: int) -> bytes | None:
        piece = None if self._model.is_end(token) else self._model.piece(token)
        self._pieces[token] = piece
        return piece
