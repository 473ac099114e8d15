"""Plans cascades: which target answers first, and which one is asked where that answer is too poor."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from mecroute.cascade.calibration import Calibrated
from mecroute.cascade.plan import CascadePlan
from mecroute.config.cascade import CascadeConfig
from mecroute.decision import Candidate
from mecroute.policies import Policy
from mecroute.request import Request
from mecroute.routing.ranking import Scoring
from mecroute.routing.rows import Row, Rows

#: What is looked at of a long ranking: rows, targets that could answer first, and that could be escalated to.
_ROWS, _FIRSTS, _SECONDS = 64, 3, 8
#: What is known of a target's answers, by its id.
Known = Callable[[str], Calibrated | None]
#: A second stage that fewer answers need than this is not in the 95th percentile.
_RARE = 0.05


class CascadePlanner:
    """Plans the cascade of a request, where one may be and pays. Pure.

    Args:
        config: `[router.cascade]`.
        tie_margin: how far a cascade's score may be below the best target's.
    """

    def __init__(self, config: CascadeConfig, tie_margin: float) -> None:
        self._config = config
        self._tie_margin = tie_margin

    def may(self, request: Request, policy: Policy) -> bool:
        """Whether a request may be answered by a cascade: the request says, else its policy and the settings.

        One answer of text or classes can be judged; a call of a tool, or one answer of several, cannot.
        """
        asked, body = request.requirements.cascade, request.body
        if asked is False or not (asked or (self._config.enabled and policy.cascade)):
            return False
        if request.stream and not (asked or self._config.streams):
            return False
        if request.task == "classify":
            return True
        several = (body.get("n") or 1) != 1 or (body.get("best_of") or 1) != 1
        return request.task in ("chat", "completion") and not (
            several or body.get("tools") or body.get("functions")
        )

    def watches(self, request: Request, policy: Policy, first: Candidate) -> bool:
        """Whether what a target answers is to be measured, so that a threshold can be found for it.

        Comparing several answers costs as many; that is not done only to watch.
        """
        if request.stream or not self.may(request, policy) or first.target.tier not in self._config.tiers:
            return False
        return request.task == "classify" or self._config.judge != "agreement"

    def plan(
        self, request: Request, policy: Policy, scoring: Scoring, rows: Rows, known: Known
    ) -> tuple[CascadePlan | None, str | None]:
        """The best cascade among the ranked targets, in the order in which they would be tried.

        Returns:
            The plan, and why there is none.
        """
        if not self.may(request, policy):
            return None, None
        looked_at = rows[:_ROWS]
        firsts, why = self._firsts(looked_at, known)
        best: CascadePlan | None = None
        for row, calibrated in firsts:
            first = scoring.candidate(row)
            seconds = 0
            for other in looked_at:
                if other.state.target.model == row.state.target.model:
                    continue
                second = scoring.candidate(other)
                if not _is_better(other, second, row, first):
                    continue
                plan = self._pair(request, policy, scoring, (first, second), calibrated, rows)
                if isinstance(plan, str):
                    why = plan
                elif best is None or plan.score > best.score:
                    best = plan
                seconds += 1
                if seconds == _SECONDS:
                    break
            if not seconds:
                why = f"nothing that is left is predicted to answer better than {first.target.id}"
        if best is None:
            return None, f"no cascade: {why}"
        most = max(row.score for row in looked_at)
        if not request.requirements.cascade and best.score < most - self._tie_margin:
            return None, (
                f"no cascade: {best.first} and then {best.escalate_to} would score {best.score:.3f}, the "
                f"best target alone {most:.3f}"
            )
        return best, None

    def _firsts(self, rows: list[Row], known: Known) -> tuple[list[tuple[Row, Calibrated]], str]:
        found: list[tuple[Row, Calibrated]] = []
        why = f"no target on {' or '.join(self._config.tiers)} is left"
        for row in rows:
            if row.state.target.tier not in self._config.tiers:
                continue
            calibrated = known(row.id)
            if calibrated is None:
                why = f"nothing is known of the answers of {row.id}; `mecroute cascade calibrate`"
            elif calibrated.threshold is None:
                why = f"{row.id}: {calibrated.problem}"
            else:
                found.append((row, calibrated))
                if len(found) == _FIRSTS:
                    break
        return found, why

    def _pair(
        self,
        request: Request,
        policy: Policy,
        scoring: Scoring,
        stages: tuple[Candidate, Candidate],
        calibrated: Calibrated,
        rows: Rows,
    ) -> CascadePlan | str:
        """The plan of two targets, or why they make none."""
        first, second = stages
        assert calibrated.threshold is not None, "only targets with a threshold are paired"
        samples = self._config.samples if calibrated.judge == "agreement" else 1
        keep = calibrated.keep_share
        right = 1 - (calibrated.wrong / calibrated.kept if calibrated.kept else calibrated.max_error_rate)
        first_ms, first_usd = first.latency_ms_p50 * samples, first.cost_usd * samples
        p50 = first_ms + (1 - keep) * second.latency_ms_p50
        p95 = first.latency_ms_p95 * samples + (second.latency_ms_p95 if 1 - keep > _RARE else 0.0)
        cost, most = first_usd + (1 - keep) * second.cost_usd, first_usd + second.cost_usd
        quality = keep * right + (1 - keep) * second.quality
        asked = request.requirements
        if asked.max_cost_usd is not None and most > asked.max_cost_usd:
            return f"both stages may cost ${most:.6f}, at most ${asked.max_cost_usd:.6f} is allowed"
        if asked.min_quality is not None and quality < asked.min_quality:
            return (
                f"it is predicted to be right {quality:.2f} of the time, {asked.min_quality:.2f} is required"
            )
        whole_ms = first_ms + second.latency_ms_p50
        if asked.deadline_ms is not None and whole_ms > asked.deadline_ms:
            return f"both stages take {whole_ms:.0f} ms, the deadline is {asked.deadline_ms:.0f} ms"
        scores = scoring.scores(p50, quality, cost, first.availability)
        if policy.scorer is not None:
            both = replace(
                first, latency_ms_p50=p50, latency_ms_p95=p95, cost_usd=cost, quality=quality, scores=scores
            )
            try:
                total = float(policy.scorer(both, scoring.features, asked))
            except Exception as error:  # noqa: BLE001 - the code is not ours, and a request is not lost over it
                return f"the policy '{policy.name}' failed: {type(error).__name__}: {error}"
        else:
            total = scores.total
        return CascadePlan(
            first=first.target.id,
            escalate_to=second.target.id,
            judge=calibrated.judge,
            threshold=calibrated.threshold,
            max_error_rate=calibrated.max_error_rate,
            confidence=calibrated.confidence,
            keep_share=keep,
            samples=samples,
            latency_ms_p50=p50,
            latency_ms_p95=p95,
            cost_usd=cost,
            cost_usd_most=most,
            quality=quality,
            score=total,
            instead=rows[0].id,
            instead_score=rows[0].score,
        )


def _is_better(row: Row, candidate: Candidate, than_row: Row, than: Candidate) -> bool:
    """Whether a target is predicted to answer better; where no difference is predicted, as of the easiest
    requests, whether its model is."""
    if candidate.quality != than.quality:
        return candidate.quality > than.quality
    accuracy, other = row.state.accuracy, than_row.state.accuracy
    return accuracy is not None and other is not None and accuracy > other
