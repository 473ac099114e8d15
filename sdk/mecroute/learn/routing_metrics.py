"""How well a score routes between a weak and a strong model: APGR and CPT, as RouteLLM defines them.

Source: "RouteLLM: Learning to Route LLMs with Preference Data", arXiv:2406.18665, section 3.2, and its code
(routellm/evals, Apache-2.0), whose conventions are kept: thresholds at the score's ten-quantiles, ties go to
the strong model together, trapezoids between the points.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mecroute.errors import MissingExtraError, UsageError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[Any]

BINS = 10
_RESAMPLES = 1000
_SEED = 20240626


@dataclass(frozen=True, slots=True)
class RoutingQuality:
    """What one ranking of prompts is worth.

    Args:
        apgr: average performance gap recovered; 0.5 is chance, 1 - gap/2 the best there is.
        apgr_low, apgr_high: 95% bootstrap interval over the prompts.
        cpt50, cpt80: percent of calls to the strong model that recover 50 and 80% of the gap.
        weak_accuracy, strong_accuracy: 0..1, of always asking one of them.
        prompts: how many were scored.
    """

    apgr: float
    apgr_low: float
    apgr_high: float
    cpt50: float
    cpt80: float
    weak_accuracy: float
    strong_accuracy: float
    prompts: int


def routing_quality(scores: Any, weak: Any, strong: Any) -> RoutingQuality:
    """Score a ranking.

    Args:
        scores: [n], the higher, the more the prompt calls for the strong model.
        weak, strong: [n], 1 where that model is right, else 0.

    Raises:
        UsageError: the strong model is no better than the weak one, so that there is no gap to recover.
        MissingExtraError: numpy is not installed.
    """
    np = _numpy()
    scores, weak, strong = (np.asarray(values, dtype=np.float64) for values in (scores, weak, strong))
    if strong.mean() <= weak.mean():
        raise UsageError(
            f"the strong model is right on {strong.mean():.1%}, the weak one on {weak.mean():.1%} of the "
            "prompts: there is no gap to recover"
        )
    calls, recovered = _curve(np, scores, weak, strong)
    rng = np.random.default_rng(_SEED)
    samples = []
    for _ in range(_RESAMPLES):
        chosen = rng.integers(0, len(scores), len(scores))
        if strong[chosen].mean() > weak[chosen].mean():
            samples.append(_area(np, *_curve(np, scores[chosen], weak[chosen], strong[chosen])))
    low, high = np.quantile(samples, (0.025, 0.975))
    return RoutingQuality(
        apgr=_area(np, calls, recovered),
        apgr_low=float(low),
        apgr_high=float(high),
        cpt50=_calls_for(calls, recovered, 0.5),
        cpt80=_calls_for(calls, recovered, 0.8),
        weak_accuracy=float(weak.mean()),
        strong_accuracy=float(strong.mean()),
        prompts=len(scores),
    )


def apgr(scores: Any, weak: Any, strong: Any) -> float:
    """Average performance gap recovered by a ranking, without an interval; arguments as `routing_quality`."""
    np = _numpy()
    return _area(
        np, *_curve(np, *(np.asarray(values, dtype=np.float64) for values in (scores, weak, strong)))
    )


def _curve(np: Any, scores: Floats, weak: Floats, strong: Floats) -> tuple[Floats, Floats]:
    """Share of calls to the strong model and share of the gap recovered, from none to all of them."""
    thresholds = np.quantile(scores, np.linspace(0, 1, BINS + 1))
    gap = strong.mean() - weak.mean()
    calls, recovered = [0.0], [0.0]
    for threshold in thresholds[::-1]:
        asked = scores >= threshold
        calls.append(float(asked.mean()))
        recovered.append(float(((strong - weak) * asked).mean() / gap))
    return np.array(calls), np.array(recovered)


def _area(np: Any, calls: Floats, recovered: Floats) -> float:
    return float(np.trapezoid(recovered, calls) if hasattr(np, "trapezoid") else np.trapz(recovered, calls))


def _calls_for(calls: Floats, recovered: Floats, share: float) -> float:
    """Percent of calls at which the curve first reaches a share of the gap."""
    for i in range(1, len(calls)):
        if recovered[i] >= share:
            step = (share - recovered[i - 1]) / (recovered[i] - recovered[i - 1])
            return 100 * float(calls[i - 1] + step * (calls[i] - calls[i - 1]))
    return 100.0


def _numpy() -> Any:
    try:
        import numpy
    except ImportError as error:
        raise MissingExtraError("device", "training and evaluating routers") from error
    return numpy
