"""A GGUF model's weights, vocabulary and chat template."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

from mecroute.engines.llama import native, own_memory
from mecroute.engines.llama.chat_template import ChatTemplate
from mecroute.engines.llama.gpu import GpuOptions
from mecroute.engines.llama.healing import MAX_BYTES, MAX_TOKENS, Pieces, taken_off
from mecroute.engines.llama.pooling import Pooling, gives_probabilities, pooling_of
from mecroute.errors import InvalidModelFileError, InvalidRequestError
from mecroute_registry.gguf import read_gguf

#: What of a sequence's memory another sequence may take over: any beginning, only all of it, or nothing.
PrefixSharing = Literal["any", "whole", "none"]


class ChatPrompt(NamedTuple):
    """A conversation as the model is to read it.

    Attributes:
        tokens: the prompt.
        again: tokens at the end of what the assistant has said, taken off the prompt: the model is to say
            their text again before it goes on; see `mecroute.engines.llama.healing`.
        again_text: that text.
        said: the tokens at the end of the prompt that the assistant has said; None where its text was not
            split apart from what stands before it.
    """

    tokens: tuple[int, ...]
    again: tuple[int, ...] = ()
    again_text: bytes = b""
    said: tuple[int, ...] | None = ()


class LlamaModel:
    """Weights and vocabulary, loaded once and shared by any number of contexts.

    Args:
        path: a GGUF file. Its header is checked in Python before llama.cpp sees it.
        n_gpu_layers: layers to put on a GPU; 0 none, negative all.
        gpu: on which of them.

    Raises:
        ConfigError: there is no such GPU.
        InvalidModelFileError: the file is missing, damaged, or of an architecture llama.cpp does not know.
        MissingExtraError: llama-cpp-python is not installed.

    Everything but `close` is thread-safe.
    """

    def __init__(self, path: Path, *, n_gpu_layers: int = 0, gpu: GpuOptions | None = None) -> None:
        lib = native.llama()
        self.path = path
        self.facts = read_gguf(path)
        params = lib.llama_model_default_params()
        params.n_gpu_layers = n_gpu_layers
        kept_alive: list[object] = gpu.apply(params) if gpu is not None else []
        if n_gpu_layers == 0:
            kept_alive.append(own_memory.prepare(lib, params, path.stat().st_size))
        with native.captured_log() as tail:
            self.handle = lib.llama_model_load_from_file(str(path).encode(), params)
        del kept_alive
        if not self.handle:
            raise InvalidModelFileError(
                f"llama.cpp cannot load '{path}'{native.last_words(tail)}",
                hint="pull or register the model again, or convert it with a current llama.cpp",
            )
        self._lib = lib
        self.vocab = lib.llama_model_get_vocab(self.handle)
        self.n_vocab = int(lib.llama_vocab_n_tokens(self.vocab))
        #: How it makes one vector of a text, how long that is, and of how many scores a judgement consists.
        self.pooling: Pooling = pooling_of(lib, self.handle, self.facts.architecture)
        self.n_embd = int(lib.llama_model_n_embd_out(self.handle))
        self.n_scores = int(lib.llama_model_n_cls_out(self.handle))
        self.scores_are_probabilities = gives_probabilities(self.facts.architecture)
        self.n_ctx_train = int(lib.llama_model_n_ctx_train(self.handle))
        self.prefix_sharing: PrefixSharing = "any"
        if lib.llama_model_is_recurrent(self.handle) or lib.llama_model_is_hybrid(self.handle):
            self.prefix_sharing = "none"  # a recurrent state cannot be rolled back to an earlier token
        elif lib.llama_model_n_swa(self.handle) > 0:
            # Cells that have left a sequence's window are given to others: only from its end on is the window
            # known to be whole.
            self.prefix_sharing = "whole"
        #: Whether the file does not say that tokens look at those after them.
        self.is_causal = self._meta(f"{self.facts.architecture}.attention.causal") != "false"
        #: Whether a sequence's last tokens can be taken back.
        self.can_drop_suffix = self.prefix_sharing == "any"
        bos, eos = int(lib.llama_vocab_bos(self.vocab)), int(lib.llama_vocab_eos(self.vocab))
        self.bos_token = bos if bos >= 0 else None
        self._adds_bos = bool(lib.llama_vocab_get_add_bos(self.vocab))
        #: What stands before the text before a gap, before the text after it, and before what fills it; None
        #: where the model knows no gaps.
        self.infill_tokens = _infill_tokens(lib, self.vocab)
        try:
            template = lib.llama_model_chat_template(self.handle, None)
            self.chat_template = ChatTemplate(
                template.decode("utf-8", "replace") if template else None,
                bos=self._text(bos),
                eos=self._text(eos),
            )
        except BaseException:
            self.close()
            raise

    def _meta(self, key: str) -> str:
        """What the file says under a key, as llama.cpp spells it; empty where it says nothing."""
        buffer = ctypes.create_string_buffer(64)
        length = self._lib.llama_model_meta_val_str(self.handle, key.encode(), buffer, len(buffer))
        return buffer.value.decode("utf-8", "replace") if length > 0 else ""

    def _text(self, token: int) -> str:
        """A special token as it is written in templates; empty if the model has none."""
        if token < 0:
            return ""
        return self.spell(token).decode("utf-8", "replace")

    def tokenize(self, text: str, *, add_special: bool = True, parse_special: bool = True) -> tuple[int, ...]:
        """Split a text into token ids.

        Args:
            text: any text; a lone surrogate becomes '?'.
            add_special: begin with the BOS token if the model wants one.
            parse_special: read `<|im_start|>` and the like as control tokens rather than as plain text.
        """
        data = text.encode("utf-8", "replace")
        room = len(data) + 8  # a token is at least a byte; the rest is for BOS, EOS and a space prefix
        while True:
            tokens = (ctypes.c_int32 * room)()
            count = self._lib.llama_tokenize(
                self.vocab, data, len(data), tokens, room, add_special, parse_special
            )
            if count >= 0:
                return tuple(tokens[:count])
            room = -count

    def tokenize_infill(self, before: str | Sequence[int], after: str) -> tuple[int, ...]:
        """The prompt by which the model fills in what stands between two texts, as llama.cpp writes it.

        Raises:
            InvalidRequestError: the model knows no such prompt.
        """
        if self.infill_tokens is None:
            raise InvalidRequestError(
                "suffix: this model cannot fill in text, its vocabulary has no tokens for that",
                hint="leave it out, or ask a model that was trained for it (a coder, mostly)",
            )
        prefix, suffix, middle = self.infill_tokens
        if isinstance(before, str):
            before = self.tokenize(before, add_special=False, parse_special=False)
        rest = self.tokenize(after, add_special=False, parse_special=False)
        begin = (self.bos_token,) if self.bos_token is not None and self._adds_bos else ()
        return (*begin, prefix, *before, suffix, *rest, middle)

    def tokenize_pair(self, query: str, document: str) -> tuple[int, ...]:
        """A query and a document as a reranker reads them: by its own prompt, or parted by its separators."""
        lib = self._lib
        prompt = lib.llama_model_chat_template(self.handle, b"rerank")
        if prompt:
            # In one pass: a query that says "{document}" means just that.
            parts = re.split(r"(\{query\}|\{document\})", prompt.decode("utf-8", "replace"))
            given = {"{query}": query, "{document}": document}
            return self.tokenize("".join([given.get(part, part) for part in parts]), add_special=False)
        eos, sep = int(lib.llama_vocab_eos(self.vocab)), int(lib.llama_vocab_sep(self.vocab))
        end = [eos if eos >= 0 else sep] if lib.llama_vocab_get_add_eos(self.vocab) else []
        border = [*end, sep] if lib.llama_vocab_get_add_sep(self.vocab) else end
        bos = int(lib.llama_vocab_bos(self.vocab))
        start = [bos] if lib.llama_vocab_get_add_bos(self.vocab) else []
        halves = [self.tokenize(half, add_special=False, parse_special=False) for half in (query, document)]
        ids = (*start, *halves[0], *border, *halves[1], *(end or border))
        return tuple(token for token in ids if token >= 0)

    @cached_property
    def pieces(self) -> Pieces:
        """The vocabulary by what its tokens spell; made when first asked for, which takes 0.1 to 0.3 s."""
        return Pieces([self.piece(token) for token in range(self.n_vocab)])

    def chat_prompt(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] = (),
        *,
        n_ctx: int | None = None,
        has_form: bool = False,
    ) -> ChatPrompt:
        """Render a conversation with the model's template and split it into token ids.

        Args:
            messages: see `ChatTemplate.render`; a last message from the assistant is continued.
            tools: see there.
            n_ctx: tokens that prompt and answer may have; None: the end of what was said stays in the prompt.
            has_form: whether a grammar is to go on behind `said`, which then must be known.

        Raises:
            InvalidRequestError: the template refuses the messages.
        """
        head, prefix = self.chat_template.render(messages, tools)
        # Some templates write the BOS token themselves.
        bos = self.chat_template.bos
        add_special = not (bos and head.startswith(bos))
        if not prefix:
            return ChatPrompt(self.tokenize(head, add_special=add_special))
        # The model wrote its answer after the head's last token, so the two are split apart from each other:
        # tokenized together, their border could fall inside a token, and greedy output would differ.
        tail = self.tokenize(prefix, add_special=False, parse_special=False)
        said = prefix.encode("utf-8", "replace")
        if self.detokenize(tail) == said:
            tokens, is_apart = self.tokenize(head, add_special=add_special) + tail, True
        else:
            # This tokenizer puts a space before any text of its own (SentencePiece's dummy prefix).
            tokens, is_apart = self.tokenize(head + prefix, add_special=add_special), False
        count = 0
        if n_ctx is not None and len(tokens) + MAX_BYTES < n_ctx and (is_apart or not has_form):
            count = taken_off([self.piece(token) for token in tokens[-MAX_TOKENS:]], said)
            if not self.pieces.spells(self.detokenize(tokens[len(tokens) - count :])):
                count = 0
        end = len(tokens) - count
        kept = tail[: len(tail) - count] if is_apart else None
        return ChatPrompt(tokens[:end], tokens[end:], self.detokenize(tokens[end:]), kept)

    def piece(self, token: int) -> bytes:
        """The bytes a token stands for; empty for control tokens. A UTF-8 character may span tokens."""
        return self._convert(token, special=False)

    def spell(self, token: int) -> bytes:
        """The bytes of a token, control tokens as they are written in templates."""
        return self._convert(token, special=True)

    def _convert(self, token: int, *, special: bool) -> bytes:
        buffer = ctypes.create_string_buffer(64)
        length = self._lib.llama_token_to_piece(self.vocab, token, buffer, len(buffer), 0, special)
        if length < 0:
            buffer = ctypes.create_string_buffer(-length)
            length = self._lib.llama_token_to_piece(self.vocab, token, buffer, len(buffer), 0, special)
        return buffer.raw[:length]

    def detokenize(self, tokens: Sequence[int]) -> bytes:
        """The bytes a token sequence stands for, without control tokens."""
        return b"".join([self.piece(token) for token in tokens])

    def is_end(self, token: int) -> bool:
        """Whether the model ends its answer with this token."""
        return bool(self._lib.llama_vocab_is_eog(self.vocab, token))

    def close(self) -> None:
        """Free the weights. No context may use them any more; a second call does nothing."""
        if self.handle:
            self._lib.llama_model_free(self.handle)
            self.handle = None


def _infill_tokens(lib: Any, vocab: Any) -> tuple[int, int, int] | None:
    prefix, suffix, middle = (
        int(lib.llama_vocab_fim_pre(vocab)),
        int(lib.llama_vocab_fim_suf(vocab)),
        int(lib.llama_vocab_fim_mid(vocab)),
    )
    return (prefix, suffix, middle) if min(prefix, suffix, middle) >= 0 else None
