"""Trains a quality predictor: kernel ridge regression on word vectors and shape, with quadratic kernels.

Two heads share one kernel: whether the weak model is right, and whether the strong one is. A quadratic
kernel makes the predictor a quadratic function, which is evaluated without the training texts. How strongly
it is smoothed is chosen by the leave-one-out error of both heads on the training rows alone; that error is
far less noisy than the ranking which is wanted in the end (docs/quality.md).
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mecroute.errors import MissingExtraError, UsageError
from mecroute.learn.outcomes import Labelled
from mecroute.predict.quality_model import Weights
from mecroute.predict.shape import shape
from mecroute.predict.surface import SurfaceWeights
from mecroute.predict.token_vectors import TokenVectors, read_words

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[Any]

HEADS = ("weak", "strong")
MIN_ROWS = 20
#: The kernel matrix grows with the square; of more rows the newest, which come last, are used.
MAX_ROWS = 6000
_TEXT_SQUARE, _SHAPE_SQUARE = 0.25, 1.0  # weights of the squared similarities; the error is flat around them
_SCALE_FLOOR = 0.1  # so that a count that hardly varies is not blown up
_LIMIT = 4.0  # standard deviations beyond which a count tells no more
#: Directions kept of each quadratic form: 8 reproduce it on MMLU with correlation 0.998.
_RANK = 8
#: Of the word vectors; the other 64 lower the leave-one-out error on MMLU from 0.1596 to 0.1594 only.
_DIMS = 96
_SHAPE_SHARES = (0.25, 0.5, 0.75)
_RIDGES = (2.0, 4.0, 8.0, 16.0, 32.0)


@dataclass(frozen=True)
class _Features:
    """Texts as kernels see them: centred vectors [n, dim] and shapes [n, shapes], of mean square 1 each."""

    text: Floats
    shape: Floats


@dataclass(frozen=True)
class _Choice:
    """What leave-one-out chose: the part of the shape in the kernel, and the ridge."""

    share: float
    ridge: float
    error: float


def train_quality(
    rows: Sequence[Labelled], vectors: TokenVectors, *, about: Mapping[str, Any] | None = None
) -> Weights:
    """Learn from labelled prompts how likely a weak and a strong model are to be right.

    Args:
        rows: at least 20; of more than 6,000 the last are used.
        about: what the file is to say of its origin.

    Returns:
        Weights with the heads `weak` and `strong`.

    Raises:
        UsageError: there are too few rows, or the labels are all the same.
        MissingExtraError: numpy is not installed.
    """
    try:
        import numpy as np
    except ImportError as error:
        raise MissingExtraError("device", "training a quality predictor") from error
    rows = usable(rows)
    labels = np.array([(row.weak, row.strong) for row in rows], dtype=np.float64)
    read = [(row.prompt, read_words(row.prompt)) for row in rows]
    directions = np.array([vectors.vector(words, min(_DIMS, vectors.dim)) for _, words in read])
    shapes = np.array([shape(text, words) for text, words in read])
    shape_mean, shape_scale = shapes.mean(0), _LIMIT * (shapes.std(0) + _SCALE_FLOOR)
    standard = np.clip((shapes - shape_mean) / shape_scale, -1, 1)
    centres = directions.mean(0), standard.mean(0)
    spreads = _spread(np, directions, centres[0]), _spread(np, standard, centres[1])
    features = _Features((directions - centres[0]) / spreads[0], (standard - centres[1]) / spreads[1])
    choice = _choose(np, features, labels)
    kernel, weights = _kernel(np, features, choice.share)
    alpha = np.linalg.solve(kernel + choice.ridge * np.eye(len(rows)), labels)
    text, text_bias = _surface(np, features.text, alpha, weights[0], _TEXT_SQUARE, centres[0], spreads[0])
    form, form_bias = _surface(np, features.shape, alpha, weights[1], _SHAPE_SQUARE, centres[1], spreads[1])
    return Weights(
        heads=HEADS,
        bias=(alpha.sum(0) + text_bias + form_bias).tolist(),
        text=text,
        shape=form,
        shape_mean=shape_mean.tolist(),
        shape_scale=shape_scale.tolist(),
        about={
            "rows": len(rows),
            "trained_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "ridge": choice.ridge,
            "shape_share": choice.share,
            "leave_one_out_error": choice.error,
            "accuracy": dict(zip(HEADS, labels.mean(0).tolist(), strict=True)),
            **(about or {}),
        },
    )


def usable(rows: Sequence[Labelled]) -> Sequence[Labelled]:
    """The rows that training uses: at most the last 6,000.

    Raises:
        UsageError: there are too few rows, or the labels are all the same.
    """
    if len(rows) < MIN_ROWS:
        raise UsageError(f"{len(rows)} labelled prompts are too few to learn from: {MIN_ROWS} are needed")
    rows = rows[-MAX_ROWS:]
    if len({(row.weak, row.strong) for row in rows}) == 1:
        raise UsageError("every labelled prompt has the same outcome: there is nothing to learn from")
    return rows


def _spread(np: Any, values: Floats, centre: Floats) -> float:
    return float(np.sqrt(((values - centre) ** 2).sum(1).mean())) or 1.0


def _kernel(np: Any, features: _Features, share: float) -> tuple[Floats, tuple[float, float]]:
    """Text and shape in the given proportion, plus a constant; each of mean 1 on the diagonal before that."""
    total: Floats = np.ones((len(features.text), len(features.text)))
    weights = []
    for values, square, part in (
        (features.text, _TEXT_SQUARE, 1 - share),
        (features.shape, _SHAPE_SQUARE, share),
    ):
        likeness = values @ values.T
        kernel = likeness + square * likeness**2
        weights.append(part / (float(np.trace(kernel)) / len(kernel) or 1.0))
        total = total + weights[-1] * kernel
    return total, (weights[0], weights[1])


def _choose(np: Any, features: _Features, labels: Floats) -> _Choice:
    """The setting with the least leave-one-out error of both heads."""
    best: _Choice | None = None
    for share in _SHAPE_SHARES:
        # One decomposition serves every ridge; see Rasmussen and Williams (2006), section 5.4.2.
        values, basis = np.linalg.eigh(_kernel(np, features, share)[0])
        turned, squares = basis.T @ labels, basis**2
        for ridge in _RIDGES:
            inverse = 1 / (np.maximum(values, 0) + ridge)
            residual = (basis @ (inverse[:, None] * turned)) / (squares @ inverse)[:, None]
            error = float((residual**2).mean())
            if best is None or error < best.error:
                best = _Choice(share, ridge, error)
    assert best is not None
    return best


def _surface(
    np: Any, values: Floats, alpha: Floats, weight: float, square: float, centre: Floats, spread: float
) -> tuple[SurfaceWeights, Floats]:
    """A kernel expansion as a quadratic function of the raw vector: (raw - centre) / spread is put in.

    Of the matrix only the directions of the largest curvature are kept; see `_RANK`.
    """
    directions, curvature, linear, bias = [], [], [], []
    for head in range(alpha.shape[1]):
        weighted = values * (weight * alpha[:, head : head + 1])
        bent, basis = np.linalg.eigh(square * (values.T @ weighted) / spread**2)
        kept = np.argsort(-np.abs(bent))[:_RANK]
        steps = np.abs(basis[:, kept]).max(0) / 127
        stored = np.rint(basis[:, kept] / steps).astype(np.int8).T
        bends = bent[kept] * steps**2
        matrix = (stored.T * bends) @ stored  # the rest follows what is stored, rounding included
        straight = weighted.sum(0) / spread
        linear.append((straight - 2 * matrix @ centre).tolist())
        bias.append(float(centre @ matrix @ centre - straight @ centre))
        directions.append(stored.tobytes())
        curvature.append(bends.tolist())
    return SurfaceWeights(b"".join(directions), curvature, linear), np.array(bias)
