"""`mecroute decisions replay`: recorded traffic under other weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from mecroute_cli import formats
from mecroute_cli.past import MadeUnder, Since, Target, Until, filter_of, history_of, section
from mecroute_cli.session import session_of
from mecroute_cli.tables import Column

if TYPE_CHECKING:
    from mecroute.replay.estimate import Estimate
    from mecroute.replay.replay import ReplayReport

METRICS = (
    Column("metric", "metric"),
    Column("logged", "as it was", right=True),
    Column("direct", "predicted", right=True),
    Column("ips", "IPS", right=True),
    Column("snips", "SNIPS", right=True),
    Column("doubly_robust", "doubly robust", right=True),
    Column("observations", "observed", right=True),
)
SHARES = (
    Column("target", "target"),
    Column("logged", "as it was", lambda v: f"{v:.1%}", right=True),
    Column("chosen", "then", lambda v: f"{v:.1%}", right=True),
)


def replay(
    ctx: typer.Context,
    policy: Annotated[
        str | None, typer.Option("--policy", metavar="NAME", help="Replay under this policy's weights.")
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option("--weights", metavar="LIST", help="Replay under these: latency=0.7,quality=0.3."),
    ] = None,
    since: Since = None,
    until: Until = None,
    target: Target = None,
    under: MadeUnder = None,
    limit: Annotated[
        int, typer.Option("--limit", min=1, max=1_000_000, help="The newest so many.")
    ] = 100_000,
) -> None:
    """Estimate, offline, what other weights would have got from recorded traffic."""
    from mecroute.replay.replay import replay as run
    from mecroute.replay.weighting import weighting_of

    session = session_of(ctx)
    out = session.output
    weighting = weighting_of(session.config.router, policy=policy, weights=weights)
    found = run(history_of(session), weighting, filter_of(since, until, target, under), limit=limit)
    if out.as_json:
        out.value("replay", found.to_dict())
        return
    out.dict(
        "replay",
        {},
        {
            "weights": weighting.name,
            "decisions": f"{found.decisions} replayed, {found.skipped} left out",
            "agreement": f"{found.agreement:.1%} chosen alike",
            "support": f"{found.supported:.1%} could have been chosen alike; {found.explored:.1%} explored",
            "effective samples": f"{found.effective_samples:.0f}",
        },
    )
    section(session, "targets", _share_rows(found), SHARES)
    section(session, "metrics", _metric_rows(found), METRICS)
    for warning in found.warnings:
        out.note(f"note: {warning}")


def _share_rows(found: ReplayReport) -> list[dict[str, Any]]:
    names = dict.fromkeys((*found.logged, *found.chosen))
    return [
        {"target": name, "logged": found.logged.get(name, 0.0), "chosen": found.chosen.get(name, 0.0)}
        for name in names
    ]


def _metric_rows(found: ReplayReport) -> list[dict[str, Any]]:
    rows = []
    for name, metric in found.metrics.items():
        row: dict[str, Any] = {"metric": name, "observations": metric.observations}
        for estimator in ("logged", "direct", "ips", "snips", "doubly_robust"):
            row[estimator] = _with_interval(name, getattr(metric, estimator))
        rows.append(row)
    return rows


def _with_interval(metric: str, estimate: Estimate) -> str:
    values = (estimate.value, estimate.low, estimate.high)
    places = {"latency_ms": 0, "cost_usd": 6}.get(metric, 3)
    value, low, high = (formats.decimals(v, places) for v in values)
    return value if estimate.low is None else f"{value} [{low}, {high}]"
