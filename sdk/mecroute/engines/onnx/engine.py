"""The ONNX Runtime engine: any tensor model, with dynamic batching."""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mecroute.device.hardware import default_threads
from mecroute.engines.onnx.batcher import Batcher, OnnxStats
from mecroute.engines.onnx.model import OnnxModel, TensorSpec
from mecroute.engines.onnx.native import choose_providers
from mecroute.engines.onnx.trial import try_model
from mecroute.errors import InvalidModelFileError
from mecroute_registry.onnx import read_onnx

if TYPE_CHECKING:
    from mecroute.engines.onnx.classifier import TextClassifier
    from mecroute.engines.onnx.encoder import TextEncoder

#: A CPU provider that other providers fall back to for operators they lack.
_CPU = "CPUExecutionProvider"
#: Batches that are computed side by side on the CPU, each on a thread of its own, at most so many.
_MAX_LANES = 8
#: A larger model is not held twice in memory for that.
MAX_LANES_BYTES = 256 << 20
#: Rows of one piece of a request with many texts, where lanes compute several pieces side by side.
_LANE_ROWS = 4


class OnnxEngine:
    """Runs one ONNX model in this process.

    The file is checked, then loaded and run once in a child process, and only then loaded here. That trial
    also finds out whether the rows of a batch are independent of each other; only then are requests run
    together, whatever the shapes say.

    Args:
        path: the model file.
        n_threads: CPU threads, of one run or of several side by side; None takes the cores this process may
            use.
        max_batch: ≥ 1; rows run together at most. 1 switches batching off.
        max_delay_ms: ≥ 0; how long a request may wait for others to join it.
        max_queue: ≥ 0; requests that may wait.
        name: names the model in errors and answers; the file's stem if None.
        providers: execution providers in order; None takes what is there, the fastest first.

    Raises:
        InvalidModelFileError: the file cannot be loaded.
        MissingExtraError: the `device` extra is not installed.

    Thread-safe. Use it as a context manager, or call `close`; an engine that is garbage or still open at
    exit is closed too.
    """

    #: A tensor model has no tokens.
    n_ctx: int | None = None
    #: Set where the model embeds texts; see `mecroute.engines.onnx.encoder`.
    encoder: TextEncoder | None = None
    #: Set where it classifies texts; see `mecroute.engines.onnx.classifier`.
    classifier: TextClassifier | None = None

    def __init__(
        self,
        path: Path,
        *,
        n_threads: int | None = None,
        max_batch: int = 32,
        max_delay_ms: float = 2.0,
        max_queue: int = 64,
        name: str | None = None,
        providers: Sequence[str] | None = None,
    ) -> None:
        path = Path(path)
        if max_batch < 1 or max_delay_ms < 0 or max_queue < 0:
            raise ValueError("max_batch must be at least 1, max_delay_ms and max_queue at least 0")
        self.name = name or path.stem
        self.n_threads = n_threads or default_threads()
        chosen = list(providers) if providers is not None else choose_providers()
        self.facts = read_onnx(path)
        trial = try_model(path, self.facts)
        #: Batches computed at the same time.
        self.lanes = 1
        is_small = not self.facts.external_files and path.stat().st_size <= MAX_LANES_BYTES
        if is_small and chosen in ([], [_CPU]):
            self.lanes = min(self.n_threads, _MAX_LANES)
        try:
            self._model = OnnxModel(
                path, providers=chosen or [_CPU], n_threads=self.n_threads, lanes=self.lanes
            )
        except Exception as error:  # ORT raises kinds of its own, and RuntimeError, and ValueError
            raise InvalidModelFileError(
                f"{path} cannot be loaded: {str(error)[:500]}", hint="export the model again"
            ) from error
        self._free_dim = trial.free_dim
        #: How long a request may wait for others to join it.
        self.max_delay_ms = max_delay_ms
        #: Whether requests are run together.
        self.batches = trial.rows_independent and max_batch > 1
        #: Rows run together at most.
        self.n_parallel = max_batch if self.batches else 1
        #: Rows that it is best to submit at a time, of a request with many.
        self.piece_rows = self.n_parallel if self.lanes == 1 else min(self.n_parallel, _LANE_ROWS)
        self._batcher = Batcher(
            self._model,
            name=self.name,
            batches=self.batches,
            max_batch=max_batch,
            max_delay_ms=max_delay_ms,
            max_queue=max_queue,
            lanes=self.lanes,
        )
        self._finalizer = weakref.finalize(self, self._batcher.close)

    def __enter__(self) -> OnnxEngine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """What the model takes."""
        return self._model.inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """What the model gives."""
        return self._model.outputs

    @property
    def providers(self) -> tuple[str, ...]:
        """The execution providers in use."""
        return self._model.providers

    def submit(
        self, inputs: Mapping[str, Any], outputs: Sequence[str] | None = None, *, admitted: bool = False
    ) -> Future[dict[str, Any]]:
        """Queue a request; returns at once.

        Args:
            inputs: an array per input, of exactly the model's type; text as `object` arrays of `str`.
            outputs: names of the outputs wanted; None for all.
            admitted: whether this goes on with work that has been let in before; it is never refused for a
                full queue.

        Returns:
            A future of an array per output. Cancelling it takes a request that waits out of the queue.

        Raises:
            InvalidRequestError: a name, a type or a shape is not what the model takes.
            OverloadedError: the queue is full.
            TierUnreachableError: the engine is closed.
        """
        self._model.check(inputs, outputs)
        return self._batcher.submit(inputs, tuple(outputs) if outputs else None, admitted=admitted)

    def infer(self, inputs: Mapping[str, Any], outputs: Sequence[str] | None = None) -> dict[str, Any]:
        """Run a request and wait for it; see `submit`.

        Raises:
            InvalidRequestError: also when the model cannot compute these values.
        """
        return self.submit(inputs, outputs).result()

    def stats(self) -> OnnxStats:
        """What the engine is doing."""
        return self._batcher.stats()

    def warm_up(self) -> None:
        """Run once, so that memory is allocated; nothing happens if no trial input is known to work."""
        if self._free_dim is None:
            return
        inputs: dict[str, Any] = {}
        for spec in self.inputs:
            shape = [self._free_dim if dim is None else dim for dim in spec.shape]
            if shape and spec.shape[0] is None:
                shape[0] = 1
            inputs[spec.name] = (
                np.full(shape, "0", object) if spec.is_text else np.ones(shape, spec.array_dtype)
            )
        self._model.run(inputs)

    def close(self) -> None:
        """End the engine; what waits fails with TierUnreachableError. A second call does nothing."""
        self._finalizer()
