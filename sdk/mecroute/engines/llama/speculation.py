"""Speculative decoding: tokens are guessed ahead, verified in one step, and kept as far as they are right.

Leviathan et al. 2023, "Fast Inference from Transformers via Speculative Decoding" (arXiv:2211.17192), with
the request's own sampler as the verifier: a guess is right if it is the very token that the sampler chooses.
Prompt lookup as a source of guesses is Saxena 2023 (github.com/apoorvumang/prompt-lookup-decoding).
"""

from __future__ import annotations

import time
from collections.abc import Sequence as Line
from pathlib import Path
from typing import Literal, get_args

from mecroute.engines.llama.draft_model import DraftModel
from mecroute.engines.llama.prompt_lookup import PromptLookup
from mecroute.engines.llama.rates import Rate
from mecroute.engines.llama.sequence import PREFILLING, Sequence
from mecroute.engines.llama.step_cost import StepCost, draft_length
from mecroute.errors import ConfigError

Speculation = Literal["off", "prompt-lookup", "draft"]

#: Tokens drafted ahead for one request, at most.
MAX_DRAFT_TOKENS = 8
#: Rows that drafts may add to a step; logits of so many more rows have room in the context.
MAX_DRAFT_ROWS = 16
#: While nobody knows what a further row costs: enough to find out, and little to lose where guesses have been
#: as good as this. Only at every second step: a cost is read off steps that differ in their rows.
PROBE_TOKENS = 3
PROBE_PROBABILITY = 0.7
#: Where drafts did not pay, one is tried again after so many tokens of whomever, then after twice as many…
FIRST_PROBE_TOKENS, LAST_PROBE_TOKENS = 32, 4096
#: How much better than plain decoding it must promise to be.
MARGIN = 1.15
#: The weight of what is expected before anything was drafted, in tokens, and of the past at each token.
_PRIOR_WEIGHT = 2.0
_KEEP = 0.9


def check_speculation(speculation: str, draft_model: Path | None) -> None:
    """Raise where the two settings do not fit together.

    Raises:
        ConfigError: an unknown kind, `draft` without a draft model, or a draft model without `draft`.
    """
    if speculation not in get_args(Speculation):
        raise ConfigError(
            f"speculation is '{speculation}'", hint=f"it is one of {', '.join(get_args(Speculation))}"
        )
    if speculation == "draft" and draft_model is None:
        raise ConfigError(
            'speculation = "draft" needs a draft model',
            hint='name its file with draft_model, or choose "prompt-lookup"',
        )
    if speculation != "draft" and draft_model is not None:
        raise ConfigError(
            f'a draft model is named, but speculation is "{speculation}"', hint='set speculation = "draft"'
        )


class Acceptance:
    """The share of drafted tokens that were right, over about the last ten.

    Args:
        prior: 0..1; what to expect at first.
    """

    __slots__ = ("_right", "_tried")

    def __init__(self, prior: float) -> None:
        self._right, self._tried = prior * _PRIOR_WEIGHT, _PRIOR_WEIGHT

    def add(self, right: int, *, wrong: bool) -> None:
        """Count tokens that were right, and the one after them if that was wrong."""
        for value in [1.0] * right + [0.0] * wrong:
            self._right = self._right * _KEEP + value
            self._tried = self._tried * _KEEP + 1

    @property
    def probability(self) -> float:
        """That the next one is right."""
        return self._right / self._tried


class DraftState:
    """What speculation keeps of one request.

    Attributes:
        lookup: its tokens; unused with a draft model.
        acceptance: of its drafts.
        guess: what prompt lookup would say next, drafted or not: that it was right costs nothing to see.
    """

    __slots__ = ("acceptance", "guess", "lookup")

    def __init__(self, prior: float) -> None:
        self.lookup = PromptLookup()
        self.acceptance = Acceptance(prior)
        self.guess: int | None = None


class Speculator:
    """Decides at each step for which requests how much is drafted, from what drafts brought and cost so far.

    Args:
        draft_model: guesses tokens, and is closed with this; None: they are looked up in the prompt and the
            answer.

    Attributes:
        drafted: tokens guessed and verified so far.
        accepted: those of them that were right.

    Not thread-safe: only the engine's thread uses it; others may read the two counts.
    """

    def __init__(self, draft_model: DraftModel | None = None) -> None:
        self._draft_model = draft_model
        self._cost = StepCost()
        self._drafting = Rate()
        self._states: dict[Sequence, DraftState] = {}
        self._overall = Acceptance(0.8 if draft_model is not None else 0.5)
        self._probes = False
        #: Tokens until a draft that would not pay is tried all the same, and how many that were.
        self._rest = self._pause = FIRST_PROBE_TOKENS
        self.drafted = 0
        self.accepted = 0

    def draft(self, running: Line[Sequence]) -> None:
        """Give running requests drafts for the next step (`Sequence.draft`), where that pays."""
        generating = [sequence for sequence in running if sequence.next_token != PREFILLING]
        if self._states.keys() - set(generating):  # requests that have ended
            self._states = {
                sequence: self._states[sequence] for sequence in generating if sequence in self._states
            }
        wanted: list[tuple[Sequence, int]] = []
        rows = MAX_DRAFT_ROWS
        self._probes = not self._probes
        for sequence in generating:
            sequence.draft = []
            state = self._states.get(sequence)
            if state is None:
                prior = self._overall.probability if self._draft_model is not None else 0.5
                state = self._states[sequence] = DraftState(prior)
            limit = min(rows, MAX_DRAFT_TOKENS, sequence.left - 1)
            length = self._length(state, len(generating), limit)
            if self._draft_model is None:
                sequence.draft = self._look_up(sequence, state, length)
                rows -= len(sequence.draft)
            elif length > 0:
                wanted.append((sequence, length))
                rows -= length
        if wanted and self._draft_model is not None:
            started_at = time.perf_counter()
            drafts = self._draft_model.draft(
                [
                    (sequence.slot.id, [*sequence.slot.tokens, sequence.next_token], n)
                    for sequence, n in wanted
                ]
            )
            for (sequence, _), draft in zip(wanted, drafts, strict=True):
                sequence.draft = draft
            # Reading a prompt is done once; it would make the first drafts look dear.
            if all(drafts):
                self._drafting.add(sum(map(len, drafts)), time.perf_counter() - started_at)

    def _length(self, state: DraftState, generating: int, limit: int) -> int:
        if limit < 1:
            return 0
        known = self._cost.per_row_s is not None
        if known:
            length = self._paying(state.acceptance.probability, generating, limit)
        else:
            promising = self._probes and state.acceptance.probability >= PROBE_PROBABILITY
            length = min(PROBE_TOKENS, limit) if promising else 0
        if length or self._draft_model is None:
            if length and known:
                self._rest = self._pause = FIRST_PROBE_TOKENS
            return length
        # Nobody knows what a draft model would have said. Now and then it is asked though that does not pay;
        # not once for each request, whose prompt it would have to read, nor where it could not pay at all.
        self._rest = max(0, self._rest - 1)
        if self._rest or (known and not self._paying(1.0, generating, limit)):
            return 0
        self._pause = min(2 * self._pause, LAST_PROBE_TOKENS)
        self._rest = self._pause
        return 1 if known else min(PROBE_TOKENS, limit)

    def _paying(self, probability: float, generating: int, limit: int) -> int:
        speed = self._drafting.per_s
        return draft_length(
            probability,
            generating=generating,
            cost=self._cost,
            draft_token_s=1 / speed if speed else 0.0,
            margin=MARGIN,
            limit=limit,
        )

    @staticmethod
    def _look_up(sequence: Sequence, state: DraftState, length: int) -> list[int]:
        lookup = state.lookup
        lookup.extend([*sequence.slot.tokens[len(lookup) :], sequence.next_token])
        found = lookup.draft(max(1, length))
        state.guess = found[0] if found else None
        return found[:length]

    def verified(self, sequence: Sequence, chosen: Line[int]) -> None:
        """Note what a step chose.

        Args:
            sequence: one that generated; its `draft` is still there.
            chosen: its tokens, at least one; all but the last were drafted.
        """
        state = self._states[sequence]
        draft = sequence.draft
        if not draft:
            if state.guess is not None:
                hit = state.guess == chosen[0]
                state.acceptance.add(int(hit), wrong=not hit)
            return
        right = sum(1 for guess, token in zip(draft, chosen, strict=False) if guess == token)
        wrong = right < len(chosen) and right < len(draft)
        state.acceptance.add(right, wrong=wrong)
        self._overall.add(right, wrong=wrong)
        self.drafted += len(draft)
        self.accepted += right

    def measured(self, rows: int, seconds: float) -> None:
        """Note how long a step took that computed no prompt."""
        self._cost.add(rows, seconds)

    def close(self) -> None:
        """Free the draft model; a second call does nothing."""
        if self._draft_model is not None:
            self._draft_model.close()
