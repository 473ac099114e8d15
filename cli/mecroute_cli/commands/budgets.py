"""`mecroute budgets`: what may be spent, what was, and when there is money again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import typer

from mecroute_cli import formats
from mecroute_cli.help import examples
from mecroute_cli.session import session_of
from mecroute_cli.tables import Column

if TYPE_CHECKING:
    from mecroute.config import Config

EXAMPLES = examples("mecroute budgets", "mecroute budgets --json")

COLUMNS = (
    Column("budget", "budget"),
    Column("per", "per"),
    Column("for", "for"),
    Column("subject", "who"),
    Column("limit_usd", "limit", formats.usd, right=True),
    Column("spent_usd", "spent", formats.usd, right=True),
    Column("reserved_usd", "reserved", formats.usd, right=True),
    Column("left_usd", "left", formats.usd, right=True),
    Column("frees_at", "begins anew", formats.when, whole=True),
)


def budgets(ctx: typer.Context) -> None:
    """Show every budget: its limit, what was spent and is reserved, what is left."""
    session = session_of(ctx)
    rows = _rows(session.config)
    session.output.table("budgets", rows, COLUMNS, empty="no budget is configured")
    if not rows:
        session.output.hint("add a [[budgets]] table with name, limit_usd and per to mecroute.toml")


def _rows(config: Config) -> list[dict[str, Any]]:
    from mecroute.budgets.gate import ledger_path
    from mecroute.budgets.ledger import Budget, Ledger
    from mecroute.state.store import database_path

    configured: list[tuple[Budget, str]] = [
        (Budget(b.name, b.limit_usd, b.per), b.scope) for b in config.budgets
    ]
    for name, rate, limit in (
        ("(explore)", config.monitor.explore_rate, config.monitor.explore_budget_usd_per_day),
        ("(shadow)", config.monitor.shadow_rate, config.monitor.shadow_budget_usd_per_day),
    ):
        if rate:
            configured.append((Budget(name, limit, "day"), "all"))
    if not configured:
        return []
    ledger = Ledger(ledger_path(database_path(config.state)))
    rows = []
    try:
        for budget, scope in configured:
            subjects = [""] if scope == "all" else ledger.subjects(budget.name, budget.per)
            for balance in ledger.balances(
                [Budget(budget.name, budget.limit_usd, budget.per, subject) for subject in subjects or [""]]
            ):
                rows.append(
                    {
                        "budget": budget.name,
                        "per": budget.per,
                        "for": scope,
                        "subject": balance.budget.subject,
                        "limit_usd": budget.limit_usd,
                        "spent_usd": balance.spent_usd,
                        "reserved_usd": balance.reserved_usd,
                        "left_usd": balance.left_usd,
                        "frees_at": balance.frees_at,
                    }
                )
    finally:
        ledger.close()
    return rows
