"""Keeps an answer to a grammar, token by token."""

from __future__ import annotations

import ctypes
import time
from dataclasses import dataclass, replace
from typing import Any

from mecroute.engines.llama import native
from mecroute.engines.llama.gbnf import check_gbnf
from mecroute.engines.llama.model import LlamaModel
from mecroute.errors import InvalidRequestError

#: A step that takes longer ends its answer. An ambiguous grammar may double llama.cpp's work with every
#: token, and the others in the batch wait for it; a full vocabulary against JSON takes 0.01 to 0.03 s.
MAX_STEP_S = 1.0


@dataclass(frozen=True, slots=True)
class Constraint:
    """What an answer must conform to.

    Attributes:
        grammar: GBNF with a rule named root.
        prefix: token ids of what has already been said of the answer, which conforms too.
        again: token ids of what was said behind that, and is going to be said again.
        field: of the request that asked for it, named in errors.
    """

    grammar: str
    prefix: tuple[int, ...] = ()
    field: str = "grammar"
    again: tuple[int, ...] = ()

    @property
    def whole(self) -> Constraint:
        """The same behind all that was said."""
        return replace(self, prefix=self.prefix + self.again, again=())


class Candidates:
    """Every token with its logit, in the form in which llama.cpp's samplers read and change it.

    Args:
        tokens: token ids [n].

    Not thread-safe.
    """

    __slots__ = ("_array", "_rows", "reference", "tokens")

    def __init__(self, tokens: Any) -> None:
        import numpy as np

        lib: Any = native.llama()
        self.tokens = tokens
        self._rows = np.zeros(len(tokens), dtype=[("id", np.int32), ("logit", np.float32), ("p", np.float32)])
        self._array = lib.llama_token_data_array()
        self._array.data = ctypes.cast(self._rows.ctypes.data, ctypes.POINTER(lib.llama_token_data))
        #: To be passed to a sampler.
        self.reference = ctypes.byref(self._array)

    def reset(self, logits: Any) -> None:
        """Begin anew with these logits, float32 [n]."""
        self._rows["id"] = self.tokens
        self._rows["logit"] = logits
        self._array.size = len(self._rows)
        self._array.selected = -1
        self._array.sorted = False

    def any_left(self) -> bool:
        """Whether any token may still be chosen."""
        import numpy as np

        return bool(np.isfinite(self._rows["logit"][: self._array.size]).any())

    def selected(self) -> int:
        """The token a sampler chose."""
        return int(self._rows["id"][self._array.selected])


class Grammar:
    """A grammar and how far an answer has come in it.

    Args:
        model: whose vocabulary spells the answer.
        constraint: what the answer conforms to.

    Raises:
        InvalidRequestError: the grammar is not valid, or what has been said does not conform.

    Not thread-safe. `close` must be called; the model must outlive it.
    """

    __slots__ = ("_apply", "_field", "_handle", "_lib", "_one", "_step_s")

    def __init__(self, model: LlamaModel, constraint: Constraint) -> None:
        import numpy as np

        check_gbnf(constraint.grammar, field=constraint.field)
        lib: Any = native.llama()
        self._lib = lib
        self._field = constraint.field
        self._step_s = 0.0
        self._apply = lib.llama_sampler_apply
        self._handle = lib.llama_sampler_init_grammar(model.vocab, constraint.grammar.encode(), b"root")
        if not self._handle:
            raise InvalidRequestError(
                f"{self._field}: llama.cpp cannot read this grammar",
                hint="see llama.cpp's grammars/README.md for its GBNF",
            )
        self._one = Candidates(np.zeros(1, dtype=np.int32))
        try:
            for token in constraint.prefix:
                if not self.admits(token):
                    raise InvalidRequestError(
                        f"{self._field}: what the assistant has said so far does not conform to it",
                        hint="end the messages with one from the user",
                    )
                self.accept(token)
        except BaseException:
            self.close()
            raise

    def admits(self, token: int) -> bool:
        """Whether a token may come next."""
        one = self._one
        one.tokens[0] = token
        one.reset(0.0)
        self._timed(one)
        return one.any_left()

    def restrict(self, candidates: Candidates) -> None:
        """Rule out the candidates that may not come next.

        Raises:
            InvalidRequestError: none is left, or it took so long that others suffer.
        """
        self._timed(candidates)
        if not candidates.any_left():
            raise InvalidRequestError(
                f"{self._field}: no token of this model can come next",
                hint="the grammar wants characters that the model cannot write",
            )

    def _timed(self, candidates: Candidates) -> None:
        began = time.perf_counter()
        self._apply(self._handle, candidates.reference)
        self._step_s += time.perf_counter() - began

    def accept(self, token: int) -> None:
        """Go on behind a token, which must be one that may come next: llama.cpp ends the process otherwise.

        Raises:
            InvalidRequestError: the step took so long that others suffer.
        """
        began = time.perf_counter()
        self._lib.llama_sampler_accept(self._handle, token)
        took, self._step_s = self._step_s + time.perf_counter() - began, 0.0
        if took > MAX_STEP_S:
            raise InvalidRequestError(
                f"{self._field}: following this grammar takes {took:.1f} s a token",
                hint="make it less ambiguous",
            )

    def close(self) -> None:
        """Free it; a second call does nothing."""
        if self._handle:
            self._lib.llama_sampler_free(self._handle)
            self._handle = None


class ConstrainedChoice:
    """Chooses tokens with a sampler chain among those that a grammar admits.

    The chain's own choice mostly conforms, and to look at one token is a thousand times cheaper than to look
    at all of them; so the whole vocabulary is restricted only where it does not.

    Args:
        chain: handle of a sampler chain, which must outlive this.
        grammar: None: it admits all.
        n_vocab: size of the vocabulary.

    Not thread-safe.
    """

    __slots__ = ("_accept", "_apply", "_candidates", "_chain", "_grammar")

    def __init__(self, chain: Any, grammar: Grammar | None, n_vocab: int) -> None:
        import numpy as np

        lib: Any = native.llama()
        self._chain = chain
        self._grammar = grammar
        self._apply = lib.llama_sampler_apply
        self._accept = lib.llama_sampler_accept
        self._candidates = Candidates(np.arange(n_vocab, dtype=np.int32))

    def choose(self, logits: Any) -> int:
        """Choose the next token, and go on behind it.

        Args:
            logits: float32 [n_vocab].

        Raises:
            InvalidRequestError: the grammar admits no token, or takes too long.
        """
        candidates = self._candidates
        candidates.reset(logits)
        self._apply(self._chain, candidates.reference)
        token = candidates.selected()
        grammar = self._grammar
        if grammar is not None and not grammar.admits(token):
            candidates.reset(logits)
            grammar.restrict(candidates)
            self._apply(self._chain, candidates.reference)
            token = candidates.selected()
        self._accept(self._chain, token)
        if grammar is not None:
            grammar.accept(token)
        return token
