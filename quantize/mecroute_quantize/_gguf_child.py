"""The process in which llama.cpp quantizes: `python -P -m mecroute_quantize._gguf_child JOB`.

llama.cpp aborts the whole process on an internal assertion, so it runs here and not in the caller.
JOB is a JSON object: `source`, `target` (paths), `ftype` (llama_ftype), `threads`. Standard output carries
one JSON object per line, whose `event` is `step` (`done`, `total`), `log` (`text`, warnings and errors only)
or `end` (`ok`). Standard input is held open by the
caller; when it closes, the caller is gone, and so is this process.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import signal
import sys
import threading
from pathlib import Path
from typing import Any, TextIO

_STEP = re.compile(r"^\[\s*(\d+)/\s*(\d+)\]")
_GGML_LOG_WARN = 3
_GGML_LOG_ERROR = 4
_GGML_LOG_CONT = 5


class _Reporter:
    """Turns llama.cpp's log into events on the protocol stream."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._level = 0

    def send(self, event: str, **data: Any) -> None:
        print(json.dumps({"event": event, **data}), file=self._out, flush=True)

    def log(self, level: int, raw: bytes | None, _user_data: object) -> None:
        text = (raw or b"").decode("utf-8", "replace")
        if level != _GGML_LOG_CONT:
            self._level = level
        if step := _STEP.match(text):
            self.send("step", done=int(step[1]), total=int(step[2]))
        elif self._level in (_GGML_LOG_WARN, _GGML_LOG_ERROR) and text.strip():
            self.send("log", text=text.strip())


def _end_with_caller(target: Path) -> None:
    sys.stdin.buffer.read()
    target.unlink(missing_ok=True)
    os._exit(1)


def _quantize(job: dict[str, Any], reporter: _Reporter) -> bool:
    from llama_cpp import llama_cpp as bindings

    llama_cpp: Any = bindings  # pyright reads the bindings' annotations, which are not its callers' types
    callback = llama_cpp.llama_log_callback(reporter.log)
    llama_cpp.llama_log_set(callback, None)
    llama_cpp.llama_backend_init()
    # Always from the defaults: the struct grows between releases (a field was added in 0.3.36).
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = job["ftype"]
    params.nthread = job["threads"]
    params.allow_requantize = True
    target = os.fsencode(job["target"])
    if llama_cpp.llama_model_quantize(os.fsencode(job["source"]), target, ctypes.byref(params)) != 0:
        return False

    # Reading the result back, as a server would, proves that it loads. Repacking is left out: it would cost
    # time and memory for nothing.
    load = llama_cpp.llama_model_default_params()
    load.n_gpu_layers = 0
    load.use_extra_bufts = False
    load.check_tensors = True
    model = llama_cpp.llama_model_load_from_file(target, load)
    if not model:
        return False
    llama_cpp.llama_model_free(model)
    return True


def main() -> int:
    """Do the job named on the command line; 0 when the target is complete and loads."""
    # Ctrl-C reaches the whole process group; the caller decides, and ends this process.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Whatever native code prints must not end up between the events.
    protocol = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    job = json.loads(sys.argv[1])
    threading.Thread(target=_end_with_caller, args=(Path(job["target"]),), daemon=True).start()
    reporter = _Reporter(protocol)
    ok = _quantize(job, reporter)
    reporter.send("end", ok=ok)
    return 0 if ok else 1


if __name__ == "__main__":
    # No interpreter shutdown: the reader thread holds standard input, and finalizing around it can hang.
    os._exit(main())
