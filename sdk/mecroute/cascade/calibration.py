"""How good an answer must look to be kept: of the answers that are kept at most a stated share is wrong.

That is a bound on P(wrong | kept), the selective risk, with a stated confidence over the judged answers that
the threshold is found by (see `mecroute.predict.error_bound`). It holds for answers like those. Two things
keep what it is found by like what it is used on:

- The verifier is fitted to every second answer, and its threshold is found by the others (split conformal;
  Papadopoulos et al. 2002). The other judges learn nothing, and use all.
- An answer that was only judged because its score had passed a threshold says nothing about laxer thresholds,
  and is left out there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from mecroute.cascade.marks import Marks
from mecroute.cascade.verifier import Verifier, fit_verifier
from mecroute.predict.error_bound import Level, find_threshold, least_cases

JudgeName = Literal["mean-logprob", "min-logprob", "agreement", "verifier", "probability"]
#: Even steps of the log-odds, fixed before any answer is seen: fine where a good judge's scores are, near 1.
_GRID = tuple(1 / (1 + math.exp(-z / 10)) for z in range(70, -71, -1))
_LEAST_FITTED = 40
_MOST_FITTED = 2048


@dataclass(frozen=True, slots=True)
class Pair:
    """A judged answer.

    Args:
        right: whether it was.
        under: the judge by whose score it came to be judged; None where the score had no part in that.
        least: the score that it had to pass for that.
    """

    marks: Marks
    right: bool
    under: str | None = None
    least: float = 0.0


@dataclass(frozen=True, slots=True)
class Calibrated:
    """What is known of one target's answers, and from which score on they are kept.

    Args:
        threshold: least score of an answer that is kept, 0..1; None where none keeps the rate.
        max_error_rate: 0..1, of wrong ones among those kept.
        confidence: 0..1, of `upper_bound`.
        pairs: judged answers that this judge can score; for the verifier, with those it is fitted to.
        needed: least number of them, all right, by which a threshold could be found.
        kept, wrong: of the pairs, those that pass it, and the wrong ones among these. Without a threshold: at
            the first one that was tried.
        upper_bound: of the rate of wrong ones among those kept.
        keep_share: 0..1, of answers that will be kept, about.
        verifier: where that is the judge.
    """

    judge: JudgeName
    threshold: float | None
    max_error_rate: float
    confidence: float
    pairs: int
    needed: int
    kept: int
    wrong: int
    upper_bound: float
    keep_share: float
    verifier: Verifier | None = None

    @property
    def under(self) -> str:
        """What tells scores apart that cannot be compared."""
        return self.verifier.name if self.verifier is not None else self.judge

    def score(self, marks: Marks) -> float | None:
        """0..1, the better the answer looks; 0 for a plainly bad one; None where it cannot be judged."""
        return score(self.judge, marks, self.verifier)

    @property
    def problem(self) -> str | None:
        """Why nothing can be kept; None where something can."""
        if self.threshold is not None:
            return None
        if self.pairs < self.needed:
            return f"{self.pairs} of its answers were judged, at least {self.needed} are needed"
        return (
            f"no score of {self.judge} keeps wrong answers at {self.max_error_rate:g} of those kept "
            f"({self.pairs} were judged)"
        )


def score(judge: JudgeName, marks: Marks, verifier: Verifier | None) -> float | None:
    """See `Calibrated.score`. Of log-probabilities it is e to their power: the geometric mean of the tokens'
    probabilities, or the least of them."""
    if marks.bad:
        return 0.0
    if judge == "verifier":
        if verifier is None or not marks.checks:
            return None
        return verifier.probability(marks.features())
    if judge == "agreement":
        return marks.agreement
    if judge == "probability":
        return marks.probability
    value = marks.mean_logprob if judge == "mean-logprob" else marks.min_logprob
    return None if value is None else math.exp(value)


def calibrate(
    fitting: Sequence[Pair],
    testing: Sequence[Pair],
    judge: JudgeName,
    *,
    max_error_rate: float,
    confidence: float,
) -> Calibrated:
    """Find the least score at which answers may be kept.

    Args:
        fitting: what the verifier is fitted to; for other judges it counts as more of `testing`.
        testing: what the threshold is found by; nothing is fitted to these.
        max_error_rate, confidence: 0..1, both excluded.
    """
    verifier: Verifier | None = None
    pairs = [*fitting, *testing]
    count, needed = len(pairs), least_cases(max_error_rate, confidence)
    if judge == "verifier":
        # One half for fitting, the other for testing.
        needed = 2 * max(_LEAST_FITTED, needed)
        verifier = _fitted(fitting)
        pairs = list(testing) if verifier is not None else []
    judged = [(value, pair) for pair in pairs if (value := score(judge, pair.marks, verifier)) is not None]
    if judge != "verifier":
        count = len(judged)
    under = verifier.name if verifier is not None else judge
    found = find_threshold(_levels(judged, under), max_error_rate, confidence)
    free = [value for value, pair in judged if pair.under is None]
    kept = sum(value >= found.threshold for value in free) if found.threshold is not None else 0
    return Calibrated(
        judge=judge,
        threshold=found.threshold,
        max_error_rate=max_error_rate,
        confidence=confidence,
        pairs=count,
        needed=needed,
        kept=found.passed,
        wrong=found.wrong,
        upper_bound=found.upper_bound,
        keep_share=kept / len(free) if free else float(found.threshold is not None),
        verifier=verifier,
    )


def _fitted(pairs: Sequence[Pair]) -> Verifier | None:
    """Fitted anew only when there is twice as much to fit to: scores of two verifiers cannot be compared."""
    whole = [pair for pair in pairs if pair.marks.checks and not pair.marks.bad]
    size = _LEAST_FITTED
    if len(whole) < size:
        return None
    while size * 2 <= min(len(whole), _MOST_FITTED):
        size *= 2
    chosen = whole[:size]
    return fit_verifier([pair.marks.features() for pair in chosen], [pair.right for pair in chosen])


def _levels(judged: Sequence[tuple[float, Pair]], under: str) -> list[Level]:
    """Kept and wrong answers at each score of the grid, from the strictest on."""
    free = sorted(((v, pair.right) for v, pair in judged if pair.under is None), reverse=True)
    chosen = [(v, pair.right, pair.least) for v, pair in judged if pair.under == under]
    levels, at, wrong = [], 0, 0
    for threshold in _GRID:
        while at < len(free) and free[at][0] >= threshold:
            wrong += not free[at][1]
            at += 1
        more = [right for value, right, least in chosen if value >= threshold >= least]
        levels.append(Level(threshold, at + len(more), wrong + len(more) - sum(more)))
    return levels
