"""`mecroute route`: decide where a request would run, without running it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from mecroute_cli import formats
from mecroute_cli.arguments import (
    Deadline,
    Floor,
    MaxCost,
    MaxLatency,
    MinQuality,
    Model,
    Privacy,
    Prompt,
    Residency,
)
from mecroute_cli.help import examples
from mecroute_cli.requests import read_prompt, requirements
from mecroute_cli.session import session_of
from mecroute_cli.tables import Column

if TYPE_CHECKING:
    from mecroute.decision import Decision

EXAMPLES = examples(
    'mecroute route "Summarise this note: …"',
    'mecroute route "Prove that there are infinitely many primes" --explain',
    'mecroute route "My diagnosis: …" --privacy device --json',
)

CANDIDATES = (
    Column("target", "target"),
    Column("total", "score", lambda v: formats.decimals(v, 3), right=True),
    Column("latency", "latency", lambda v: formats.decimals(v, 2), right=True),
    Column("quality_score", "quality", lambda v: formats.decimals(v, 2), right=True),
    Column("cost", "cost", lambda v: formats.decimals(v, 2), right=True),
    Column("availability_score", "avail.", lambda v: formats.decimals(v, 2), right=True),
    Column("ttft_ms", "TTFT", formats.milliseconds, right=True),
    Column("latency_ms_p50", "p50", formats.milliseconds, right=True),
    Column("latency_ms_p95", "p95", formats.milliseconds, right=True),
    Column("cost_usd", "price", formats.usd, right=True),
)
REJECTED = (Column("target", "rejected"), Column("reason", "reason"), Column("detail", "why"))


def candidate_rows(decision: Decision) -> list[dict[str, Any]]:
    """One row per candidate, best first: prediction, and the utility of each factor."""
    return [
        {
            "target": c.target.id,
            "total": c.scores.total,
            "latency": c.scores.latency,
            "quality_score": c.scores.quality,
            "cost": c.scores.cost,
            "availability_score": c.scores.availability,
            "ttft_ms": c.ttft_ms,
            "latency_ms_p50": c.latency_ms_p50,
            "latency_ms_p95": c.latency_ms_p95,
            "cost_usd": c.cost_usd,
        }
        for c in decision.candidates
    ]


def route(
    ctx: typer.Context,
    prompt: Prompt,
    model: Model = "auto",
    explain: Annotated[bool, typer.Option("--explain", help="Show every number of the decision.")] = False,
    privacy: Privacy = Floor.ANY,
    max_latency_ms: MaxLatency = None,
    min_quality: MinQuality = None,
    max_cost_usd: MaxCost = None,
    residency: Residency = None,
    deadline_ms: Deadline = None,
) -> None:
    """Decide where a request would run, without running it."""
    from mecroute import Client
    from mecroute.errors import NoEligibleTargetError

    session = session_of(ctx)
    out = session.output
    asked = requirements(privacy, max_latency_ms, min_quality, max_cost_usd, residency, deadline_ms)
    messages = [{"role": "user", "content": read_prompt(prompt)}]
    refused: NoEligibleTargetError | None = None
    with Client(session.config) as client:
        try:
            decision = client.route(model=model, messages=messages, requirements=asked)
        except NoEligibleTargetError as error:
            decision, refused = error.decision, error
    primary = decision.primary
    if out.as_json and refused is None:
        out.value("target", primary.target.id if primary else None)
        out.value("decision", decision.to_dict())
        return
    if explain:
        out.text("explanation", decision.explain())
    elif not out.as_json:
        if primary is not None:
            out.text("target", primary.target.id)
            out.text("", "")
            out.table("candidates", candidate_rows(decision), CANDIDATES)
        if decision.rejected:
            out.text("", "")
            rows = [
                {"target": r.target.id, "reason": r.reason, "detail": r.detail} for r in decision.rejected
            ]
            out.table("rejected", rows, REJECTED)
    if refused is not None:
        raise refused
    if primary is None:
        raise NoEligibleTargetError(
            "no target can serve this request", decision=decision, hint="mecroute doctor"
        )
    if not explain:
        out.hint("--explain shows every number")
