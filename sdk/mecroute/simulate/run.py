"""One simulation: every strategy on the same requests, and what each achieved."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from mecroute.config.schema import RouterConfig
from mecroute.errors import InvalidRequestError
from mecroute.simulate.scenario import Scenario
from mecroute.simulate.strategies import STRATEGIES, make_strategy
from mecroute.simulate.trace import Arrival, fit_trace
from mecroute.simulate.world import Asked, Result, World, capacity_per_s, draw_requests


@dataclass(frozen=True, slots=True)
class Report:
    """What one strategy achieved. Times in ms; quantiles over the answered requests.

    Args:
        slo_attainment: 0..1, share of all requests answered within the SLO.
        answered: 0..1, share of all requests.
        accuracy: 0..1, share of all requests answered right.
        cost_usd: of all answers.
        tiers: 0..1 per tier, share of the answers.
        wall_s: real seconds that the simulation took.
    """

    strategy: str
    requests: int
    slo_attainment: float
    answered: float
    accuracy: float
    cost_usd: float
    ttft_ms_p50: float
    ttft_ms_p95: float
    latency_ms_p50: float
    latency_ms_p95: float
    tiers: dict[str, float]
    wall_s: float

    def to_dict(self) -> dict[str, Any]:
        """As JSON types."""
        return asdict(self)


def simulate(
    trace: list[Arrival],
    scenario: Scenario,
    *,
    requests: int,
    load: float = 0.7,
    rate_per_s: float | None = None,
    strategies: Sequence[str] = STRATEGIES,
    config: RouterConfig | None = None,
    seed: int = 0,
    on_report: Callable[[Report], None] | None = None,
) -> list[Report]:
    """Run every strategy on the same requests.

    Args:
        trace: repeated or cut to `requests`, and stretched to the rate.
        load: mean arrivals over what all nodes could end with full batches; used where no rate is given.
        rate_per_s: mean arrivals per second.
        config: how mecroute's router scores.
        on_report: called with each report as it is there.

    Raises:
        InvalidRequestError: an unknown strategy, or a number out of its range.
    """
    unknown = [name for name in strategies if name not in STRATEGIES]
    if unknown:
        raise InvalidRequestError(
            f"there is no strategy '{unknown[0]}'", hint=f"known: {', '.join(STRATEGIES)}"
        )
    if requests < 1:
        raise InvalidRequestError(f"requests must be at least 1, not {requests}")
    rate = rate_per_s if rate_per_s is not None else load * capacity_per_s(scenario, trace, seed=seed)
    if not rate > 0:
        raise InvalidRequestError(
            f"the rate must be above 0, not {rate}", hint="give a load or a rate above 0"
        )
    asked = draw_requests(fit_trace(trace, requests=requests, rate_per_s=rate), scenario, seed=seed)
    reports = []
    for name in strategies:
        begun = time.perf_counter()
        world = World(scenario, seed=seed)
        strategy = make_strategy(name, world, config or RouterConfig(), asked, seed=seed)
        results = world.run(asked, strategy.choose, strategy.heard)
        report = _report(name, world, asked, results, time.perf_counter() - begun)
        reports.append(report)
        if on_report is not None:
            on_report(report)
    return reports


def _report(name: str, world: World, asked: list[Asked], results: list[Result], wall_s: float) -> Report:
    answered = [result for result in results if result.place is not None]
    ttfts = sorted(result.ttft_ms or 0.0 for result in answered)
    latencies = sorted(result.latency_ms or 0.0 for result in answered)
    tiers = {"device": 0, "mec": 0, "cloud": 0}
    for result in answered:
        assert result.place is not None
        tiers[world.places[result.place].target.tier] += 1
    count = len(asked)
    return Report(
        strategy=name,
        requests=count,
        slo_attainment=sum(result.in_slo for result in results) / count,
        answered=len(answered) / count,
        accuracy=sum(result.right for result in results) / count,
        cost_usd=sum(result.cost_usd for result in results),
        ttft_ms_p50=_quantile(ttfts, 0.5),
        ttft_ms_p95=_quantile(ttfts, 0.95),
        latency_ms_p50=_quantile(latencies, 0.5),
        latency_ms_p95=_quantile(latencies, 0.95),
        tiers={tier: share / max(1, len(answered)) for tier, share in tiers.items()},
        wall_s=wall_s,
    )


def _quantile(ordered: list[float], q: float) -> float:
    return ordered[round(q * (len(ordered) - 1))] if ordered else float("nan")
