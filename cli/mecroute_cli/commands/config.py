"""`mecroute config`: every setting, its value and who set it."""

from __future__ import annotations

import os

import typer

from mecroute_cli.help import examples
from mecroute_cli.nouns import Noun
from mecroute_cli.session import session_of
from mecroute_cli.tables import Column

COLUMNS = (Column("setting", "setting"), Column("value", "value"), Column("source", "set by"))

PRICES = (
    Column("name", "name"),
    Column("model", "model"),
    Column("input_usd_per_mtok", "in, $/Mtok", right=True),
    Column("output_usd_per_mtok", "out, $/Mtok", right=True),
    Column("source", "stated by"),
)


def build() -> typer.Typer:
    """`mecroute config …`."""
    noun = Noun("Settings, and where each comes from.")
    noun.verb(
        "show",
        show,
        examples("mecroute config show", "MECROUTE_DEVICE_THREADS=1 mecroute config show | grep threads"),
    )
    noun.verb("prices", prices, examples("mecroute config prices", "mecroute config prices --json"))
    noun.verb("path", path, examples("mecroute config path", "$EDITOR $(mecroute config path | head -1)"))
    return noun.app


def show(ctx: typer.Context) -> None:
    """Show every setting, its value and its source."""
    session = session_of(ctx)
    rows = [
        {"setting": name, "value": value, "source": source}
        for name, value, source in session.loaded.settings()
    ]
    session.output.table("settings", rows, COLUMNS)


def prices(ctx: typer.Context) -> None:
    """Show what tokens cost on every node and cloud, and where that is stated."""
    from mecroute.prices import price_of

    session = session_of(ctx)
    config = session.config
    rows = [
        {
            "name": remote.name,
            "model": getattr(remote, "model", None) or "any",
            "input_usd_per_mtok": price.input_usd_per_mtok,
            "output_usd_per_mtok": price.output_usd_per_mtok,
            "source": price.source,
        }
        for remote in (*config.nodes, *config.cloud)
        for price in (price_of(remote, config.prices),)
    ]
    session.output.table("prices", rows, PRICES, empty="no node and no cloud is configured")
    session.output.hint("mecroute ships no prices: state them at an entry, or in [[prices]] by model name")


def path(ctx: typer.Context) -> None:
    """Show which configuration files are read."""
    from mecroute.config import FILE_NAME, find_project_file
    from mecroute_registry.paths import config_dir

    session = session_of(ctx)
    explicit = session.config_path or os.environ.get("MECROUTE_CONFIG")
    project = find_project_file()
    candidates: list[tuple[str, str | None]] = (
        [("explicit", str(explicit))]
        if explicit
        else [("project", str(project) if project else None), ("user", str(config_dir() / FILE_NAME))]
    )
    rows = [
        {"kind": kind, "path": place, "exists": place is not None and os.path.isfile(place)}  # noqa: PTH113
        for kind, place in candidates
        if place is not None
    ]
    if session.output.as_json:
        session.output.value("files", rows)
        return
    for row in rows:
        session.output.text("", str(row["path"]))
        if not row["exists"]:
            session.output.note(f"{row['path']} does not exist yet: the defaults hold")
