"""`mecroute simulate`: the routing agents in virtual time, against baselines."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from mecroute_cli import formats
from mecroute_cli.help import examples
from mecroute_cli.session import session_of
from mecroute_cli.tables import Column

EXAMPLES = examples(
    "mecroute simulate                                   a synthetic trace, 2,000 requests",
    "mecroute simulate trace.csv --requests 100000 --nodes 100",
    "mecroute simulate trace.jsonl --load 0.9 --strategy mecroute --strategy least-queue --json",
    "mecroute simulate trace.csv --scenario world.toml --seed 7",
)


def _percent(value: float) -> str:
    return f"{value:.1%}"


def _tiers(tiers: dict[str, float]) -> str:
    return " / ".join(f"{share:.0%}" for share in tiers.values())


REPORTS = (
    Column("strategy", "strategy"),
    Column("slo_attainment", "in SLO", _percent, right=True),
    Column("answered", "answered", _percent, right=True),
    Column("accuracy", "right", _percent, right=True),
    Column("cost_usd", "cost", formats.usd, right=True),
    Column("ttft_ms_p50", "TTFT p50", formats.milliseconds, right=True),
    Column("ttft_ms_p95", "p95", formats.milliseconds, right=True),
    Column("latency_ms_p50", "whole p50", formats.milliseconds, right=True),
    Column("latency_ms_p95", "p95", formats.milliseconds, right=True),
    Column("tiers", "device/MEC/cloud", _tiers, right=True),
)


def simulate(
    ctx: typer.Context,
    trace: Annotated[
        Path | None,
        typer.Argument(
            help="An Azure LLM trace (CSV) or a Mooncake trace (JSONL); default: a synthetic one."
        ),
    ] = None,
    requests: Annotated[
        int,
        typer.Option("--requests", min=1, max=10_000_000, help="The trace is repeated or cut to so many."),
    ] = 2000,
    nodes: Annotated[
        int | None, typer.Option("--nodes", min=1, help="MEC nodes; over the scenario's.")
    ] = None,
    load: Annotated[
        float, typer.Option("--load", min=0.001, help="Arrivals over what all the nodes could end.")
    ] = 0.7,
    rate: Annotated[
        float | None, typer.Option("--rate", min=0.000001, help="Arrivals per second, in place of --load.")
    ] = None,
    strategy: Annotated[
        list[str] | None, typer.Option("--strategy", help="Only this one; may be given again.")
    ] = None,
    scenario: Annotated[
        Path | None, typer.Option("--scenario", help="A TOML file that describes the world.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Of everything that is drawn.")] = 0,
) -> None:
    """Try the routing on a trace in virtual time, against baselines."""
    from mecroute.errors import InvalidRequestError
    from mecroute.simulate.run import Report, simulate
    from mecroute.simulate.scenario import Scenario, read_scenario
    from mecroute.simulate.strategies import STRATEGIES
    from mecroute.simulate.trace import read_trace, synthetic_trace

    session = session_of(ctx)
    out = session.output
    world = read_scenario(scenario) if scenario is not None else Scenario()
    if nodes is not None:
        if nodes > 10_000:
            raise InvalidRequestError(f"--nodes may be 10,000 at most, not {nodes}")
        world = world.model_copy(update={"nodes": nodes})
    if trace is not None:
        arrivals = read_trace(trace, limit=requests)
    else:
        arrivals = synthetic_trace(min(requests, 10_000), seed=seed)
    names = strategy or list(STRATEGIES)
    done: list[Report] = []
    with out.progress(f"simulating {requests:,} requests", unit="steps") as update:

        def heard(report: Report) -> None:
            done.append(report)
            update(len(done), len(names))

        simulate(
            arrivals,
            world,
            requests=requests,
            load=load,
            rate_per_s=rate,
            strategies=names,
            config=session.config.router,
            seed=seed,
            on_report=heard,
        )
    rows: list[dict[str, Any]] = [report.to_dict() for report in done]
    out.value("trace", str(trace) if trace is not None else "synthetic")
    out.value("scenario", world.model_dump(mode="json"))
    out.table("reports", rows, REPORTS)
    out.hint("everything but the arrivals and their lengths is the scenario's assumption; see --scenario")
