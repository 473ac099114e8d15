"""Opens a model file with the engine that runs it; for the pool's loading thread."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from mecroute_server.footprint import Footprint, estimate_gguf, estimate_onnx
from mecroute_server.settings import ServerSettings

if TYPE_CHECKING:
    from mecroute.engines.llama.engine import LlamaEngine
    from mecroute.engines.onnx.engine import OnnxEngine

#: Rows that an ONNX model computes together at most; more does not make a CPU faster.
MAX_ONNX_BATCH = 32


def estimate(path: Path, settings: ServerSettings, *, is_onnx: bool) -> Footprint:
    """What a model will take of memory.

    Raises:
        InvalidModelFileError: the file cannot be read.
    """
    if is_onnx:
        return estimate_onnx(path)
    from mecroute.engines.llama.native import supports_gpu

    return estimate_gguf(path, settings, has_gpu=bool(settings.gpu_layers) and supports_gpu())


def open_engine(ref: str, path: Path, settings: ServerSettings, *, is_onnx: bool) -> LlamaEngine | OnnxEngine:
    """Load a model and make a first token with it, so that the first request finds its pages in memory.

    Raises:
        MecrouteError: what its engine raises.
    """
    engine = _open_onnx(ref, path, settings) if is_onnx else _open_llama(ref, path, settings)
    try:
        engine.warm_up()
    except BaseException:
        engine.close()
        raise
    return engine


def _open_llama(ref: str, path: Path, settings: ServerSettings) -> LlamaEngine:
    from mecroute.device.hardware import default_threads
    from mecroute.engines.llama.engine import LlamaEngine
    from mecroute.engines.llama.gpu import GpuOptions
    from mecroute.engines.llama.trial import try_gguf

    # A child process does the same first: a file that crashes llama.cpp ends only that child.
    try_gguf(path, n_threads=settings.threads or default_threads())
    return LlamaEngine(
        path,
        n_ctx=settings.context,
        n_parallel=settings.parallel,
        n_threads=settings.threads,
        n_gpu_layers=settings.gpu_layers,
        gpu=GpuOptions(settings.main_gpu, settings.split_mode, settings.tensor_split, settings.gpu_devices),
        max_queue=settings.max_queue,
        name=ref,
        prefix_ram_bytes=settings.prefix_cache_memory_bytes,
        prefix_disk=settings.prefix_disk,
        speculation=settings.speculation,
        draft_model=settings.draft_model,
        adapters=settings.adapters,
    )


def _open_onnx(ref: str, path: Path, settings: ServerSettings) -> OnnxEngine:
    from mecroute.engines.onnx.encoder import open_onnx

    return open_onnx(
        path, n_threads=settings.threads, max_queue=settings.max_queue, max_batch=MAX_ONNX_BATCH, name=ref
    )
