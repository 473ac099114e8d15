"""Extremely randomised trees: a regression by the mean of many trees whose thresholds are drawn by chance.

Source: Geurts, Ernst and Wehenkel (2006), "Extremely randomized trees", Machine Learning 63. Growing needs
numpy; evaluating is pure Python: walks down small trees take less than the calls of numpy would.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[Any]

#: A leaf holds its outputs; a fork the number of a feature, a threshold, and where to go up to it and beyond.
Leaf = list[float]
Fork = tuple[int, float, "Tree", "Tree"]
Tree = Leaf | Fork

_FEATURE_SHARE = 0.4  # tried at each fork


class ExtraTrees:
    """A grown forest. Immutable, thread-safe."""

    def __init__(self, trees: Sequence[Tree]) -> None:
        self._trees = tuple(trees)

    def predict(self, features: Sequence[float]) -> list[float]:
        """The mean of the trees' outputs.

        Args:
            features: plain floats, in the order of the columns that the forest was grown on.
        """
        leaves = []
        for tree in self._trees:
            node = tree
            while type(node) is tuple:
                node = node[2] if features[node[0]] <= node[1] else node[3]
            leaves.append(node)
        return [sum(column) / len(leaves) for column in zip(*leaves, strict=True)]


def grow_extra_trees(
    np: Any, features: Floats, targets: Floats, *, trees: int, min_leaf: int, rng: Any
) -> ExtraTrees:
    """Grow a forest.

    Args:
        features, targets: [n, features] and [n, outputs].
        trees: how many.
        min_leaf: rows that a leaf holds at least.
        rng: numpy's generator; the same state grows the same forest.
    """
    return ExtraTrees([_grow(np, rng, features, targets, min_leaf) for _ in range(trees)])


def _grow(np: Any, rng: Any, features: Floats, targets: Floats, min_leaf: int) -> Tree:
    cut = _cut(np, rng, features, targets, min_leaf) if len(features) >= 2 * min_leaf else None
    if cut is None:
        mean: Leaf = targets.mean(0).tolist()
        return mean
    column, threshold = cut
    left = features[:, column] <= threshold
    below = _grow(np, rng, features[left], targets[left], min_leaf)
    return column, threshold, below, _grow(np, rng, features[~left], targets[~left], min_leaf)


def _cut(np: Any, rng: Any, features: Floats, targets: Floats, min_leaf: int) -> tuple[int, float] | None:
    """Of one random threshold for each of some random features, the one after which outputs vary least."""
    low, high = features.min(0), features.max(0)
    varying = np.flatnonzero(high > low)
    if not len(varying):
        return None
    tried = rng.permutation(varying)[: max(1, round(_FEATURE_SHARE * features.shape[1]))]
    thresholds = rng.uniform(low[tried], high[tried])
    left = (features[:, tried] <= thresholds).astype(np.float64)
    counts = left.sum(0)
    sums = left.T @ targets
    others = targets.sum(0) - sums
    fits = (counts >= min_leaf) & (len(features) - counts >= min_leaf)
    if not fits.any():
        return None
    # The sum of squares within falls by as much as that of the means rises.
    with np.errstate(divide="ignore", invalid="ignore"):
        explained = (sums**2).sum(1) / counts + (others**2).sum(1) / (len(features) - counts)
    best = int(np.where(fits, explained, -np.inf).argmax())
    return int(tried[best]), float(thresholds[best])
