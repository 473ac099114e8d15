"""Tiny ONNX models, written on the spot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

FLOAT, INT64, STRING = TensorProto.FLOAT, TensorProto.INT64, TensorProto.STRING


def write_onnx(
    path: Path,
    nodes: list[Any],
    inputs: list[tuple[str, int, list[Any]]],
    outputs: list[tuple[str, int, list[Any]]],
    constants: dict[str, Any] | None = None,
    external: str | None = None,
) -> Path:
    """Write a graph of `nodes`; inputs and outputs are (name, element type, shape).

    Args:
        path: the file.
        nodes: what it computes.
        inputs, outputs: of the graph.
        constants: its stored tensors.
        external: a file beside it that holds them; default: the file itself.
    """
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info(*spec) for spec in inputs],
        [helper.make_tensor_value_info(*spec) for spec in outputs],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in (constants or {}).items()],
    )
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8, producer_name="tests"
    )
    if external is None:
        onnx.save(model, str(path))
    else:
        onnx.save(model, str(path), save_as_external_data=True, location=external, size_threshold=0)
    return path


def write_classifier(path: Path, *, rows: Any = "batch") -> Path:
    """`logits = x @ w + b`: x float32 [rows, 3], logits float32 [rows, 2], label int64 [rows]."""
    return write_onnx(
        path,
        [
            helper.make_node("MatMul", ["x", "w"], ["xw"]),
            helper.make_node("Add", ["xw", "b"], ["logits"]),
            helper.make_node("ArgMax", ["logits"], ["label"], axis=1, keepdims=0),
        ],
        [("x", FLOAT, [rows, 3])],
        [("logits", FLOAT, [rows, 2]), ("label", INT64, [rows])],
        {"w": CLASSIFIER_W, "b": CLASSIFIER_B},
    )


CLASSIFIER_W = np.array([[1, -1], [2, 0], [0, 3]], np.float32)
CLASSIFIER_B = np.array([0.5, -0.5], np.float32)


def classify(x: Any) -> Any:
    """What the classifier's logits must be."""
    return x @ CLASSIFIER_W + CLASSIFIER_B


def write_identity(path: Path, element_type: int, shape: list[Any]) -> Path:
    """`y = x` of any element type."""
    node = helper.make_node("Identity", ["x"], ["y"])
    return write_onnx(path, [node], [("x", element_type, shape)], [("y", element_type, shape)])


def write_cumulative(path: Path) -> Path:
    """`y[i] = x[0] + … + x[i]`: an open first axis whose rows depend on each other."""
    node = helper.make_node("CumSum", ["x", "axis"], ["y"])
    return write_onnx(path, [node], [("x", FLOAT, ["n"])], [("y", FLOAT, ["n"])], {"axis": np.int64(0)})
