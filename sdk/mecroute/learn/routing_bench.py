"""Trains a router on one file and scores it on another, as `mecroute bench routing` does."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mecroute.learn.outcomes import Labelled, read_evaluation, read_training
from mecroute.learn.quality import train_quality
from mecroute.learn.routing_metrics import RoutingQuality, routing_quality
from mecroute.predict.quality_model import QualityModel, Weights
from mecroute.predict.token_vectors import shipped_vectors

Score = Callable[[Labelled], float]


@dataclass(frozen=True, slots=True)
class RoutingBench:
    """What a trained router reached.

    Args:
        quality: how well it ranked the evaluation rows.
        route_us_p50: median time of one decision, in µs, measured one prompt after another.
        trained_rows: how many rows it learned from.
        train_s: how long that took.
        weights: what was learned, to be kept or thrown away.
    """

    quality: RoutingQuality
    route_us_p50: float
    trained_rows: int
    train_s: float
    weights: Weights

    def to_dict(self) -> dict[str, Any]:
        """The figures as JSON types."""
        return {
            **asdict(self.quality),
            "route_us_p50": self.route_us_p50,
            "trained_rows": self.trained_rows,
            "train_s": self.train_s,
        }


def bench_routing(train: Path, evaluate: Path, *, cascade: bool = False) -> RoutingBench:
    """Train on the `train` rows of one file and score on the other rows of another.

    Args:
        cascade: the router may read the weak model's answer as well, which is then asked first.

    Raises:
        UsageError: a file is not what is needed; names row and column.
        MissingExtraError: numpy is not installed.
    """
    rows = read_training(train, answers=cascade)
    asked = read_evaluation(evaluate, answers=cascade)
    begun = time.perf_counter()
    weights = train_quality(rows, shipped_vectors(), about={"source": train.name})
    score = _gain(QualityModel(weights, shipped_vectors()))
    if cascade:
        from mecroute.learn.verifier import train_verifier

        score = train_verifier(rows).score
    train_s = time.perf_counter() - begun
    scores, durations = _decide(score, asked)
    return RoutingBench(
        quality=routing_quality(scores, [row.weak for row in asked], [row.strong for row in asked]),
        route_us_p50=sorted(durations)[len(durations) // 2] * 1e6,
        trained_rows=len(rows),
        train_s=train_s,
        weights=weights,
    )


def _gain(model: QualityModel) -> Score:
    """How much more likely the strong model is to be right: what calling it is expected to bring."""

    def gain(row: Labelled) -> float:
        weak, strong = model.predict(row.prompt)
        return strong - weak

    return gain


def _decide(score: Score, rows: Sequence[Labelled]) -> tuple[list[float], list[float]]:
    scores, durations = [], []
    for row in rows:
        begun = time.perf_counter()
        scores.append(score(row))
        durations.append(time.perf_counter() - begun)
    return scores, durations
