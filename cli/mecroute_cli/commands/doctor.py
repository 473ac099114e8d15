"""`mecroute doctor`: what is installed, reachable, missing or broken, and what to do about it."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict

import typer

from mecroute_cli.help import examples
from mecroute_cli.session import session_of
from mecroute_cli.tables import Column

EXAMPLES = examples("mecroute doctor", "mecroute doctor --json | jq '.checks[] | select(.status != \"ok\")'")

COLUMNS = (
    Column("area", "area"),
    Column("name", "what"),
    Column("status", "status"),
    Column("detail", "found"),
    Column("fix", "what to do", lambda value: value or ""),
)


def doctor(ctx: typer.Context) -> None:
    """Check what is installed, reachable and configured.

    Exit 1 when something that is configured or installed is broken; what is optional and missing is no
    failure.
    """
    from mecroute_cli.doctor.configured import check_configured
    from mecroute_cli.doctor.installed import check_installed

    session = session_of(ctx)
    checks = [*check_installed(), *check_configured(session)]
    counts = Counter(check.status for check in checks)
    session.output.table("checks", [asdict(check) for check in checks], COLUMNS)
    session.output.value("broken", counts["broken"])
    session.output.note(
        f"{counts['ok']} ok, {counts['missing']} missing (optional), {counts['broken']} broken"
    )
    if counts["broken"]:
        raise typer.Exit(1)
