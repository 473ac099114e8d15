"""A router from labelled prompts: kernel ridge regression and extremely randomised trees, averaged.

Both predict two heads, whether the weak model is right and whether the strong one is; what calling the strong
model is expected to bring is their difference. The kernel sees what a text is about and what it looks like,
the trees see its looks alone: they err differently, so that their mean errs less than either. All settings go
by the squared error of both heads on training rows that were left out (docs/quality.md).

It needs numpy, keeps a vector of each training text (no text), and is what `mecroute bench routing` measures;
the predictor of every day (`mecroute.learn.quality`) is plainer and needs neither.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mecroute.errors import MissingExtraError
from mecroute.learn.extra_trees import ExtraTrees, grow_extra_trees
from mecroute.learn.outcomes import Labelled
from mecroute.learn.quality import usable
from mecroute.learn.quantities import quantities
from mecroute.predict.shape import SHAPE_NAMES, shape
from mecroute.predict.token_vectors import TokenVectors, read_words

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[Any]

_TEXT_WIDTH, _FORM_WIDTH = (
    8.0,
    0.5,
)  # of the Gaussian kernels exp(-width × squared distance); flat around them
_SCALE_FLOOR = 0.001  # so that a feature without variance is not divided by zero
_LIMIT = 4.0  # standard deviations beyond which a feature tells no more
#: Of more rows the newest, which come last, are used: a decomposition of the kernel matrix costs their cube.
_MAX_ROWS = 3000
_MIXES = ((0.33, 0.67, 0.0), (0.5, 0.5, 0.0), (0.67, 0.33, 0.0), (0.33, 0.34, 0.33))
_RIDGES = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0)
_FOLDS, _FOLD_TREES, _TREES = 5, 50, 100
_LEAVES = (8, 25)
_TREE_PARTS = (0.0, 0.25, 0.5, 0.75)
_NEGLIGIBLE = 0.02
_SEED = 20240626


@dataclass(frozen=True)
class _Features:
    """Of n texts: directions [n, dim], form [n, shapes + quantities] and quantities [n, 17], standardised."""

    text: Floats
    form: Floats
    quantity: Floats


@dataclass(frozen=True)
class _Kernel:
    """A fitted mean of kernel regressions.

    Args:
        text, form: [n, heads], what each training row adds by either kernel.
        linear: [quantities, heads].
        bias: [heads].
        left_out: [n, heads], what is predicted of each training row without it.
    """

    text: Floats
    form: Floats
    linear: Floats
    bias: Floats
    left_out: Floats


class BlendedRouter:
    """A trained router; thread-safe. `train_router` makes one."""

    def __init__(
        self,
        np: Any,
        vectors: TokenVectors,
        scale: tuple[Floats, Floats],
        seen: _Features,
        kernel: _Kernel,
        trees: tuple[ExtraTrees, float] | None,
    ) -> None:
        self._np = np
        self._vectors = vectors
        self._mean, self._scale = scale
        self._trees = trees
        self._text = seen.text.astype(np.float32)
        self._form = seen.form.astype(np.float32)
        self._squares = (self._form**2).sum(1)
        self._by_text = kernel.text.astype(np.float32)
        self._by_form = kernel.form.astype(np.float32)
        self._linear, self._bias = kernel.linear, kernel.bias

    @property
    def tree_part(self) -> float:
        """The weight of the trees, 0..1; the kernel has the rest."""
        return self._trees[1] if self._trees is not None else 0.0

    def predict(self, prompt: str) -> tuple[float, float]:
        """About how likely the weak and the strong model are to be right; not bounded to 0..1."""
        np = self._np
        words = read_words(prompt)
        looks = shape(prompt, words)
        raw = np.array(looks + quantities(prompt, words, looks))
        form = _standard(np, raw, self._mean, self._scale)
        near = np.array(self._vectors.vector(words), dtype=np.float32)
        # |a - b|² of directions of length 1 is 2 - 2 a·b.
        by_text = np.exp(2 * _TEXT_WIDTH * (self._text @ near - float(near.any()))) @ self._by_text
        whole = (form / len(form) ** 0.5).astype(np.float32)
        distance = self._squares - 2 * (self._form @ whole) + whole @ whole
        by_form = np.exp(-_FORM_WIDTH * distance) @ self._by_form
        quantity = form[len(looks) :]
        linear = (quantity / len(quantity) ** 0.5) @ self._linear
        weak, strong = (self._bias + by_text + by_form + linear).tolist()
        if self._trees is not None:
            forest, part = self._trees
            leaves = forest.predict(looks)
            weak, strong = weak + part * (leaves[0] - weak), strong + part * (leaves[1] - strong)
        return weak, strong

    def score(self, row: Labelled) -> float:
        """How much more likely the strong model is to be right: what calling it is expected to bring."""
        weak, strong = self.predict(row.prompt)
        return strong - weak


def train_router(rows: Sequence[Labelled], vectors: TokenVectors) -> BlendedRouter:
    """Learn from labelled prompts which of them call for the strong model.

    Raises: as `train_quality`, and of the same rows.
    """
    try:
        import numpy as np
    except ImportError as error:
        raise MissingExtraError("device", "training a router") from error
    rows = usable(rows)[-_MAX_ROWS:]
    labels = np.array([(row.weak, row.strong) for row in rows], dtype=np.float64)
    read = [(row.prompt, read_words(row.prompt)) for row in rows]
    looks = [shape(text, words) for text, words in read]
    raw = np.array(
        [look + quantities(text, words, look) for (text, words), look in zip(read, looks, strict=True)]
    )
    mean, scale = raw.mean(0), raw.std(0) + _SCALE_FLOOR
    form = _standard(np, raw, mean, scale)
    quantity = form[:, len(SHAPE_NAMES) :]
    features = _Features(
        text=np.array([vectors.vector(words) for _, words in read]),
        form=form / form.shape[1] ** 0.5,
        quantity=quantity / quantity.shape[1] ** 0.5,
    )
    kernel = _fit_kernel(np, features, labels)
    trees = _fit_trees(np, np.array(looks), labels, kernel.left_out)
    return BlendedRouter(np, vectors, (mean, scale), features, kernel, trees)


def _standard(np: Any, raw: Floats, mean: Floats, scale: Floats) -> Floats:
    found: Floats = np.clip((raw - mean) / scale, -_LIMIT, _LIMIT)
    return found


def _fit_kernel(np: Any, features: _Features, labels: Floats) -> _Kernel:
    """Regressions with every mix of kernels and every ridge, averaged by their leave-one-out error."""
    text = _gaussian(np, features.text, _TEXT_WIDTH)
    form = _gaussian(np, features.form, _FORM_WIDTH)
    linear = features.quantity @ features.quantity.T
    evenness = float(np.trace(linear)) / len(linear) or 1.0
    alphas, lefts = [], []
    for mix in _MIXES:
        # One decomposition serves every ridge; see Rasmussen and Williams (2006), section 5.4.2.
        values, basis = np.linalg.eigh(1 + mix[0] * text + mix[1] * form + (mix[2] / evenness) * linear)
        turned, squares = basis.T @ labels, basis**2
        for ridge in _RIDGES:
            inverse = 1 / (np.maximum(values, 0) + ridge)
            alphas.append((mix, basis @ (inverse[:, None] * turned)))
            lefts.append(labels - alphas[-1][1] / (squares @ inverse)[:, None])
    weights = np.array(_weights(np, lefts, labels))
    stacked = np.array([alpha for _, alpha in alphas])
    parts = np.array([mix for mix, _ in alphas])
    by: list[Floats] = [np.tensordot(weights * parts[:, k], stacked, 1) for k in range(3)]
    return _Kernel(
        text=by[0],
        form=by[1],
        linear=features.quantity.T @ by[2] / evenness,
        bias=np.tensordot(weights, stacked.sum(1), 1),
        left_out=np.tensordot(weights, np.array(lefts), 1),
    )


def _gaussian(np: Any, values: Floats, width: float) -> Floats:
    squares = (values**2).sum(1)
    kernel: Floats = np.exp(-width * np.maximum(squares[:, None] + squares - 2 * values @ values.T, 0))
    return kernel


def _weights(np: Any, predictions: Sequence[Floats], labels: Floats) -> list[float]:
    """Exponential weights: exp(-squared error / 4 variance), of sum 1.

    Few rows do not tell which setting is best: then all have about the same say. Many do, and the best has
    all of it. Source: Dalalyan and Tsybakov (2008), "Aggregation by exponential weighting".
    """
    errors = np.array([float(((one - labels) ** 2).sum()) for one in predictions])
    variance = errors.min() / labels.size or 1.0
    weights = np.exp(-(errors - errors.min()) / (4 * variance))
    found: list[float] = (weights / weights.sum()).tolist()
    return found


def _fit_trees(np: Any, looks: Floats, labels: Floats, by_kernel: Floats) -> tuple[ExtraTrees, float] | None:
    """A forest, and its weight beside the kernel, by the error on rows left out; None where useless."""
    blends = []
    for min_leaf in _LEAVES:
        by_trees = _left_out(np, looks, labels, min_leaf)
        mixed = [by_kernel + part * (by_trees - by_kernel) for part in _TREE_PARTS]
        best = min(float(((one - labels) ** 2).mean()) for one in mixed)
        weights = _weights(np, mixed, labels)
        blends.append((best, min_leaf, sum(w * p for w, p in zip(weights, _TREE_PARTS, strict=True))))
    _, min_leaf, part = min(blends)
    if part < _NEGLIGIBLE:
        return None
    rng = np.random.default_rng(_SEED)
    return grow_extra_trees(np, looks, labels, trees=_TREES, min_leaf=min_leaf, rng=rng), part


def _left_out(np: Any, looks: Floats, labels: Floats, min_leaf: int) -> Floats:
    """What forests that did not see a row predict of it."""
    rng = np.random.default_rng(_SEED)
    found: Floats = np.zeros_like(labels)
    for fold in np.array_split(rng.permutation(len(labels)), _FOLDS):
        rest = np.ones(len(labels), dtype=bool)
        rest[fold] = False
        forest = grow_extra_trees(
            np, looks[rest], labels[rest], trees=_FOLD_TREES, min_leaf=min_leaf, rng=rng
        )
        found[fold] = [forest.predict(row) for row in looks[fold].tolist()]
    return found
