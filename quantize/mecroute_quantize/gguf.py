"""Quantizes a GGUF file with llama.cpp's own quantizer, in a process of its own."""

from __future__ import annotations

import importlib.util
import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from mecroute.device.hardware import default_threads
from mecroute.errors import ArtifactError, InvalidModelFileError, MissingExtraError, UsageError
from mecroute_quantize.formats import QUANTIZATIONS, parse_quantization
from mecroute_registry.gguf import read_gguf

#: Called with the share done, 0 to 1.
Progress = Callable[[float], None]

_KEPT_LOG_LINES = 8


@dataclass(frozen=True, slots=True)
class QuantizedFile:
    """A GGUF file that the quantizer made.

    Args:
        path: where it is.
        quantization: what was asked for, e.g. `Q4_K_M`.
        tensor_types: tensors per type that the file really has, e.g. `{"F32": 61, "Q5_0": 210}`.
        fallback_tensors: tensors that got another type than asked for, because their rows are not
            divisible by the block size of that type (256 for the K and most I quants).
        source_bytes: size of the file it was made from.
        size_bytes: its own size.
    """

    path: Path
    quantization: str
    tensor_types: Mapping[str, int]
    fallback_tensors: int
    source_bytes: int
    size_bytes: int


def quantize_gguf(
    source: Path,
    target: Path,
    quantization: str,
    *,
    threads: int | None = None,
    progress: Progress | None = None,
) -> QuantizedFile:
    """Write `source` anew with another quantization.

    The target appears under its name only when it is complete and llama.cpp has loaded it; when
    anything fails, or `progress` raises, nothing is left behind. A source that is itself quantized is
    dequantized first, so the result is never better than the source.

    Args:
        source: a GGUF file, of any tensor types.
        target: where to write; a file of that name is replaced.
        quantization: one of `QUANTIZATIONS`, in any case.
        threads: > 0; all usable CPUs by default.
        progress: called in this thread with the share of tensors done, 0 to 1.

    Returns:
        What was made.

    Raises:
        UsageError: no such quantization, no such folder, or source and target are the same file.
        InvalidModelFileError: the source cannot be read.
        ArtifactError: the quantizer refused, ran out of room, or died.
        MissingExtraError: llama-cpp-python is not installed.

    Thread safety: may be called from several threads.
    """
    quantization = parse_quantization(quantization)
    if threads is not None and threads < 1:
        raise UsageError(f"threads is {threads}, which must be at least 1")
    if not target.parent.is_dir():
        raise UsageError(f"the folder {target.parent} does not exist", hint=f"mkdir -p {target.parent}")
    read_gguf(source)
    if target.exists() and target.samefile(source):
        raise UsageError(f"source and target are the same file: {source}")
    if importlib.util.find_spec("llama_cpp") is None:
        raise MissingExtraError("device", "quantizing a GGUF model")

    partial = target.parent / f".{target.name}.{secrets.token_hex(6)}.partial"
    job: dict[str, str | int] = {
        "source": str(source.resolve()),
        "target": str(partial.resolve()),
        "ftype": QUANTIZATIONS[quantization],
        "threads": threads or default_threads(),
    }
    try:
        fallback_tensors = _run(job, source, quantization, progress)
        facts = read_gguf(partial)
        _flush(partial)
        size_bytes = partial.stat().st_size
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)
    return QuantizedFile(
        path=target,
        quantization=quantization,
        tensor_types=facts.tensor_types,
        fallback_tensors=fallback_tensors,
        source_bytes=source.stat().st_size,
        size_bytes=size_bytes,
    )


def _run(job: dict[str, str | int], source: Path, quantization: str, progress: Progress | None) -> int:
    """Run the child to its end; return how many tensors fell back to another type."""
    fallbacks, ok = 0, False
    logged: deque[str] = deque(maxlen=_KEPT_LOG_LINES)
    with tempfile.TemporaryFile() as stderr:
        with _child(job, stderr) as child:
            if progress is not None:
                progress(0.0)
            assert child.stdout is not None
            for line in child.stdout:
                event = json.loads(line)
                match event["event"]:
                    case "step":
                        if progress is not None:
                            progress(event["done"] / event["total"])
                    case "log":
                        # One fallback is two log events; this is the second.
                        fallbacks += event["text"].startswith("-> falling back")
                        logged.append(event["text"])
                    case "end":
                        ok = event["ok"]
            status = child.wait()
        if not ok or status != 0:
            stderr.seek(0)
            printed = stderr.read().decode("utf-8", "replace").strip().splitlines()
            raise _failure(source, quantization, status, logged, printed)
    return fallbacks


@contextmanager
def _child(job: dict[str, str | int], stderr: IO[bytes]) -> Iterator[subprocess.Popen[str]]:
    child = subprocess.Popen(
        # -P: the current folder must not provide modules.
        [sys.executable, "-P", "-m", "mecroute_quantize._gguf_child", json.dumps(job)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
        encoding="utf-8",
        # The child must find the same packages, however this process came to find them.
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
    )
    try:
        yield child
    finally:
        child.kill()
        child.wait()
        for stream in (child.stdin, child.stdout):
            if stream is not None:
                stream.close()


def _failure(
    source: Path, quantization: str, status: int, logged: deque[str], printed: list[str]
) -> ArtifactError:
    what = f"quantizing {source} to {quantization} failed"
    if status == -signal.SIGKILL:
        return ArtifactError(
            f"{what}: the quantizer was killed",
            hint="most often the system ran out of memory: free some, or use a machine that has more",
            retryable=True,
        )
    if status < 0:
        reason = next((line for line in reversed(printed) if "GGML_ASSERT" in line), "no reason was given")
        return InvalidModelFileError(
            f"{what}: llama.cpp aborted with {signal.Signals(-status).name}: {reason}",
            hint="the model may have an architecture or a tensor type that it cannot convert; try Q8_0",
        )
    # llama.cpp names the cause in its last log line; a Python failure of the child is on standard error.
    reason = logged[-1] if logged else (printed[-1] if printed else "no reason was given")
    return ArtifactError(
        f"{what}: {reason}", hint="check that there is room on the disk, and that the model loads at all"
    )


def _flush(path: Path) -> None:
    with path.open("rb+") as file:
        os.fsync(file.fileno())
