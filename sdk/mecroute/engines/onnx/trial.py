"""Tries a model file in a child process, so that a file that crashes native code ends the child only."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from mecroute.errors import InvalidModelFileError
from mecroute_registry.onnx import OnnxFacts

#: Address space on top of a multiple of the model's own size; onnxruntime itself maps about 1 GiB.
_SPARE_BYTES = 4 << 30
_SIZE_FACTOR = 4


@dataclass(frozen=True, slots=True)
class TrialResult:
    """What a trial run showed.

    Attributes:
        free_dim: the size that worked for dimensions the model leaves open; None if no trial input worked.
        rows_independent: whether rows that are computed together come out as when computed alone.
    """

    free_dim: int | None
    rows_independent: bool


def try_model(path: Path, facts: OnnxFacts, *, timeout_s: float = 120.0) -> TrialResult:
    """Load and run a model in a child process, on the CPU, with bounded memory and time.

    Args:
        path: the model file.
        facts: its outline, already checked.
        timeout_s: > 0.

    Raises:
        InvalidModelFileError: it does not load, needs too much memory or time, or crashed the child.
    """
    size = path.stat().st_size + sum((path.parent / name).stat().st_size for name in facts.external_files)
    job = {"path": str(path), "memory_bytes": _SPARE_BYTES + _SIZE_FACTOR * size}
    # -P and an explicit path: the child must run this very package, however it was found.
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    try:
        child = subprocess.run(
            [sys.executable, "-P", "-m", "mecroute.engines.onnx._trial_child", json.dumps(job)],
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
            return TrialResult(free_dim=result["free_dim"], rows_independent=result["rows_independent"])
        reason = str(result["error"])
    except (ValueError, KeyError, TypeError):
        words = child.stderr.decode("utf-8", "replace").strip().rpartition("\n")[2]
        reason = f"the trial process ended with {child.returncode}" + (f": {words[:500]}" if words else "")
    raise InvalidModelFileError(f"{path} cannot be used: {reason}", hint="export the model again")
