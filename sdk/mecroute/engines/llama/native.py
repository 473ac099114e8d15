"""The one place that imports llama.cpp's bindings: lazily, silenced, initialised once.

The bindings have no usable types (ctypes), so they are `Any` from here on.
"""

from __future__ import annotations

import ctypes
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from mecroute.errors import MissingExtraError

#: ggml_log_level: WARN and ERROR are worth keeping, CONT continues the line before it.
_WARN, _ERROR, _CONT = 3, 4, 5

_lock = threading.Lock()
_lib: Any = None
_callback: Any = None  # llama.cpp keeps only the address
_log = threading.local()


def llama() -> Any:
    """Return the module of llama.cpp's C API (`llama_cpp.llama_cpp`), importing it on the first call.

    Raises:
        MissingExtraError: llama-cpp-python is not installed, or its native library cannot be loaded.

    Thread-safe.
    """
    global _lib, _callback
    if _lib is not None:
        return _lib
    with _lock:
        if _lib is None:
            try:
                from llama_cpp import llama_cpp as lib
            except (ImportError, OSError, RuntimeError) as error:
                raise MissingExtraError("device", "running a GGUF model in this process") from error
            module: Any = lib  # pyright reads the bindings' annotations, which are not its callers' types
            _callback = module.llama_log_callback(_on_log)
            module.llama_log_set(_callback, ctypes.c_void_p(0))
            module.llama_backend_init()
            _lib = module
    return _lib


def ggml() -> Any:
    """The library of devices under llama.cpp, with the functions that tell of them.

    Raises:
        MissingExtraError: see `llama`.
    """
    llama()
    from llama_cpp._ggml import libggml

    library: Any = libggml
    device, size = ctypes.c_void_p, ctypes.POINTER(ctypes.c_size_t)
    for name, result, arguments in (
        ("count", ctypes.c_size_t, []),
        ("get", device, [ctypes.c_size_t]),
        ("type", ctypes.c_int, [device]),
        ("name", ctypes.c_char_p, [device]),
        ("description", ctypes.c_char_p, [device]),
        ("memory", None, [device, size, size]),
    ):
        function = library[f"ggml_backend_dev_{name}"]
        function.restype, function.argtypes = result, arguments
        setattr(library, f"ggml_backend_dev_{name}", function)
    return library


def keeping_gil(function: str) -> Any:
    """A function of the C API, bound so that it does not release the GIL.

    For calls of microseconds from the engine's thread: each release may cost a wait of up to
    `sys.getswitchinterval()` (5 ms) until another thread gives the GIL back.
    """
    lib = llama()
    bound = ctypes.PyDLL(lib._lib._name)[function]
    released = getattr(lib, function)
    bound.argtypes, bound.restype = released.argtypes, released.restype
    return bound


def _on_log(level: int, text: bytes, _user_data: object) -> None:
    tail: deque[str] | None = getattr(_log, "tail", None)
    if tail is None:
        return
    line = text.decode("utf-8", "replace").strip()
    if level == _CONT and tail and _log.keeping:
        tail[-1] = f"{tail[-1]} {line}".strip()
    elif level != _CONT:
        _log.keeping = level in (_WARN, _ERROR)
        if _log.keeping and line:
            tail.append(line)


@contextmanager
def captured_log() -> Iterator[deque[str]]:
    """Collect the warnings and errors llama.cpp logs from this thread (the last 20 lines).

    Thread-safe: each thread sees its own lines.
    """
    tail: deque[str] = deque(maxlen=20)
    _log.tail, _log.keeping = tail, False
    try:
        yield tail
    finally:
        _log.tail = None


def last_words(tail: deque[str]) -> str:
    """The lines that say why something failed, for the end of an error message; empty if none."""
    if not tail:
        return ""
    # The first lines name the cause; those after it only repeat that loading failed.
    return ": " + "; ".join(list(tail)[:2])


def system_info() -> str:
    """What llama.cpp found of the CPU and GPU, in its own words (`CPU : AVX512 = 1 | …`)."""
    return str(llama().llama_print_system_info().decode("utf-8", "replace")).strip()


def supports_gpu() -> bool:
    """Whether this build of llama.cpp can offload layers to a GPU."""
    return bool(llama().llama_supports_gpu_offload())
