"""The one place that imports onnxruntime: lazily, and without its telemetry."""

from __future__ import annotations

import os
from typing import Any

from mecroute.errors import MissingExtraError

#: Fastest first. Which of them are there depends on the onnxruntime package that is installed.
PREFERRED = (
    "TensorrtExecutionProvider",
    "CUDAExecutionProvider",
    "OpenVINOExecutionProvider",
    "CPUExecutionProvider",
)
#: ORT's severity 4: fatal. What goes wrong is raised, and not printed as well.
_SILENT = 4


def onnxruntime() -> Any:
    """The module onnxruntime, which is imported on the first call.

    Raises:
        MissingExtraError: it is not installed, or its native library cannot be loaded.

    Thread-safe.
    """
    # Since 1.29 it sends usage data from Linux too, unless this is set before the import.
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    try:
        import onnxruntime as module
    except ImportError as error:
        raise MissingExtraError("device", "running an ONNX model in this process") from error
    ort: Any = module  # its annotations are not strict enough for its callers' types
    ort.set_default_logger_severity(_SILENT)
    return ort


def choose_providers() -> list[str]:
    """The execution providers to use, in order: TensorRT, CUDA, OpenVINO, CPU, as far as they are there."""
    available = set(onnxruntime().get_available_providers())
    return [name for name in PREFERRED if name in available] or ["CPUExecutionProvider"]


def open_session(path: str, *, providers: list[str], n_threads: int) -> Any:
    """Load a model. What onnxruntime raises goes through as it is.

    Args:
        path: the model file.
        providers: execution providers in order; ORT leaves out those that cannot be used after all.
        n_threads: ≥ 1; CPU threads of one run.
    """
    ort = onnxruntime()
    options = ort.SessionOptions()
    options.intra_op_num_threads = n_threads
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = _SILENT
    # Idle threads that spin take the cores from the other engines of the node.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return ort.InferenceSession(path, sess_options=options, providers=providers)
