"""`mecroute decisions`: what was decided, what came of it, and what another policy would have done."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from mecroute_cli import formats
from mecroute_cli.commands import replay
from mecroute_cli.help import examples
from mecroute_cli.nouns import Noun
from mecroute_cli.past import MadeUnder, Since, Target, Until, filter_of, history_of, section
from mecroute_cli.session import session_of
from mecroute_cli.tables import Column

COLUMNS = (
    Column("id", "id", whole=True),
    Column("at", "ended", formats.when, whole=True),
    Column("target", "target"),
    Column("policy", "policy"),
    Column("complexity", "complexity", lambda v: formats.decimals(v, 2), right=True),
    Column("latency_ms", "latency", formats.milliseconds, right=True),
    Column("output_tokens", "tokens", right=True),
    Column("cost_usd", "cost", formats.usd, right=True),
    Column("regret", "regret", lambda v: formats.decimals(v, 3), right=True),
    Column("error", "error"),
)
CANDIDATES = (
    Column("target", "candidate"),
    Column("total", "score", lambda v: formats.decimals(v, 3), right=True),
    Column("ttft_ms", "TTFT", formats.milliseconds, right=True),
    Column("latency_ms_p50", "p50", formats.milliseconds, right=True),
    Column("latency_ms_p95", "p95", formats.milliseconds, right=True),
    Column("quality", "quality", lambda v: formats.decimals(v, 3), right=True),
    Column("cost_usd", "price", formats.usd, right=True),
    Column("availability", "avail.", lambda v: formats.decimals(v, 2), right=True),
    Column("notes", "notes"),
)
REJECTED = (Column("target", "rejected"), Column("reason", "reason"), Column("detail", "why"))
SEGMENTS = (
    Column("target_id", "segment"),
    Column("output_tokens", "tokens", right=True),
    Column("ttft_ms", "TTFT", formats.milliseconds, right=True),
    Column("latency_ms", "latency", formats.milliseconds, right=True),
    Column("seam", "seam"),
    Column("error", "error"),
)
JUDGEMENTS = (
    Column("source", "judged by"),
    Column("at", "at", formats.when, whole=True),
    Column("target", "target"),
    Column("score", "score", lambda v: formats.decimals(v, 2), right=True),
    Column("weight", "weight", lambda v: formats.decimals(v, 2), right=True),
    Column("note", "on"),
)
HEALTH = (
    Column("target", "target"),
    Column("samples", "calls", right=True),
    Column("prefill_factor", "prefill ×", lambda v: formats.decimals(v, 2), right=True),
    Column("decode_factor", "decode ×", lambda v: formats.decimals(v, 2), right=True),
    Column("sigma", "usual spread", lambda v: formats.decimals(v, 2), right=True),
    Column("availability", "avail.", lambda v: formats.decimals(v, 2), right=True),
    Column("error_rate", "usual errors", lambda v: formats.MISSING if v is None else f"{v:.1%}", right=True),
    Column("outliers", "outliers", right=True),
    Column("alarms", "alarms"),
)


def build() -> typer.Typer:
    """`mecroute decisions …`."""
    noun = Noun("Decisions of the past: what came of them, and what another policy would have done.")
    noun.verb(
        "list",
        list_decisions,
        examples(
            "mecroute decisions list --since 24h",
            "mecroute decisions list --target mec --errors --json",
        ),
    )
    noun.verb(
        "show",
        show,
        examples("mecroute decisions show req-1f2e3d4c", "mecroute decisions show req-1f --json"),
    )
    noun.verb(
        "replay",
        replay.replay,
        examples(
            "mecroute decisions replay --weights latency=0.2,quality=0.6,cost=0.2 --since 24h",
            "mecroute decisions replay --policy balanced --json",
        ),
    )
    noun.verb("health", health, examples("mecroute decisions health", "mecroute decisions health --json"))
    return noun.app


def list_decisions(
    ctx: typer.Context,
    since: Since = None,
    until: Until = None,
    target: Target = None,
    under: MadeUnder = None,
    errors: Annotated[bool, typer.Option("--errors", help="Only requests that failed.")] = False,
    explored: Annotated[bool, typer.Option("--explored", help="Only requests that explored.")] = False,
    limit: Annotated[int, typer.Option("--limit", min=1, max=100_000, help="At most so many.")] = 20,
) -> None:
    """List recorded decisions, the newest first."""
    session = session_of(ctx)
    history = history_of(session)
    wanted = filter_of(since, until, target, under, errors=errors, explored=explored)
    rows = history.rows(wanted, limit)
    session.output.table("decisions", rows, COLUMNS, empty=f"no such decision in {history.path}")
    if rows:
        session.output.hint(f"mecroute decisions show {rows[0]['id']}")


def show(
    ctx: typer.Context,
    id: Annotated[str, typer.Argument(metavar="ID", help="A reply's id, or a beginning of it.")],
) -> None:
    """Show everything behind one decision: predictions, outcome, judgements, regret."""
    from mecroute.evidence.regret import regret_after

    session = session_of(ctx)
    out = session.output
    row, detail, judgements = history_of(session).get(id)
    after = regret_after(detail, judgements)
    out.value("decision", {**detail, "at": row["at"], "judgements": judgements, "regret_after": after})
    if out.as_json:
        return
    decision, outcome, regret = detail["decision"], detail["outcome"], detail.get("regret")
    signs = [name for name, found in (detail.get("signals") or {}).items() if found is True]
    best = ""
    if regret and regret["value"] > 0:
        best = f" (best: {regret['best_target']} at {regret['best']:.3f}, got {regret['got']:.3f})"
    out.dict(
        "decision",
        {},
        {
            "request": row["id"],
            "ended": formats.when(row["at"]),
            "complexity": f"{row['complexity']:.2f}"
            + (
                f" ({formats.text(decision['features']['reasons'])})"
                if decision["features"]["reasons"]
                else ""
            ),
            "requirements": formats.text([f"{k}={v}" for k, v in decision["requirements"].items()]),
            "policy": f"{row['policy']}: "
            + formats.text([f"{k} {v}" for k, v in decision["weights"].items()]),
            "choice": formats.text(decision.get("choice")),
            "propensity": f"{row['propensity']:.3f}" + (" (explored)" if row["explored"] else ""),
            "answered by": outcome["target_id"] + (" (from the cache)" if row["cache"] else ""),
            "latency": formats.milliseconds(outcome["latency_ms"]),
            "TTFT": formats.milliseconds(outcome["ttft_ms"]),
            "tokens": f"{outcome['prompt_tokens']} in, {outcome['output_tokens']} out",
            "cost": formats.usd(outcome["cost_usd"]),
            "error": formats.text(outcome["error"]),
            "cascade": formats.text((outcome.get("cascade") or {}).get("reason")),
            "bad signs": formats.text(signs),
            "regret": formats.decimals(after, 3) + best,
        },
    )
    rows = [_candidate(entry) for entry in decision["candidates"]]
    section(session, "candidates", rows, CANDIDATES)
    rejected = [{**entry, "target": entry["target"]["id"]} for entry in decision["rejected"]]
    section(session, "rejected", rejected, REJECTED)
    section(session, "segments", detail["segments"], SEGMENTS)
    section(session, "judgements", judgements, JUDGEMENTS)


def health(ctx: typer.Context) -> None:
    """Show how targets keep to their predictions: corrections, errors, drift alarms."""
    from mecroute.evidence.listing import health as healths
    from mecroute.state.store import StateStore, database_path

    session = session_of(ctx)
    store = StateStore(database_path(session.config.state))
    rows = healths(store.learned())
    store.close()
    session.output.table("health", rows, HEALTH, empty="nothing was learned of any target yet")
    for row in rows:
        for note in row["notes"]:
            session.output.note(f"{row['target']}: {note}")


def _candidate(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {**entry, "target": entry["target"]["id"], "total": entry["scores"]["total"]}
