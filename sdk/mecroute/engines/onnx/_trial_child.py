"""The process in which a model file is tried: `python -P -m mecroute.engines.onnx._trial_child JOB`.

JOB is a JSON object: `path`, `memory_bytes` (address space this process may use). The last line of standard
output is a JSON object: `free_dim` and `rows_independent`, or `error`.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mecroute.engines.onnx.model import OnnxModel
from mecroute.engines.trial import report_trial

#: Sizes tried for dimensions that the model leaves open; images need more than sequences.
_FREE_DIMS = (4, 16, 64, 224)
#: Difference between a row computed with others and alone, as a share of its length (L2). Dynamically
#: quantized models scale a whole batch by its largest value: int8 MiniLM differs by 0.1. Rows that really
#: depend on each other (a sum, a softmax over them) differ by 0.5 and more.
_TOLERANCE = 0.25
_MAX_ELEMENTS = 1 << 24


def _make_inputs(model: OnnxModel, rows: int, free_dim: int, seed: int) -> dict[str, Any] | None:
    """Small whole numbers: valid as token ids, masks, pixels and features alike."""
    rng = np.random.default_rng(seed)
    made: dict[str, Any] = {}
    for spec in model.inputs:
        shape = [free_dim if dim is None else dim for dim in spec.shape]
        if shape and spec.shape[0] is None:
            shape[0] = rows
        if np.prod(shape, dtype=np.float64) > _MAX_ELEMENTS:
            return None
        values = rng.integers(0, 2, shape) if shape else np.asarray(1)
        if "mask" in spec.name:
            values = np.ones_like(values)
        made[spec.name] = (
            values.astype(str).astype(object) if spec.is_text else values.astype(spec.array_dtype)
        )
    return made


def _rows_independent(model: OnnxModel, free_dim: int) -> bool:
    parts = [_make_inputs(model, 1, free_dim, seed) for seed in (1, 2, 3)]
    assert all(part is not None for part in parts)
    one_by_one = [model.run(part) for part in parts if part is not None]
    together = model.run(
        {spec.name: np.concatenate([part[spec.name] for part in parts if part]) for spec in model.inputs}
    )
    for name, whole in together.items():
        alone = [outputs[name] for outputs in one_by_one]
        if any(output.ndim < 1 or len(output) != 1 for output in alone) or len(whole) != len(alone):
            return False
        stacked = np.concatenate(alone) if len({output.shape for output in alone}) == 1 else None
        if stacked is None or stacked.shape != whole.shape or not _close(stacked, whole):
            return False
    return True


def _close(one: Any, other: Any) -> bool:
    if one.dtype.kind != "f":
        return bool(np.array_equal(one, other))
    if not (np.isfinite(one).all() and np.isfinite(other).all()):
        return bool(np.array_equal(one, other, equal_nan=True))
    alone = one.astype(np.float64).reshape(len(one), -1)
    error = np.linalg.norm(other.astype(np.float64).reshape(alone.shape) - alone, axis=1)
    return bool((error <= _TOLERANCE * np.linalg.norm(alone, axis=1) + 1e-6).all())


def try_out(job: Mapping[str, Any]) -> Mapping[str, Any]:
    """Load and run the model; what is to be reported."""
    model = OnnxModel(Path(job["path"]), providers=["CPUExecutionProvider"], n_threads=1)
    for free_dim in _FREE_DIMS:
        inputs = _make_inputs(model, 1, free_dim, 0)
        if inputs is None:
            continue
        try:
            model.run(inputs)
        except MemoryError:
            raise
        except Exception as error:  # noqa: BLE001 - ORT raises its own kinds; most mean "not these inputs"
            if any(words in str(error) for words in ("bad_alloc", "allocate memory", "BFCArena")):
                return {"error": f"it needs too much memory: {error}"}
            continue
        independent = model.has_row_axis and _rows_independent(model, free_dim)
        return {"free_dim": free_dim, "rows_independent": independent}
    return {"free_dim": None, "rows_independent": False}


if __name__ == "__main__":
    sys.exit(report_trial(try_out))
