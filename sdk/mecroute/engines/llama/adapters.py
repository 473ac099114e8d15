"""LoRA adapters per request: each combination of adapters runs in a context of its own."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mecroute.engines.llama import native
from mecroute.engines.llama.generation import Generation, GenerationRequest
from mecroute.engines.llama.model import LlamaModel
from mecroute.engines.llama.scheduler import Scheduler
from mecroute.engines.llama.stats import EngineStats
from mecroute.errors import InvalidModelFileError, InvalidRequestError, OverloadedError, TierUnreachableError
from mecroute_registry.gguf import read_gguf

#: Combinations in memory together; the one that was used longest ago makes room for another.
MAX_SETS = 4

#: Adapters and their scales, sorted by name: what makes two requests of one kind.
AdapterKey = tuple[tuple[str, float], ...]


class AdapterSets:
    """The schedulers of requests with adapters, by what they ask for.

    llama.cpp applies adapters to a context, not to a row of a batch, so requests with different ones cannot
    share a step. Each combination gets a context, a batch and a KV memory of its own, over the same weights:
    no tokens are ever shared across combinations. The steps of all contexts take turns (`Turns`), so that
    each combination that has requests gets every n-th one.

    Args:
        model: the weights, which must outlive this; closing them frees the adapters.
        files: GGUF files of adapters, by name. They are read when first asked for.
        name: names the engine in errors.
        make: makes the scheduler of a combination from llama.cpp's adapters and their scales.

    Thread-safe.
    """

    def __init__(
        self,
        model: LlamaModel,
        files: Mapping[str, Path],
        *,
        name: str,
        make: Callable[[Sequence[tuple[Any, float]]], Scheduler],
    ) -> None:
        self._model = model
        self._files = dict(files)
        self._name = name
        self._make = make
        self._handles: dict[str, Any] = {}
        self._sets: OrderedDict[AdapterKey, Scheduler] = OrderedDict()
        self._lock = threading.Lock()
        self._closed = False

    @property
    def names(self) -> tuple[str, ...]:
        """The adapters that a request may name, in order: an adapter's id is its place."""
        return tuple(self._files)

    def prepare(self, key: AdapterKey) -> None:
        """Make the context of a combination, if there is none; takes as long as reading its files.

        Raises:
            InvalidRequestError: there is no such adapter, or it does not fit this model.
            OverloadedError: as many combinations as may be are in use.
            TierUnreachableError: the engine is closed.
        """
        with self._lock:
            self._scheduler(key)

    def submit(self, request: GenerationRequest) -> Generation:
        """Queue a request that has adapters; see `Scheduler.submit` and `prepare`."""
        with self._lock:
            return self._scheduler(request.adapters).submit(request)

    def stats(self) -> list[EngineStats]:
        """What each combination is doing."""
        with self._lock:
            return [scheduler.stats() for scheduler in self._sets.values()]

    def on_own_thread(self) -> bool:
        """Whether the caller is the thread of one of them."""
        return any(scheduler.on_own_thread() for scheduler in self._sets.values())

    def close(self) -> None:
        """End every combination; a second call does nothing."""
        with self._lock:
            self._closed = True
            while self._sets:
                self._sets.popitem()[1].close()

    def _scheduler(self, key: AdapterKey) -> Scheduler:
        if self._closed:
            raise TierUnreachableError(
                f"the engine of {self._name} was closed", hint="load the model again", model=self._name
            )
        scheduler = self._sets.get(key)
        if scheduler is None:
            adapters = [(self._handle(name), scale) for name, scale in key]
            if len(self._sets) >= MAX_SETS:
                self._close_oldest()
            scheduler = self._sets[key] = self._make(adapters)
        self._sets.move_to_end(key)
        return scheduler

    def _close_oldest(self) -> None:
        for key, scheduler in self._sets.items():
            stats = scheduler.stats()
            if not stats.running and not stats.queued:
                del self._sets[key]
                scheduler.close()
                return
        raise OverloadedError(
            f"{self._name} answers requests with {len(self._sets)} combinations of adapters already",
            retry_after_s=max(1.0, *(scheduler.stats().retry_after_s for scheduler in self._sets.values())),
        )

    def _handle(self, name: str) -> Any:
        if name not in self._files:
            raise InvalidRequestError(
                f"there is no adapter '{name}'",
                hint=f"adapters: {', '.join(self._files) or 'none; [server] adapters names their files'}",
            )
        if name not in self._handles:
            self._handles[name] = self._load(name, self._files[name])
        return self._handles[name]

    def _load(self, name: str, path: Path) -> Any:
        try:
            check_adapter(path)
        except InvalidModelFileError as error:
            raise InvalidRequestError(f"adapter '{name}': {error.message}", hint=error.hint) from error
        lib = native.llama()
        with native.captured_log() as tail:
            handle = lib.llama_adapter_lora_init(self._model.handle, str(path).encode())
        if not handle:
            raise InvalidRequestError(
                f"adapter '{name}' cannot be used with {self._name}{native.last_words(tail)}",
                hint="an adapter fits only the model it was trained on",
            )
        return handle


def check_adapter(path: Path) -> None:
    """Make sure that a file is a LoRA adapter as far as its header says.

    Raises:
        InvalidModelFileError: it cannot be read, is damaged, or is something else.
    """
    facts = read_gguf(path)
    if facts.kind != "adapter":
        raise InvalidModelFileError(
            f"{path} is no LoRA adapter: its general.type is {facts.kind or 'not stated'}",
            hint="convert the adapter with llama.cpp's convert_lora_to_gguf.py",
        )
