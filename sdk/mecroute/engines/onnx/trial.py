"""Tries an ONNX file in a child process before it is loaded where others are served."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mecroute.engines.trial import run_trial
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
    result = run_trial(
        "mecroute.engines.onnx._trial_child",
        {"path": str(path)},
        path=path,
        memory_bytes=_SPARE_BYTES + _SIZE_FACTOR * size,
        timeout_s=timeout_s,
        hint="export the model again",
    )
    try:
        return TrialResult(free_dim=result["free_dim"], rows_independent=result["rows_independent"])
    except KeyError as error:
        raise InvalidModelFileError(
            f"{path}: the trial of this model said nothing", hint="check the model"
        ) from error
