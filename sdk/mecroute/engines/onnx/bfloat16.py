"""Tensors of bfloat16, which numpy does not have: held as float32, the upper half of whose bits it is."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mecroute.engines.onnx.native import onnxruntime

#: TensorProto.BFLOAT16.
_BFLOAT16 = 16


def to_bfloat16(values: Any) -> Any:
    """The bits of the nearest bfloat16 of each value, ties to even: float32 in, uint16 of the same shape out.

    A NaN stays one; what is beyond bfloat16's range becomes infinite.
    """
    bits = np.array(values, np.float32, order="C").view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return np.asarray(np.where(np.isnan(values), (bits >> 16) | 0x40, rounded)).astype(np.uint16)


def from_bfloat16(bits: Any) -> Any:
    """The values of such bits: uint16 in, float32 of the same shape out."""
    return np.asarray(np.asarray(bits).astype(np.uint32, order="C") << 16).view(np.float32)


def run_bfloat16(
    session: Any, names: Sequence[str], inputs: Mapping[str, Any], bfloat16: frozenset[str]
) -> dict[str, Any]:
    """Run a session some of whose inputs or outputs are bfloat16.

    Args:
        session: onnxruntime's.
        names: the outputs wanted.
        inputs: an array per input; float32 for those that are bfloat16.
        bfloat16: names of the inputs and outputs that are.

    Returns:
        An array per output; float32 for those that are bfloat16.
    """
    ort_value = onnxruntime().OrtValue
    given = {
        name: ort_value.ortvalue_from_numpy_with_onnx_type(to_bfloat16(array), _BFLOAT16)
        if name in bfloat16
        else ort_value.ortvalue_from_numpy(array)
        for name, array in inputs.items()
    }
    outputs = session.run_with_ort_values(list(names), given)
    return {
        name: _bfloat16_array(value) if name in bfloat16 else value.numpy()
        for name, value in zip(names, outputs, strict=True)
    }


def _bfloat16_array(value: Any) -> Any:
    """A copy, since the memory goes with the OrtValue."""
    shape = tuple(value.shape())
    if 0 in shape:
        return np.zeros(shape, np.float32)
    pointer = ctypes.cast(value.data_ptr(), ctypes.POINTER(ctypes.c_uint16))
    return from_bfloat16(np.ctypeslib.as_array(pointer, shape).copy())
