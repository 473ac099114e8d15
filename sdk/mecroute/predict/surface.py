"""Quadratic functions of a vector, evaluated in pure Python about as fast as compiled ones.

f(x) = linear · x + Σ curvature × (direction · x)², for several outputs at once. All directions lie side by
side in the lanes of one big integer per dimension, so that projecting on every one of them is a
multiplication per dimension.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from operator import mul

_LANE_BYTES = 4
_LOW_BYTE = 0 if sys.byteorder == "little" else _LANE_BYTES - 1
_OFFSET = 128  # lanes are unsigned: int8 coordinates of directions are stored + 128
#: x is given in whole steps: a coordinate of 1 is 2047 of them.
STEPS = 2047
_X_OFFSET = STEPS + 1
#: 255 × 4095 × 1024 dimensions stay below 2³².
MAX_DIM = 1024


@dataclass(frozen=True)
class SurfaceWeights:
    """The numbers of a surface.

    Args:
        directions: int8 [outputs × rank, dim].
        curvature: [outputs][rank].
        linear: [outputs][dim].
    """

    directions: bytes
    curvature: Sequence[Sequence[float]]
    linear: Sequence[Sequence[float]]


class QuadraticSurface:
    """Several quadratic functions of a vector with coordinates within -1..1. Immutable, thread-safe."""

    def __init__(self, weights: SurfaceWeights) -> None:
        dim = len(weights.linear[0])
        lanes = sum(map(len, weights.curvature))
        if not 0 < dim <= MAX_DIM or len(weights.directions) != lanes * dim:
            raise ValueError(f"{lanes} directions of {dim} take not {len(weights.directions)} bytes")
        self.dim = dim
        self._lanes = lanes
        self._linear = [[weight / STEPS for weight in row] for row in weights.linear]
        self._curvature = [[bent / STEPS**2 for bent in row] for row in weights.curvature]
        signed = array("b", weights.directions)
        #: What the offset of x adds to each lane.
        offset = _OFFSET * _X_OFFSET * dim
        self._shift = [
            offset + _X_OFFSET * sum(signed[lane * dim : (lane + 1) * dim]) for lane in range(lanes)
        ]
        self._columns = []
        unsigned = weights.directions.translate(_UNSIGNED)
        for column in range(dim):
            wide = bytearray(_LANE_BYTES * lanes)
            wide[_LOW_BYTE::_LANE_BYTES] = unsigned[column::dim]
            self._columns.append(int.from_bytes(wide, sys.byteorder))
        #: Keeps every lane positive for x of either sign.
        self._begin = _X_OFFSET * sum(self._columns)

    def at(self, steps: Sequence[int]) -> list[float]:
        """The outputs for one vector, [dim], in steps of 1/2047: see `STEPS`."""
        total = sum(map(mul, self._columns, steps), self._begin)
        added = _OFFSET * sum(steps)
        lanes = array("I", total.to_bytes(_LANE_BYTES * self._lanes, sys.byteorder))
        squares = [(lane - shift - added) ** 2 for lane, shift in zip(lanes, self._shift, strict=True)]
        found, begin = [], 0
        for linear, curvature in zip(self._linear, self._curvature, strict=True):
            end = begin + len(curvature)
            found.append(sum(map(mul, linear, steps)) + sum(map(mul, curvature, squares[begin:end])))
            begin = end
        return found


#: int8 to int8 + 128, byte by byte.
_UNSIGNED = bytes((value + _OFFSET) % 256 for value in range(256))
