"""Trains a quality predictor: kernel ridge regression on word vectors and shape, with a quadratic kernel.

Two heads share one kernel: whether the weak model is right, and whether the strong one is. A quadratic
kernel makes the predictor a quadratic function of the word vector, which is evaluated without the
training texts. How strongly it is smoothed is chosen by leave-one-out on the training rows alone.
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
from mecroute.predict.token_vectors import TokenVectors, read_words

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[Any]

MIN_ROWS = 20
#: The kernel matrix grows with the square; of more rows the newest, which come last, are used.
MAX_ROWS = 6000
_SQUARE = 0.25  # weight of the squared similarity: found by leave-one-out on MMLU, flat around it
_SHAPE_SCALE_FLOOR = 0.3  # rare counts are not blown up to the size of common ones
_SHAPE_LIMIT = 4.0
_SHAPE_WEIGHTS = (0.0, 0.3, 1.0)
_RIDGES = (0.5, 1.0, 2.0, 4.0, 8.0)
#: A simpler setting is kept unless another one's leave-one-out score is better by as much.
_MARGIN = 0.0


@dataclass(frozen=True)
class _Features:
    """Texts as the kernel sees them: centred vectors [n, dim] and shapes [n, shapes]."""

    vectors: Floats
    shapes: Floats


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
    if len(rows) < MIN_ROWS:
        raise UsageError(f"{len(rows)} labelled prompts are too few to learn from: {MIN_ROWS} are needed")
    rows = rows[-MAX_ROWS:]
    labels = np.array([(row.weak, row.strong) for row in rows], dtype=np.float64)
    if (labels == labels[0]).all():
        raise UsageError("every labelled prompt has the same outcome: there is nothing to learn from")
    read = [(row.prompt, read_words(row.prompt)) for row in rows]
    directions = np.array([vectors.vector(words) for _, words in read])
    shapes = np.array([shape(text, words) for text, words in read])
    mean, scale = shapes.mean(0), shapes.std(0) + _SHAPE_SCALE_FLOOR
    centre = directions.mean(0)
    spread = float(np.sqrt(((directions - centre) ** 2).sum(1).mean())) or 1.0
    features = _Features(
        (directions - centre) / spread,
        np.clip((shapes - mean) / scale, -_SHAPE_LIMIT, _SHAPE_LIMIT) / np.sqrt(shapes.shape[1]),
    )
    shape_weight, ridge, score = _choose(np, features, labels)
    kernel = _kernel(features, shape_weight) + 1.0
    alpha = np.linalg.solve(kernel + ridge * np.eye(len(rows)), labels)
    return _weights(
        np,
        features,
        alpha,
        shape_weight=shape_weight,
        centre=centre,
        spread=spread,
        shape_mean=mean,
        shape_scale=scale,
        about={
            "rows": len(rows),
            "trained_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "ridge": ridge,
            "shape_weight": shape_weight,
            "leave_one_out_apgr": score,
            **(about or {}),
        },
    )


def _kernel(features: _Features, shape_weight: float) -> Floats:
    likeness = features.vectors @ features.vectors.T
    kernel: Floats = likeness + _SQUARE * likeness**2
    if shape_weight:
        kernel = kernel + shape_weight * (features.shapes @ features.shapes.T)
    return kernel


def _choose(np: Any, features: _Features, labels: Floats) -> tuple[float, float, float | None]:
    """The shape weight and the ridge with the best leave-one-out ranking, and its APGR.

    Where the strong model is no better than the weak one there is nothing to rank; then the squared error
    decides, and the APGR is None.
    """
    from mecroute.learn.routing_metrics import apgr

    ranked = labels[:, 1].mean() > labels[:, 0].mean()
    best: tuple[float, float, float] | None = None
    for shape_weight in _SHAPE_WEIGHTS:
        # One decomposition serves every ridge; see Rasmussen and Williams (2006), section 5.4.2.
        values, basis = np.linalg.eigh(_kernel(features, shape_weight) + 1.0)
        turned, squares = basis.T @ labels, basis**2
        for ridge in _RIDGES:
            inverse = 1 / (np.maximum(values, 0) + ridge)
            residual = (basis @ (inverse[:, None] * turned)) / (squares @ inverse)[:, None]
            left_out = labels - residual
            if ranked:
                score = apgr(left_out[:, 1] - left_out[:, 0], labels[:, 0], labels[:, 1])
            else:
                score = -float((residual**2).mean())
            if best is None or score > best[0] + _MARGIN:
                best = (score, shape_weight, ridge)
    assert best is not None
    return best[1], best[2], best[0] if ranked else None


def _weights(
    np: Any,
    features: _Features,
    alpha: Floats,
    *,
    shape_weight: float,
    centre: Floats,
    spread: float,
    shape_mean: Floats,
    shape_scale: Floats,
    about: Mapping[str, Any],
) -> Weights:
    """The kernel expansion as a quadratic function of the raw vector: c = (v - centre) / spread is put in."""
    matrices, scales, linear, bias = [], [], [], []
    shape_rows = []
    for head in range(alpha.shape[1]):
        weighted = features.vectors * alpha[:, head : head + 1]
        square = _SQUARE * (features.vectors.T @ weighted) / spread**2
        straight = weighted.sum(0) / spread
        step = float(np.abs(square).max()) / 127 or 1.0
        stored = np.rint(square / step).astype(np.int8)
        square = stored * step  # what is rounded away in the matrix is not carried into the rest
        linear.append((straight - 2 * square @ centre).tolist())
        bias.append(float(alpha[:, head].sum() - straight @ centre + centre @ square @ centre))
        matrices.append(stored.tobytes())
        scales.append(step)
        shape_rows.append(
            (shape_weight * (features.shapes.T @ alpha[:, head]) / np.sqrt(len(shape_mean))).tolist()
        )
    return Weights(
        heads=("weak", "strong"),
        matrices=b"".join(matrices),
        scales=scales,
        bias=bias,
        linear=linear,
        shape_mean=shape_mean.tolist(),
        shape_scale=shape_scale.tolist(),
        shape_weights=shape_rows,
        about=about,
    )
