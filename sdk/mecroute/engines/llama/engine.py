"""The llama.cpp engine: GGUF models with continuous batching, for one request at a time or many."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mecroute.device.hardware import default_threads
from mecroute.engines.llama.context import DecodeContext
from mecroute.engines.llama.draft_model import DraftModel
from mecroute.engines.llama.embedding import Embedder
from mecroute.engines.llama.generation import (
    FinishReason,
    Generation,
    GenerationEvent,
    GenerationRequest,
    Usage,
)
from mecroute.engines.llama.grammar import Grammar
from mecroute.engines.llama.kv_memory import KvMemory, Resident, sequences_for
from mecroute.engines.llama.kv_spill import KvSpill
from mecroute.engines.llama.kv_transfer import KvTransfer
from mecroute.engines.llama.model import LlamaModel
from mecroute.engines.llama.prefix_disk import PrefixDisk, PrefixDiskOptions
from mecroute.engines.llama.prefix_folder import check_folder
from mecroute.engines.llama.prefix_ram import PrefixRam
from mecroute.engines.llama.residency import Residency
from mecroute.engines.llama.sampling import GREEDY, SamplingParams
from mecroute.engines.llama.scheduler import Scheduler
from mecroute.engines.llama.sessions import ModelFile, Sessions
from mecroute.engines.llama.speculation import (
    MAX_DRAFT_ROWS,
    Speculation,
    Speculator,
    check_speculation,
)
from mecroute.engines.llama.stats import EngineStats
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

#: Rows of a batch. More does not make a prompt faster on a CPU, and holds up whoever joins meanwhile.
N_BATCH = 512
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
        max_queue: ≥ 0; requests that may wait for a slot.
        name: names the model in errors and answers; the file's stem if None.
        kv_tokens: room of the KV memory that all requests share; None: `n_ctx * n_parallel`, which always
            suffices. With less, requests wait until what they may come to need is free.
        prefix_ram_bytes: memory for conversations that have left the KV memory, ≥ 0.
        prefix_disk: a folder for those that have left that too; None: nothing is ever stored.
        speculation: guess tokens ahead and verify several in one step, where that is measured to pay:
            `prompt-lookup` guesses that what the prompt or the answer said goes on as it did there, `draft`
            asks a small model. Nothing is guessed with a model whose memory cannot take tokens back.
        draft_model: the small model's file, for `draft`; its vocabulary must be the model's.

    Raises:
        InvalidModelFileError: the file cannot be loaded, or not with this context; or the draft model's.
        ConfigError: `draft` without a draft model, or a draft model without `draft`; or the folder of
            `prefix_disk` cannot be used.
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
        max_queue: int = 64,
        name: str | None = None,
        kv_tokens: int | None = None,
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
        self.n_threads = n_threads or default_threads()
        self._model = LlamaModel(path, n_gpu_layers=n_gpu_layers)
        self.facts = self._model.facts
        self.n_ctx = min(n_ctx, self._model.n_ctx_train or n_ctx)
        room = max(self.n_ctx, kv_tokens) if kv_tokens else self.n_ctx * n_parallel
        n_sequences = sequences_for(n_parallel, room)
        speculates = speculation != "off" and self._model.can_drop_suffix
        speculator: Speculator | None = None
        try:
            if speculates:
                drafter = None
                if draft_model is not None:
                    drafter = DraftModel(
                        Path(draft_model),
                        target=self._model,
                        n_ctx=self.n_ctx,
                        kv_tokens=room,
                        n_sequences=n_sequences,
                        n_threads=self.n_threads,
                        n_gpu_layers=n_gpu_layers,
                    )
                speculator = Speculator(drafter)
            context = DecodeContext(
                self._model,
                n_ctx=room,
                n_seq_max=n_sequences,
                n_batch=max(N_BATCH, n_parallel + MAX_DRAFT_ROWS),
                # llama.cpp reserves at least one for each sequence.
                n_outputs=max(n_sequences, n_parallel + (MAX_DRAFT_ROWS if speculates else 0)),
                n_threads=self.n_threads,
            )
        except BaseException:
            if speculator is not None:
                speculator.close()
            self._model.close()
            raise
        sharing = self._model.prefix_sharing
        memory = KvMemory(context, n_slots=n_sequences, kv_tokens=room, sharing=sharing)
        ram = PrefixRam(prefix_ram_bytes)
        transfer = KvTransfer(context, memory, ram, n_ctx=self.n_ctx, sharing_any=sharing == "any")
        disk = None
        if prefix_disk is not None:
            disk = PrefixDisk(prefix_disk, n_vocab=self._model.n_vocab)
        self._scheduler = Scheduler(
            self._model,
            context,
            Residency(memory, KvSpill(memory, transfer, ram, disk)),
            name=self.name,
            n_ctx=self.n_ctx,
            n_parallel=n_parallel,
            max_queue=max_queue,
            speculator=speculator,
        )
        #: Takes conversations out of the KV memory and in again.
        self.sessions = Sessions(ModelFile(path), transfer, self._scheduler.on_engine, self._model.n_vocab)
        self._disk = disk
        if disk is not None:
            disk.start(prepare=self.sessions.fit_and_layout, on_fetched=self._scheduler.look_again)
        self._embedders: list[Embedder] = []
        self._lock = threading.Lock()
        # Native code must not run on while the interpreter is torn down.
        self._finalizer = weakref.finalize(self, _close, self._scheduler, disk, self._embedders, self._model)

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
        return self._model.tokenize_chat(messages, tools)

    def tokenize(self, text: str, *, add_special: bool = True) -> tuple[int, ...]:
        """Split a text into token ids.

        Args:
            text: any text.
            add_special: begin with the model's BOS token, if it wants one.
        """
        self._check_open()
        return self._model.tokenize(text, add_special=add_special)

    def detokenize(self, tokens: Sequence[int]) -> str:
        """The text of token ids, without control tokens."""
        self._check_open()
        return self._model.detokenize(tokens).decode("utf-8", "replace")

    def submit(self, request: GenerationRequest) -> Generation:
        """Start a generation, or queue it; returns at once.

        Args:
            request: its max_tokens is lowered to the room its prompt leaves in the context.

        Returns:
            The handle to read the answer from.

        Raises:
            InvalidRequestError: an empty prompt, an unknown token, max_tokens below 1, or a bad grammar.
            ContextLengthError: the prompt leaves no room for an answer.
            OverloadedError: the queue is full.
            TierUnreachableError: the engine is closed.
        """
        if not request.prompt:
            raise InvalidRequestError("the prompt has no tokens", hint="send at least one token")
        if request.max_tokens < 1:
            raise InvalidRequestError(f"max_tokens is {request.max_tokens}", hint="it must be at least 1")
        # llama.cpp aborts a whole batch for one token that is not in the vocabulary.
        if min(request.prompt) < 0 or max(request.prompt) >= self._model.n_vocab:
            raise InvalidRequestError(
                f"the prompt has a token outside the vocabulary of {self._model.n_vocab}",
                hint="tokenize the prompt with this model",
            )
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
                Grammar(self._model, request.constraint).close()
        return self._scheduler.submit(request)

    def embed(self, texts: Sequence[str]) -> tuple[list[list[float]], int]:
        """Embed texts: the mean of the last hidden states over a text's tokens, at unit length.

        Args:
            texts: each 1 to min(n_ctx, 2048) tokens.

        Returns:
            float32 values [len(texts), embedding_length], and the number of tokens in all texts.

        Raises:
            ContextLengthError: a text is too long.
            TierUnreachableError: the engine is closed.
        """
        with self._lock:
            self._check_open()
            if not self._embedders:
                self._embedders.append(
                    Embedder(
                        self._model,
                        name=self.name,
                        n_ctx=min(self.n_ctx, MAX_EMBEDDING_TOKENS),
                        n_threads=self.n_threads,
                    )
                )
        return self._embedders[0].embed(texts)

    def stats(self) -> EngineStats:
        """What the engine is doing, and how fast of late."""
        return self._scheduler.stats()

    def residents(self) -> list[Resident]:
        """The conversations whose tokens are in memory, the most recently used first."""
        return self._scheduler.residents()

    @property
    def disk_is_open(self) -> bool:
        """Whether the folder of `prefix_disk` has been read and is in use."""
        return self._disk is not None and self._disk.is_open

    def warm_up(self) -> None:
        """Generate a few tokens, so that the weights are in memory and both speeds are measured."""
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
    scheduler: Scheduler, disk: PrefixDisk | None, embedders: list[Embedder], model: LlamaModel
) -> None:
    if scheduler.on_own_thread():
        # The garbage collector runs on any thread, and this one cannot wait for itself to end.
        threading.Thread(target=_close, args=(scheduler, disk, embedders, model)).start()
        return
    scheduler.close()
    if disk is not None:
        disk.close()
    for embedder in embedders:
        embedder.close()
    model.close()
