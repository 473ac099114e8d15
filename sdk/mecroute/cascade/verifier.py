"""A verifier: how likely an answer is right, by everything that was measured of it.

Ridge logistic regression by Newton's method (iteratively reweighted least squares), in plain Python: a device
without numpy learns it from its own judged answers.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from operator import mul

_LIMIT = 4.0
_NEWTON_STEPS = 25
_CONVERGED = 1e-6


@dataclass(frozen=True, slots=True)
class Verifier:
    """A logistic model. Thread-safe.

    Args:
        mean, scale: per feature, of the answers it was fitted to.
        name: tells two of them apart.
    """

    mean: tuple[float, ...]
    scale: tuple[float, ...]
    weights: tuple[float, ...]
    bias: float
    name: str

    def probability(self, features: Sequence[float]) -> float:
        """Probability, 0..1, that the answer is right."""
        z = self.bias + sum(map(mul, self.weights, _standard(features, self.mean, self.scale)))
        return 1 / (1 + math.exp(-max(-30.0, min(30.0, z))))


def fit_verifier(
    rows: Sequence[Sequence[float]], right: Sequence[bool], *, ridge: float = 10.0, scale_floor: float = 0.05
) -> Verifier | None:
    """Fit a verifier; None where the answers are all right or all wrong.

    Args:
        rows: float [answers, features].
        right: one per answer.
        ridge: on standardised features; by default a few hundred answers outweigh it.
        scale_floor: added to each feature's standard deviation.
    """
    if not rows or all(right) or not any(right):
        return None
    count = len(rows)
    raw = list(zip(*rows, strict=True))
    mean = tuple(sum(column) / count for column in raw)
    scale = tuple(
        math.sqrt(sum((value - middle) ** 2 for value in column) / count) + scale_floor
        for column, middle in zip(raw, mean, strict=True)
    )
    columns = [list(column) for column in zip(*(_standard(row, mean, scale) for row in rows), strict=True)]
    columns.append([1.0] * count)
    weights = _newton(columns, [float(value) for value in right], ridge)
    name = zlib.crc32(json.dumps([round(value, 6) for value in weights]).encode())
    return Verifier(mean, scale, tuple(weights[:-1]), weights[-1], f"verifier-{name:08x}")


def _standard(row: Sequence[float], mean: Sequence[float], scale: Sequence[float]) -> list[float]:
    return [
        min(_LIMIT, max(-_LIMIT, (value - middle) / width))
        for value, middle, width in zip(row, mean, scale, strict=True)
    ]


def _newton(columns: list[list[float]], target: list[float], shrink: float) -> list[float]:
    """The ridge makes the problem strictly convex; the last column is the constant, which is not shrunk."""
    size = len(columns)
    penalty = [shrink] * (size - 1) + [1e-6]
    weights = [0.0] * size
    for _ in range(_NEWTON_STEPS):
        chances = [
            1 / (1 + math.exp(-max(-30.0, min(30.0, sum(map(mul, weights, row))))))
            for row in zip(*columns, strict=True)
        ]
        surplus = [chance - wanted for chance, wanted in zip(chances, target, strict=True)]
        spread = [chance * (1 - chance) for chance in chances]
        gradient = [
            sum(map(mul, column, surplus)) + ridge * weight
            for column, ridge, weight in zip(columns, penalty, weights, strict=True)
        ]
        curvature = [[0.0] * size for _ in range(size)]
        for i, column in enumerate(columns):
            weighted = list(map(mul, column, spread))
            for j in range(i + 1):
                curvature[i][j] = curvature[j][i] = sum(map(mul, weighted, columns[j]))
            curvature[i][i] += penalty[i]
        step = _solve(curvature, gradient)
        weights = [weight - change for weight, change in zip(weights, step, strict=True)]
        if max(map(abs, step)) < _CONVERGED:
            break
    return weights


def _solve(matrix: list[list[float]], wanted: list[float]) -> list[float]:
    """A symmetric positive definite system, by Cholesky's decomposition."""
    size = len(wanted)
    lower = [[0.0] * size for _ in range(size)]
    for i in range(size):
        for j in range(i + 1):
            left = matrix[i][j] - sum(map(mul, lower[i][:j], lower[j][:j]))
            lower[i][j] = math.sqrt(max(left, 1e-12)) if i == j else left / lower[j][j]
    forward: list[float] = []
    for i in range(size):
        forward.append((wanted[i] - sum(map(mul, lower[i][:i], forward))) / lower[i][i])
    found = [0.0] * size
    for i in reversed(range(size)):
        rest = sum(lower[k][i] * found[k] for k in range(i + 1, size))
        found[i] = (forward[i] - rest) / lower[i][i]
    return found
