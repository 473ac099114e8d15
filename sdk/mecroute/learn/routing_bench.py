"""Trains a router on one file and scores it on another, as `mecroute bench routing` does."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mecroute.learn.blend import train_router
from mecroute.learn.outcomes import Labelled, read_evaluation, read_training
from mecroute.learn.quality import train_quality
from mecroute.learn.routing_metrics import RoutingQuality, apgr, routing_quality
from mecroute.learn.verifier import train_verifier
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
        plain: the predictor to keep, if it was asked for: plainer than the router that was measured, since it
            must run without numpy.
        plain_apgr: what that one reaches on the same rows.
    """

    quality: RoutingQuality
    route_us_p50: float
    trained_rows: int
    train_s: float
    plain: Weights | None = None
    plain_apgr: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """The figures as JSON types."""
        row = {
            **asdict(self.quality),
            "route_us_p50": self.route_us_p50,
            "trained_rows": self.trained_rows,
            "train_s": self.train_s,
        }
        return row if self.plain_apgr is None else {**row, "plain_apgr": self.plain_apgr}


def bench_routing(
    train: Path, evaluate: Path, *, cascade: bool = False, keep_plain: bool = False
) -> RoutingBench:
    """Train on the `train` rows of one file and score on the other rows of another.

    Args:
        cascade: the router may read the weak model's answer as well, which is then asked first.
        keep_plain: train the plain predictor too, which `[router] predictor` can name.

    Raises:
        UsageError: a file is not what is needed; names row and column.
        MissingExtraError: numpy is not installed.
    """
    rows = read_training(train, answers=cascade)
    asked = read_evaluation(evaluate, answers=cascade)
    weak, strong = [row.weak for row in asked], [row.strong for row in asked]
    begun = time.perf_counter()
    score = train_verifier(rows).score if cascade else train_router(rows, shipped_vectors()).score
    train_s = time.perf_counter() - begun
    scores, durations = _decide(score, asked)
    plain = train_quality(rows, shipped_vectors(), about={"source": train.name}) if keep_plain else None
    return RoutingBench(
        quality=routing_quality(scores, weak, strong),
        route_us_p50=sorted(durations)[len(durations) // 2] * 1e6,
        trained_rows=len(rows),
        train_s=train_s,
        plain=plain,
        plain_apgr=None if plain is None else apgr(_decide(_gain(plain), asked)[0], weak, strong),
    )


def _gain(weights: Weights) -> Score:
    """How much more likely the strong model is to be right: what calling it is expected to bring."""
    model = QualityModel(weights, shipped_vectors())

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
