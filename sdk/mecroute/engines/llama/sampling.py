"""How the next token is chosen from the logits."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mecroute.engines.llama import native
from mecroute.engines.llama.grammar import ConstrainedChoice, Grammar
from mecroute.engines.llama.healing import HealedChoice
from mecroute.engines.llama.model import LlamaModel

#: How many of the last tokens repetition penalties look at (llama.cpp's default).
PENALTY_WINDOW = 64


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How to choose tokens. The defaults are llama.cpp's own, which small models were tuned with.

    Attributes:
        temperature: 0..2; 0 is greedy, the most likely token always.
        top_p: 0..1; smallest set of tokens whose probabilities add up to this. 1 keeps all.
        top_k: the k most likely tokens; 0 keeps all.
        min_p: 0..1; tokens at least this likely relative to the most likely one. 0 keeps all.
        seed: 0..2**32-2; the same seed and prompt give the same text on one machine. None: random.
        frequency_penalty: -2..2, times the token's count among the last 64.
        presence_penalty: -2..2, once for a token among the last 64.
        repeat_penalty: > 0, divides the logit of a token among the last 64; 1 is none.
        logit_bias: (token id, what is added to its logit) each; -100 practically forbids a token.
    """

    temperature: float = 0.8
    top_p: float = 0.95
    top_k: int = 40
    min_p: float = 0.05
    seed: int | None = None
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    repeat_penalty: float = 1.0
    logit_bias: tuple[tuple[int, float], ...] = ()

    @property
    def has_penalties(self) -> bool:
        """Whether earlier tokens change the choice."""
        return bool(self.frequency_penalty or self.presence_penalty) or self.repeat_penalty != 1.0

    @property
    def is_plain_greedy(self) -> bool:
        """Whether the choice is the most likely token as the model has it."""
        return self.temperature <= 0 and not self.has_penalties and not self.logit_bias


GREEDY = SamplingParams(temperature=0.0)


class Sampler:
    """A llama.cpp sampler chain for one request, with its random state.

    Args:
        params: what the request asked for.
        model: whose vocabulary it is.
        prompt: the prompt's tokens, which penalties count like the answer's own, so that an answer
            continued elsewhere is penalised as if it had never been cut.
        grammar: what the answer must conform to; closed with this.
        again: what the tokens must spell first; see `mecroute.engines.llama.healing`.

    Attributes:
        constrained: chooses tokens where there is a grammar, or something to be said again; else None.
        is_greedy: whether it is the most likely token that is chosen, whatever came before.

    Not thread-safe. `close` must be called.
    """

    __slots__ = ("_grammar", "_lib", "constrained", "handle", "is_greedy")

    def __init__(
        self,
        params: SamplingParams,
        model: LlamaModel,
        prompt: Sequence[int],
        grammar: Grammar | None = None,
        *,
        again: bytes = b"",
    ) -> None:
        lib: Any = native.llama()
        self._lib = lib
        n_vocab = model.n_vocab
        self._grammar = grammar
        self.is_greedy = params.is_plain_greedy and grammar is None and not again
        chain_params = lib.llama_sampler_chain_default_params()
        chain_params.no_perf = True
        chain = lib.llama_sampler_chain_init(chain_params)
        self.handle = chain
        add = lib.llama_sampler_chain_add
        if params.logit_bias:
            biases = (lib.llama_logit_bias * len(params.logit_bias))(*params.logit_bias)
            add(chain, lib.llama_sampler_init_logit_bias(n_vocab, len(biases), biases))
        if params.has_penalties:
            add(
                chain,
                lib.llama_sampler_init_penalties(
                    n_vocab,
                    PENALTY_WINDOW,
                    params.repeat_penalty,
                    params.frequency_penalty,
                    params.presence_penalty,
                ),
            )
        if params.temperature <= 0:
            add(chain, lib.llama_sampler_init_greedy())
        else:
            # llama.cpp's own order: cut the tail first, then flatten or sharpen what is left.
            if params.top_k > 0:
                add(chain, lib.llama_sampler_init_top_k(params.top_k))
            if params.top_p < 1:
                add(chain, lib.llama_sampler_init_top_p(params.top_p, 1))
            if params.min_p > 0:
                add(chain, lib.llama_sampler_init_min_p(params.min_p, 1))
            add(chain, lib.llama_sampler_init_temp(params.temperature))
            seed = secrets.randbelow(2**32 - 1) if params.seed is None else params.seed
            add(chain, lib.llama_sampler_init_dist(seed))
        if params.has_penalties:
            for token in prompt[-PENALTY_WINDOW:]:
                lib.llama_sampler_accept(chain, token)
        self.constrained: ConstrainedChoice | HealedChoice | None = None
        if grammar is not None or again:
            choice = ConstrainedChoice(chain, grammar, n_vocab)
            healed = HealedChoice(choice, model.pieces, model.piece, again) if again else None
            self.constrained = healed or choice

    def close(self) -> None:
        """Free the chain; a second call does nothing."""
        if self._grammar is not None:
            self._grammar.close()
        if self.handle:
            self._lib.llama_sampler_free(self.handle)
            self.handle = None
