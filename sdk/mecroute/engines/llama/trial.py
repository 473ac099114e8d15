"""Tries a GGUF file in a child process before it is loaded where others are served."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from mecroute.engines.trial import run_trial
from mecroute.errors import InvalidModelFileError
from mecroute_registry.gguf import read_gguf

#: Address space on top of a multiple of the file's size: it is mapped, and repacked for the CPU.
_SPARE_BYTES = 6 << 30
_SIZE_FACTOR = 4
#: A slow disk reads this much in a second.
_SLOWEST_BYTES_PER_S = 20_000_000


def try_gguf(path: Path, *, n_threads: int, timeout_s: float = 60.0) -> None:
    """Load and run a model in a child process, on the CPU, with bounded memory and time.

    llama.cpp ends its whole process over some files whose header is sound. A file that has passed is not
    tried again by this process while its size and date stay the same.

    Args:
        path: the model file.
        n_threads: ≥ 1; CPU threads of the trial.
        timeout_s: > 0; reading a large file may take longer.

    Raises:
        InvalidModelFileError: its header is damaged, it does not load or run, or it crashed the child.
    """
    read_gguf(path)  # what Python can see, it says faster and better
    status = path.stat()
    _passes(path.resolve(), status.st_size, status.st_mtime_ns, n_threads, timeout_s)


@lru_cache(maxsize=256)  # only what has passed is remembered: errors are not
def _passes(path: Path, size: int, mtime_ns: int, n_threads: int, timeout_s: float) -> bool:
    del mtime_ns
    result = run_trial(
        "mecroute.engines.llama._trial_child",
        {"path": str(path), "n_threads": n_threads},
        path=path,
        memory_bytes=_SPARE_BYTES + _SIZE_FACTOR * size,
        timeout_s=timeout_s + size / _SLOWEST_BYTES_PER_S,
        hint="pull or register the model again, or convert it with a current llama.cpp",
    )
    if not result.get("ok"):
        raise InvalidModelFileError(f"{path}: the trial of this model said nothing", hint="check the model")
    return True
