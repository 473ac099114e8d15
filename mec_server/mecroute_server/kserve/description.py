"""What Triton's extensions of the protocol tell of a model: its configuration, its statistics, its state."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mecroute.engines.onnx.batcher import OnnxStats
from mecroute.engines.onnx.engine import OnnxEngine
from mecroute.engines.onnx.model import TensorSpec
from mecroute_server.kserve.datatypes import NAMES

#: Our states in Triton's words.
STATES: Mapping[str, str] = {
    "ready": "READY",
    "pulling": "LOADING",
    "verifying": "LOADING",
    "loading": "LOADING",
    "failed": "UNAVAILABLE",
    "unloaded": "UNAVAILABLE",
}
_CPU = frozenset({"CPUExecutionProvider", "OpenVINOExecutionProvider"})
_NOTHING = OnnxStats(0, 0, 0, 0, 0, 0.0)


def model_config(name: str, engine: OnnxEngine) -> dict[str, Any]:
    """Triton's ModelConfig, as far as it says something here.

    A model whose requests are computed together has a `max_batch_size`, and its `dims` then leave the first
    axis out, as Triton has it; for another it is 0.
    """
    most = engine.n_parallel if engine.batches else 0
    config: dict[str, Any] = {
        "name": name,
        "platform": "onnxruntime_onnx",
        "backend": "onnxruntime",
        "max_batch_size": most,
        "instance_group": [
            {"kind": "KIND_CPU" if set(engine.providers) <= _CPU else "KIND_GPU", "count": engine.lanes}
        ],
        "input": [{**_describe(spec, bool(most)), "optional": False} for spec in engine.inputs],
        "output": [_describe(spec, bool(most)) for spec in engine.outputs],
    }
    if most:
        config["dynamic_batching"] = {"max_queue_delay_microseconds": round(engine.max_delay_ms * 1000)}
    return config


def model_statistics(name: str, version: str, stats: OnnxStats | None) -> dict[str, Any]:
    """Triton's ModelStatistics since the model was loaded; counts of requests, rows and batches, nanoseconds.

    Args:
        name: of the model.
        version: of the model.
        stats: None where it is not in memory.
    """
    stats = stats or _NOTHING
    answered = stats.requests_total - stats.failed_total
    return {
        "name": name,
        "version": version,
        "last_inference": round((stats.last_run_at or 0) * 1000),
        "inference_count": stats.rows_total,
        "execution_count": stats.batches_total,
        "inference_stats": {
            "success": _duration(answered, stats.success_s_total),
            "fail": _duration(stats.failed_total, stats.fail_s_total),
            "queue": _duration(stats.requests_total, stats.queue_s_total),
            "compute_infer": _duration(stats.requests_total, stats.compute_s_total),
        },
        "batch_stats": [],
    }


def _duration(count: int, seconds: float) -> dict[str, int]:
    return {"count": count, "ns": round(seconds * 1e9)}


def _describe(spec: TensorSpec, without_rows: bool) -> dict[str, Any]:
    name = NAMES[spec.dtype]
    dims = [-1 if dim is None else dim for dim in spec.shape]
    return {
        "name": spec.name,
        "data_type": "TYPE_STRING" if name == "BYTES" else f"TYPE_{name}",
        "dims": dims[1:] if without_rows else dims,
    }
