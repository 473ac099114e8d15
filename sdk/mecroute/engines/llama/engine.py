"""The llama.cpp engine: GGUF models with continuous batching, for one request at a time or many."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mecroute.device.hardware import default_threads
from mecroute.engines.llama.adapters import AdapterSets
from mecroute.engines.llama.embedding import Embedder
from mecroute.engines.llama.generation import (
    Answers,
    FinishReason,
    Generation,
    GenerationEvent,
    GenerationRequest,
    Usage,
)
from mecroute.engines.llama.generation_group import submit_all
from mecroute.engines.llama.gpu import GpuOptions
from mecroute.engines.llama.grammar import Grammar
from mecroute.engines.llama.kv_memory import Resident
from mecroute.engines.llama.lane import LaneOptions, open_adapter_lane, open_lane, open_speculator
from mecroute.engines.llama.model import ChatPrompt, LlamaModel
from mecroute.engines.llama.prefix_disk import PrefixDisk, PrefixDiskOptions
from mecroute.engines.llama.prefix_folder import check_folder
from mecroute.engines.llama.sampling import GREEDY, SamplingParams
from mecroute.engines.llama.scheduler import Scheduler
from mecroute.engines.llama.speculation import Speculation, check_speculation
from mecroute.engines.llama.stats import EngineStats, combined
from mecroute.engines.llama.turns import Turns
from mecroute.errors import InvalidRequestError, TierUnreachableError

__all__ = [
    "EngineStats",
    "FinishReason",
    "Generation",
    "GenerationEvent",
    "GenerationRequest",
    "LlamaEngine",
    "SamplingParams",
    "Usage",
]

#: Memory for conversations that have left the KV memory, where nothing else is asked for.
PREFIX_RAM_BYTES = 64 * 1024 * 1024
#: Texts to embed are cut off above this, because a text must fit one batch and buffers grow with it.
MAX_EMBEDDING_TOKENS = 2048


class LlamaEngine:
    """Runs one GGUF model in this process.

    Args:
        path: the model file.
        n_ctx: > 0; tokens a request may have, prompt and answer together. Lowered to what the model was
            trained for.
        n_parallel: ≥ 1; requests that run together.
        n_threads: CPU threads at most; None takes the cores this process may use. While other processes
            need the cores, fewer are used.
        n_gpu_layers: layers to put on a GPU; 0 none, negative all.
        gpu: on which of them, and in which parts.
        max_queue: ≥ 0; requests that may wait for a slot.
        name: names the model in errors and answers; the file's stem if None.
        adapters: GGUF files of LoRA adapters that requests may name, by name. Each combination in use takes
            as much KV memory as the model without any.
        kv_tokens: room of the KV memory that all requests share; None: `n_ctx * n_parallel`, which always
            suffices. With less, requests wait until what they may come to need is free.
        prefix_ram_bytes: memory for conversations that have left the KV memory, ≥ 0.
        prefix_disk: a folder for those that have left that too; None: nothing is ever stored.
        speculation: guess tokens ahead and verify several in one step, where that is measured to pay:
            `prompt-lookup` guesses that what the prompt or the answer said goes on as it did there, `draft`
            asks a small model. Nothing is guessed with a model whose memory cannot take tokens back.
        draft_model: the small model's file, for `draft`; its vocabulary must be the model's.

    Raises:
        ConfigError: that folder cannot be used; `draft` without a draft model, or a draft model without it;
            there is no such GPU.
        InvalidModelFileError: the file cannot be loaded, or not with this context; or the draft model's.
        MissingExtraError: the `device` extra is not installed.

    Thread-safe. Use it as a context manager, or call `close`; an engine that is garbage or still open at
    exit is closed too.
    """

    def __init__(
        self,
        path: Path,
        *,
        n_ctx: int = 4096,
        n_parallel: int = 1,
        n_threads: int | None = None,
        n_gpu_layers: int = 0,
        gpu: GpuOptions | None = None,
        max_queue: int = 64,
        name: str | None = None,
        kv_tokens: int | None = None,
        adapters: Mapping[str, Path] | None = None,
        prefix_ram_bytes: int = PREFIX_RAM_BYTES,
        prefix_disk: PrefixDiskOptions | None = None,
        speculation: Speculation = "off",
        draft_model: Path | None = None,
    ) -> None:
        check_speculation(speculation, draft_model)
        path = Path(path)
        if prefix_disk is not None:
            check_folder(prefix_disk.folder)
        self.name = name or path.stem
        self.n_parallel = n_parallel
        self._room = n_parallel + max_queue
        self.n_threads = n_threads or default_threads()
        self._model = LlamaModel(path, n_gpu_layers=n_gpu_layers, gpu=gpu)
        self.facts = self._model.facts
        self.n_ctx = min(n_ctx, self._model.n_ctx_train or n_ctx)
        room = max(self.n_ctx, kv_tokens) if kv_tokens else self.n_ctx * n_parallel
        # Bound here and not to `self`, which the finalizer must not keep alive.
        model = self._model
        options = LaneOptions(
            self.name,
            n_ctx=self.n_ctx,
            n_parallel=n_parallel,
            n_threads=self.n_threads,
            kv_tokens=room,
            max_queue=max_queue,
            turns=Turns() if adapters else None,
        )
        try:
            speculator = open_speculator(
                model,
                options,
                speculation=speculation,
                draft_model=draft_model,
                n_gpu_layers=n_gpu_layers,
            )
            lane = open_lane(
                model,
                path,
                options,
                ram_bytes=prefix_ram_bytes,
                disk_options=prefix_disk,
                speculator=speculator,
            )
        except BaseException:
            model.close()
            raise
        #: Whether it generates text, and how it makes one vector of a text; see `Pooling`.
        self.generates, self.pooling = lane.generates, model.pooling
        self._scheduler, self._disk = lane.scheduler, lane.disk
        #: Takes conversations out of the KV memory and in again.
        self.sessions = lane.sessions
        self._adapters = AdapterSets(
            model,
            adapters or {},
            name=self.name,
            make=lambda applied: open_adapter_lane(model, options, applied),
        )
        self._embedders: list[Embedder] = []
        self._lock = threading.Lock()
        # Native code must not run on while the interpreter is torn down.
        self._finalizer = weakref.finalize(
            self, _close, self._scheduler, lane.disk, self._adapters, self._embedders, model
        )

    def __enter__(self) -> LlamaEngine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def tokenize_chat(
        self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] = ()
    ) -> tuple[int, ...]:
        """The prompt of a conversation, in the model's own chat format.

        Args:
            messages: `{"role", "content"}` each, content text or a list of text parts. When the last one is
                the assistant's, the prompt ends right after its text, to be continued.
            tools: functions the model may call; see `ChatTemplate.render`.

        Raises:
            InvalidRequestError: no message, or the model's template refuses them.
        """
        self._check_open()
        return self._model.chat_prompt(messages, tools).tokens

    def chat_prompt(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] = (),
        *,
        has_form: bool = False,
    ) -> ChatPrompt:
        """The same, but for the last word of an answer that is to be continued: that is chosen again.

        Args:
            messages: see `tokenize_chat`.
            tools: see there.
            has_form: whether the answer is to conform to a grammar.

        Raises:
            InvalidRequestError: no message, or the model's template refuses them.
        """
        self._check_open()
        return self._model.chat_prompt(messages, tools, n_ctx=self.n_ctx, has_form=has_form)

    def tokenize(self, text: str, *, add_special: bool = True) -> tuple[int, ...]:
        """Split a text into token ids.

        Args:
            text: any text.
            add_special: begin with the model's BOS token, if it wants one.
        """
        self._check_open()
        return self._model.tokenize(text, add_special=add_special)

    def tokenize_infill(self, before: str | Sequence[int], after: str) -> tuple[int, ...]:
        """The prompt by which a model fills in what stands between two texts.

        Args:
            before: a text, or its token ids.
            after: any text.

        Raises:
            InvalidRequestError: the model was not trained for that: its vocabulary has no tokens that say it.
        """
        self._check_open()
        return self._model.tokenize_infill(before, after)

    @property
    def can_infill(self) -> bool:
        """Whether `tokenize_infill` works with this model."""
        return self._model.infill_tokens is not None

    def detokenize(self, tokens: Sequence[int]) -> str:
        """The text of token ids, without control tokens.

        Raises:
            InvalidRequestError: one is not in the vocabulary.
        """
        self._check_open()
        self._check_tokens(tokens, "the prompt")
        return self._model.detokenize(tokens).decode("utf-8", "replace")

    def check_vocabulary(self) -> None:
        """Spell every token once: a damaged vocabulary shows itself here, and not in some answer."""
        self._check_open()
        for token in range(self._model.n_vocab):
            self._model.piece(token)
            self._model.spell(token)

    def submit(self, request: GenerationRequest) -> Generation:
        """Start a generation, or queue it; returns at once.

        Args:
            request: its max_tokens is lowered to the room its prompt leaves in the context.

        Returns:
            The handle to read the answer from.

        Raises:
            InvalidRequestError: an empty prompt, an unknown token, max_tokens below 1, a bad grammar, or an
                adapter that is not there or fits another model.
            ContextLengthError: the prompt leaves no room for an answer.
            OverloadedError: the queue is full.
            TierUnreachableError: the engine is closed.
        """
        if not self.generates:
            raise InvalidRequestError(
                f"'{self.name}' is an encoder, which generates no text",
                hint=f"ask it with POST /v1/{'rerank' if self.pooling == 'rank' else 'embeddings'}",
                model=self.name,
            )
        if not request.prompt:
            raise InvalidRequestError("the prompt has no tokens", hint="send at least one token")
        if request.max_tokens < 1:
            raise InvalidRequestError(f"max_tokens is {request.max_tokens}", hint="it must be at least 1")
        self._check_tokens(request.prompt, "the prompt")
        if any(not 0 <= token < self._model.n_vocab for token, _ in request.sampling.logit_bias):
            raise InvalidRequestError(
                f"logit_bias has a token outside the vocabulary of {self._model.n_vocab}",
                hint="its keys are token ids of this model",
            )
        if request.top_logprobs is not None and not 0 <= request.top_logprobs <= self._model.n_vocab:
            raise InvalidRequestError(f"top_logprobs is {request.top_logprobs}")
        if request.n < 1:
            raise InvalidRequestError(f"n is {request.n}", hint="it must be at least 1")
        if not all(request.stop):
            raise InvalidRequestError("a stop string is empty", hint="leave it out")
        if request.constraint is not None:
            with self._lock:  # the model must not be freed meanwhile
                self._check_open()
                Grammar(self._model, request.constraint.whole).close()
        scheduler = self._adapters if request.adapters else self._scheduler
        return scheduler.submit(request)

    def submit_all(self, requests: Sequence[GenerationRequest]) -> Answers:
        """Submit the requests that one caller's request for several prompts is made of: all, or none.

        Args:
            requests: at least one.

        Raises: as `submit`; InvalidRequestError also where they are more than the engine holds.
        """
        answers = sum(request.n for request in requests)
        if len(requests) > 1 and answers > self._room:
            raise InvalidRequestError(
                f"{len(requests)} prompts ask for {answers} answers, "
                f"and {self.name} holds {self._room} requests",
                hint=f"ask for at most {self._room} at a time",
            )
        return submit_all(self.submit, requests)

    def _check_tokens(self, tokens: Sequence[int], what: str) -> None:
        # llama.cpp aborts a whole batch for one token that is not in the vocabulary.
        if tokens and (min(tokens) < 0 or max(tokens) >= self._model.n_vocab):
            raise InvalidRequestError(
                f"{what} has a token outside the vocabulary of {self._model.n_vocab}",
                hint="tokenize it with this model",
            )

    def embed(self, texts: Sequence[str | Sequence[int]]) -> tuple[list[list[float]], int]:
        """Embed texts: their last hidden states, pooled as the file says (else the mean), at unit length.

        Args:
            texts: texts, or token ids of texts; each 1 to min(n_ctx, 2048) tokens.

        Returns:
            float32 values [len(texts), embedding_length], and the number of tokens in all texts.

        Raises:
            ContextLengthError: a text is too long.
            InvalidRequestError: a token is not in the vocabulary, or the model is a reranker.
            TierUnreachableError: the engine is closed.
        """
        return self._embedder().embed(texts)

    def relevance(self, query: str, documents: Sequence[str]) -> tuple[list[float], int]:
        """Judge with a reranker how relevant documents are to a query.

        Args:
            query: any text.
            documents: each, with the query, 1 to min(n_ctx, 2048) tokens.

        Returns:
            A probability (0..1) for each document, and the number of tokens read.

        Raises:
            ContextLengthError: a document is too long.
            InvalidRequestError: the model is no reranker: its `pooling` is not `rank`.
            TierUnreachableError: the engine is closed.
        """
        return self._embedder().relevance(query, documents)

    def _embedder(self) -> Embedder:
        with self._lock:
            self._check_open()
            if not self._embedders:
                self._embedders.append(
                    Embedder(
                        self._model,
                        name=self.name,
                        n_ctx=min(self.n_ctx, MAX_EMBEDDING_TOKENS),
                        n_threads=self.n_threads,
                        # What generates has a memory, in which the pieces of a text follow each other.
                        in_pieces=self.generates and self._model.is_causal,
                    )
                )
        return self._embedders[0]

    def stats(self) -> EngineStats:
        """What the engine is doing, and how fast of late."""
        return combined(self._scheduler.stats(), self._adapters.stats())

    @property
    def adapters(self) -> tuple[str, ...]:
        """The LoRA adapters that a request may name; an adapter's id is its place."""
        return self._adapters.names

    def prepare(self, request: GenerationRequest) -> None:
        """Have the adapters of a request in memory, so that `submit` does not wait for their files.

        Raises: as `submit`, for adapters.
        """
        if request.adapters:
            self._adapters.prepare(request.adapters)

    def residents(self) -> list[Resident]:
        """The conversations whose tokens are in memory, the most recently used first."""
        return self._scheduler.residents()

    @property
    def disk_is_open(self) -> bool:
        """Whether the folder of `prefix_disk` has been read and is in use."""
        return self._disk is not None and self._disk.is_open

    def warm_up(self) -> None:
        """Generate a few tokens, so that the weights are in memory and both speeds are measured.

        An encoder reads a text instead.
        """
        if not self.generates:
            if self.pooling == "rank":
                self.relevance("a fox", ["a dog"])
            else:
                self.embed(["a fox"])
            return
        _ = self._model.pieces  # nobody shall wait for that at the first answer to be continued
        for words in ("The quick brown fox jumps over the lazy dog. ", "Pack my box with five dozen jugs. "):
            prompt = self.tokenize(words * 12)[: max(1, min(64, self.n_ctx - 16))]
            for _ in self.submit(GenerationRequest(prompt, max_tokens=8, sampling=GREEDY)):
                pass

    def close(self) -> None:
        """End the engine's thread and free its memory; running generations fail with TierUnreachableError.

        A second call does nothing.
        """
        with self._lock:
            self._finalizer()

    def _check_open(self) -> None:
        if not self._finalizer.alive:
            raise TierUnreachableError(
                f"the engine of {self.name} was closed", hint="load the model again", model=self.name
            )


def _close(
    scheduler: Scheduler,
    disk: PrefixDisk | None,
    adapters: AdapterSets,
    embedders: list[Embedder],
    model: LlamaModel,
) -> None:
    if scheduler.on_own_thread() or adapters.on_own_thread():
        # The garbage collector runs on any thread, and this one cannot wait for itself to end.
        threading.Thread(target=_close, args=(scheduler, disk, adapters, embedders, model)).start()
        return
    scheduler.close()
    if disk is not None:
        disk.close()
    adapters.close()
    for embedder in embedders:
        embedder.close()
    model.close()
