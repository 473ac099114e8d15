"""How much memory a model takes: estimated from its file before it is loaded, measured once it is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import psutil

from mecroute.engines.llama.adapters import MAX_SETS
from mecroute_registry.gguf import GgufFacts, read_gguf
from mecroute_registry.onnx import read_onnx
from mecroute_server.settings import ServerSettings

_T = TypeVar("_T")

#: Rows of a batch, as the engine has them; the buffers for activations grow with it.
_BATCH_ROWS = 512
#: Rows of activations as wide as the residual stream that a graph keeps at a time, and as wide as its
#: feed-forward part; float32. So many llama.cpp reserves for models of the Llama and Qwen2 families.
_STREAM_BUFFERS, _FEED_FORWARD_BUFFERS = 4, 3
#: Of the attention mask, for each row of a batch and token of KV that it may see.
_MASK_BYTES = 2
#: Beside weights and KV: vocabulary, graphs, threads, the allocator's slack.
_FIXED_BYTES = 8 << 20
#: ONNX Runtime copies the weights it reads, prepacks some of them, and keeps an arena for activations.
_ONNX_FACTOR = 1.5
#: A small model is held once more, for runs side by side.
_ONNX_LANES_FACTOR = 2.5


@dataclass(frozen=True, slots=True)
class Footprint:
    """Memory a model takes, bytes.

    Attributes:
        ram_bytes: of the machine.
        vram_bytes: of its GPUs.
        certain_bytes: the part of `ram_bytes` that is known rather than guessed: weights and KV cache.
        file_bytes: the size of the model's files.
    """

    ram_bytes: int
    vram_bytes: int = 0
    certain_bytes: int = 0
    file_bytes: int = 0

    def measured(self, ram_bytes: int) -> Footprint:
        """The same with what the process really grew by.

        Never less than what is certain: a process that has just closed another model grows by less than the
        new one takes, because it reuses what it has.
        """
        return replace(self, ram_bytes=max(ram_bytes, self.certain_bytes))


def estimate_gguf(path: Path, settings: ServerSettings, *, has_gpu: bool) -> Footprint:
    """What a GGUF model will take: weights + KV cache + buffers.

        contexts = 1 + adapters, at most 4
        KV cache = context x parallel x contexts x kv_bytes_per_token
        buffers  = contexts x (512 x 4 x (4 x embedding + 3 x feed_forward) + 512 x 2 x seen
                   + 4 x parallel x vocabulary) + 8 MiB

    where `seen` are the KV tokens over which attention passes, 2 bytes of mask for each row: those of a
    sequence where each has a stream of cells for itself, and of all where they share them (with speculation;
    and a model whose memory cannot be cut, which its header does not tell). With layers on a GPU, that share
    of weights and KV cache counts there, and the buffers on both sides. An encoder has no KV cache, but a
    second context to make vectors with; there llama.cpp keeps room for logits:

        second context = 512 x 4 x (4 x embedding + 3 x feed_forward + vocabulary)

    Args:
        path: the file; its header is read.
        settings: context, sequences and layers on the GPU.
        has_gpu: whether llama.cpp finds a GPU.

    Raises:
        InvalidModelFileError: the header cannot be read.
    """
    facts = read_gguf(path)
    weights = path.stat().st_size
    # Each combination of adapters has a context of its own; how many will be in use is up to the callers.
    contexts = 1 + min(len(settings.adapters), MAX_SETS)
    seen = min(settings.context, facts.context_length or settings.context)
    tokens = seen * settings.parallel * contexts if facts.is_causal else 0
    if facts.is_causal and settings.speculation != "off":
        seen *= settings.parallel
    kv = tokens * (facts.kv_bytes_per_token or 0)
    width, inner = facts.embedding_length or 0, facts.feed_forward_length or 0
    rows = _STREAM_BUFFERS * width + _FEED_FORWARD_BUFFERS * (inner or 4 * width)
    logits = 4 * (facts.vocabulary_size or 0)
    buffers = contexts * (_BATCH_ROWS * (4 * rows + _MASK_BYTES * seen) + settings.parallel * logits)
    if not facts.is_causal:
        buffers = _BATCH_ROWS * (2 * 4 * rows + _MASK_BYTES * seen + logits)
    buffers += _FIXED_BYTES
    on_gpu = _gpu_share(facts, settings.gpu_layers) if has_gpu else 0.0
    here = int((weights + kv) * (1 - on_gpu))
    return Footprint(
        ram_bytes=here + buffers,
        vram_bytes=int((weights + kv) * on_gpu) + (buffers if on_gpu else 0),
        certain_bytes=here,
        file_bytes=weights,
    )


def estimate_onnx(path: Path) -> Footprint:
    """What an ONNX model will take, in RAM: one and a half times its files, and a small one's once more.

    Args:
        path: the model file; the files beside it that hold its tensors count as well.

    Raises:
        InvalidModelFileError: it cannot be read.
    """
    from mecroute.engines.onnx.engine import MAX_LANES_BYTES

    external = read_onnx(path).external_files
    size = sum(file.stat().st_size for file in (path, *(path.parent / name for name in external)))
    # A model in several files has one lane, whatever its size.
    factor = _ONNX_LANES_FACTOR if size <= MAX_LANES_BYTES and not external else _ONNX_FACTOR
    return Footprint(int(size * factor) + _FIXED_BYTES, certain_bytes=size, file_bytes=size)


def measuring(work: Callable[[], _T]) -> tuple[_T, int]:
    """Do work, and tell by how many bytes this process's resident memory has grown meanwhile, 0 or more."""
    process = psutil.Process()
    before = process.memory_info().rss
    result = work()
    return result, max(0, process.memory_info().rss - before)


def _gpu_share(facts: GgufFacts, gpu_layers: int) -> float:
    if gpu_layers == 0:
        return 0.0
    # llama.cpp counts the output layer as one more than the header's blocks.
    layers = (facts.layers or 1) + 1
    return 1.0 if gpu_layers < 0 else min(1.0, gpu_layers / layers)
