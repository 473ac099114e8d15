"""Tries a model file in a child process, so that a file that crashes native code ends the child only."""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from mecroute.errors import InvalidModelFileError

#: A trial computes on the CPU: no GPU memory is taken from the engines that serve. A crash is expected, and
#: ggml would start a debugger to print where it came from.
_ENVIRONMENT = {"CUDA_VISIBLE_DEVICES": "-1", "HIP_VISIBLE_DEVICES": "-1", "GGML_NO_BACKTRACE": "1"}
#: What native code says last when it ends its process on purpose.
_LAST_WORDS = re.compile(rb"^.*(?:what\(\):|GGML_ASSERT|GGML_ABORT|Error).*$", re.MULTILINE)


def run_trial(
    module: str, job: Mapping[str, Any], *, path: Path, memory_bytes: int, timeout_s: float, hint: str
) -> Mapping[str, Any]:
    """Run a trial's module as a child, with bounded memory and time.

    Args:
        module: calls `report_trial` when it is run as a program.
        job: what it is told, as JSON types.
        path: the model file, for errors.
        memory_bytes: address space that the child may use, where the system has such a limit.
        timeout_s: > 0.
        hint: what to do about a file that does not pass.

    Returns:
        What the child reports.

    Raises:
        InvalidModelFileError: the child found the file unusable, needs too much memory or time, or crashed.
    """
    # -P and an explicit path: the child must run this very package, however it was found.
    environment = {**os.environ, **_ENVIRONMENT, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    told = json.dumps({**job, "memory_bytes": memory_bytes})
    try:
        child = subprocess.run(
            [sys.executable, "-P", "-m", module, told],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=timeout_s,
            env=environment,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise InvalidModelFileError(
            f"{path} did not load and run within {timeout_s:.0f} s", hint="check the model"
        ) from error
    try:
        result = json.loads(child.stdout.decode("utf-8", "replace").strip().rpartition("\n")[2])
        if "error" not in result:
            return dict(result)
        reason = str(result["error"])
    except (ValueError, KeyError, TypeError):
        said = _LAST_WORDS.findall(child.stderr) or child.stderr.strip().splitlines()
        words = said[-1].decode("utf-8", "replace").strip()[:500] if said else ""
        reason = f"the trial process {_ending(child.returncode)}" + (f": {words}" if words else "")
    raise InvalidModelFileError(f"{path} cannot be used: {reason}", hint=hint)


def _ending(code: int) -> str:
    if code >= 0:
        return f"ended with {code}"
    try:
        return f"was ended by {signal.Signals(-code).name}"
    except ValueError:
        return f"was ended by signal {-code}"


def report_trial(work: Callable[[Mapping[str, Any]], Mapping[str, Any]]) -> int:
    """The child's side: do the job on the command line and print what comes of it as the last line.

    Args:
        work: takes the job; returns JSON types, or raises.
    """
    job = json.loads(sys.argv[1])
    limit = int(job["memory_bytes"])
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with suppress(ValueError, OSError):  # macOS has no such limit; a lower one may be set already
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    result: Mapping[str, Any]
    try:
        result = work(job)
    except MemoryError:
        result = {"error": "it needs too much memory"}
    except Exception as error:  # noqa: BLE001 - the edge of this process: the caller reads what went wrong
        result = {"error": f"{error}"[:1000]}
    print(json.dumps(result), flush=True)
    return 0
