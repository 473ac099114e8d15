"""`mecroute route`: decide where a request would run, without running it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from mecroute_cli import formats
from mecroute_cli.arguments import (
    Cascade,
    Deadline,
    Floor,
    MaxCost,
    MaxLatency,
    MinQuality,
    Model,
    Policy,
    Privacy,
    Prompt,
    Residency,
    Zone,
)
from mecroute_cli.help import examples
from mecroute_cli.requests import read_prompt, requirements
from mecroute_cli.session import session_of
from mecroute_cli.tables import Column

if TYPE_CHECKING:
    from mecroute.decision import Decision
    from mecroute_cli.output import Output

EXAMPLES = examples(
    'mecroute route "Summarise this note: …"',
    'mecroute route "Prove that there are infinitely many primes" --explain',
    'mecroute route "My diagnosis: …" --privacy device --json',
    'mecroute route "Translate this: …" --policy cheap',
    'mecroute route "What is 12 times 12?" --cascade --explain',
    'mecroute route "My card was declined" --label card --label transfer --explain',
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
LATENCIES = (
    Column("target", "latency of"),
    Column("network_ms", "network", formats.milliseconds, right=True),
    Column("load_ms", "loading", formats.milliseconds, right=True),
    Column("queue_ms", "queue", formats.milliseconds, right=True),
    Column("prefill_ms", "prefill", formats.milliseconds, right=True),
    Column("decode_ms", "decode", formats.milliseconds, right=True),
    Column("ttft_ms_p95", "TTFT p95", formats.milliseconds, right=True),
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


def latency_rows(decision: Decision) -> list[dict[str, Any]]:
    """One row per candidate: what its predicted latency is made of."""
    return [
        {
            "target": c.target.id,
            "network_ms": c.parts.network_ms,
            "load_ms": c.parts.load_ms,
            "queue_ms": c.parts.queue_ms,
            "prefill_ms": c.parts.prefill_ms,
            "decode_ms": c.parts.decode_ms,
            "ttft_ms_p95": c.ttft_ms_p95,
        }
        for c in decision.candidates
        if c.parts is not None
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
    policy: Policy = None,
    zone: Zone = None,
    cascade: Cascade = None,
    label: Annotated[
        list[str] | None,
        typer.Option(
            "--label", "-l", metavar="CLASS", help="Ask for the class of PROMPT, from these; several times."
        ),
    ] = None,
) -> None:
    """Decide where a request would run, without running it."""
    from mecroute import Client
    from mecroute.errors import NoEligibleTargetError

    session = session_of(ctx)
    out = session.output
    asked = requirements(
        privacy, max_latency_ms, min_quality, max_cost_usd, residency, deadline_ms, policy, zone, cascade
    )
    text = read_prompt(prompt)
    request: dict[str, Any] = {"messages": [{"role": "user", "content": text}]}
    if label:
        request = {"input": text, "labels": label}
    refused: NoEligibleTargetError | None = None
    with Client(session.config) as client:
        try:
            decision = client.route(model=model, requirements=asked, **request)
        except NoEligibleTargetError as error:
            decision, refused = error.decision, error
    primary = decision.primary
    if out.as_json and refused is None:
        out.value("target", primary.target.id if primary else None)
        out.value("decision", decision.to_dict())
        return
    if not out.as_json:
        _print(out, decision, explain=explain)
    if refused is not None:
        raise refused
    if primary is None:
        raise NoEligibleTargetError(
            "no target can serve this request", decision=decision, hint="mecroute doctor"
        )
    if not explain:
        out.hint("--explain shows every number")


def _print(out: Output, decision: Decision, *, explain: bool) -> None:
    primary = decision.primary
    if explain:
        out.text("", "\n".join(decision.outline()))
    elif primary is not None:
        out.text("", primary.target.id)
    if primary is not None:
        out.text("", "")
        out.table("candidates", candidate_rows(decision), CANDIDATES)
    if explain:
        if primary is not None:
            out.text("", "")
            out.table("latencies", latency_rows(decision), LATENCIES)
        for candidate in decision.candidates:
            out.text("", f"\n{candidate.target.id}")
            out.text("", "\n".join(f"  {note}" for note in candidate.notes))
        out.text("", "\n" + "\n".join(decision.outcome()))
    if decision.rejected:
        out.text("", "")
        rows = [{"target": r.target.id, "reason": r.reason, "detail": r.detail} for r in decision.rejected]
        out.table("rejected", rows, REJECTED)
