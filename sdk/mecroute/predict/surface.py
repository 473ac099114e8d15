"""A quadratic function of a direction, evaluated in pure Python about as fast as a compiled one.

f(x) = bias + linear · x + xᵀ A x for several outputs at once. The rows of every A lie side by side in the
lanes of one big integer per column, so that a matrix times a vector is one multiplication per dimension.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Sequence
from operator import mul

_LANE_BYTES = 4
_LOW_BYTE = 0 if sys.byteorder == "little" else _LANE_BYTES - 1
_WEIGHT_OFFSET = 128  # lanes are unsigned: int8 weights are stored + 128
_STEPS = 2047  # of a coordinate, which lies within -1..1
_X_OFFSET = _STEPS + 1
# 255 × 4095 × 1024 dimensions stay below 2³².
_MAX_DIM = 1024


class QuadraticSurface:
    """Several quadratic functions of a vector of length 1 at most. Immutable, thread-safe.

    Args:
        matrices: int8 [outputs, dim, dim], each symmetric.
        scales: [outputs], what one step of each matrix stands for.
        linear: [outputs][dim].
        bias: [outputs].
    """

    def __init__(
        self,
        matrices: bytes,
        scales: Sequence[float],
        linear: Sequence[Sequence[float]],
        bias: Sequence[float],
    ) -> None:
        outputs, dim = len(bias), len(linear[0])
        if not 0 < dim <= _MAX_DIM or len(matrices) != outputs * dim * dim:
            raise ValueError(f"{outputs} matrices of {dim} × {dim} do not take {len(matrices)} bytes")
        self.dim = dim
        self._bias = tuple(bias)
        self._scales = [scale / _STEPS**2 for scale in scales]
        self._linear = [[weight / _STEPS for weight in row] for row in linear]
        signed = array("b", matrices)
        #: What the offset of x adds to each lane.
        self._shift = [_X_OFFSET * sum(signed[r * dim : (r + 1) * dim]) for r in range(outputs * dim)]
        self._columns = []
        unsigned = matrices.translate(_UNSIGNED)
        for column in range(dim):
            wide = bytearray(_LANE_BYTES * outputs * dim)
            wide[_LOW_BYTE::_LANE_BYTES] = unsigned[column::dim]
            self._columns.append(int.from_bytes(wide, sys.byteorder))

    def at(self, vector: Sequence[float]) -> list[float]:
        """The outputs for one vector, [dim] within -1..1."""
        dim = self.dim
        x = [round(value * _STEPS) for value in vector]
        total = sum(map(mul, self._columns, [value + _X_OFFSET for value in x]))
        lanes = array("I", total.to_bytes(_LANE_BYTES * len(self._shift), sys.byteorder))
        added = _WEIGHT_OFFSET * (sum(x) + _X_OFFSET * dim)
        rows = [lane - shift - added for lane, shift in zip(lanes, self._shift, strict=True)]
        return [
            bias
            + sum(map(mul, linear, x))
            + scale * sum(map(mul, rows[number * dim : (number + 1) * dim], x))
            for number, (bias, linear, scale) in enumerate(
                zip(self._bias, self._linear, self._scales, strict=True)
            )
        ]


#: int8 to int8 + 128, byte by byte.
_UNSIGNED = bytes((value + _WEIGHT_OFFSET) % 256 for value in range(256))
