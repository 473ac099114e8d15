"""`mecroute nodes`: the MEC nodes that are configured, and how they are."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import typer

from mecroute_cli import formats
from mecroute_cli.commands.node_models import add_verbs
from mecroute_cli.help import examples
from mecroute_cli.nouns import Noun
from mecroute_cli.session import session_of
from mecroute_cli.tables import Column

if TYPE_CHECKING:
    from mecroute.config import NodeConfig

COLUMNS = (
    Column("node", "node"),
    Column("url", "url"),
    Column("source", "from"),
    Column("state", "state"),
    Column("models_shown", "models"),
    Column("running", "running", right=True),
    Column("queued", "queued", right=True),
    Column("memory_available_bytes", "free memory", formats.size, right=True),
    Column("cpu_percent", "CPU %", lambda v: formats.decimals(v, 0), right=True),
    Column("round_trip_ms", "round trip", formats.milliseconds, right=True),
)


def build() -> typer.Typer:
    """`mecroute nodes …`."""
    noun = Noun("MEC nodes, and how they are.")
    noun.verb("list", list_nodes, examples("mecroute nodes list", "mecroute nodes list --json"))
    add_verbs(noun)
    return noun.app


def list_nodes(ctx: typer.Context) -> None:
    """List every node, configured or found: reachable or not, models, queue, memory."""
    from mecroute_cli.discovered import discovered_nodes

    session = session_of(ctx)
    found = discovered_nodes(session.config)
    known = {node.url: (node, "config") for node in session.config.nodes}
    for source in found:
        for node in source.nodes:
            known.setdefault(node.url, (node, source.source.name))
    with ThreadPoolExecutor(max_workers=max(1, min(8, len(known)))) as pool:
        rows = list(pool.map(lambda entry: {**state_of(entry[0]), "source": entry[1]}, known.values()))
    session.output.table("nodes", rows, COLUMNS, empty="no node is configured or found")
    if not known:
        session.output.hint("add a [[nodes]] table with name and url, or [[discovery]], to mecroute.toml")
    for row in rows:
        if row["error"]:
            session.output.note(f"{row['node']}: {row['error']}")
    for source in found:
        for note in (*((source.problem,) if source.problem else ()), *source.notes):
            session.output.note(f"[[discovery]] {source.source.name}: {note}")


def state_of(node: NodeConfig) -> dict[str, Any]:
    """Ask one node how it is; a node that does not answer gives a row that says why."""
    from mecroute.errors import MecrouteError
    from mecroute_cli.node_api import NodeApi

    row: dict[str, Any] = {
        "node": node.name,
        "url": node.url,
        "zone": node.zone,
        "region": node.region,
        "error": None,
    }
    started = time.monotonic()
    try:
        with NodeApi(node) as api:
            report = api.report()
    except MecrouteError as error:
        return {**row, "state": "unreachable" if error.retryable else "refusing", "error": error.message}
    ready = [model for model in report.models if model.state == "ready"]
    shown = [m.ref if m.state == "ready" else f"{m.ref} ({m.state})" for m in report.models]
    return {
        **row,
        **report.model_dump(mode="json"),
        "node": node.name,
        "state": "ready" if ready else "no model",
        "models_shown": ", ".join(shown),
        "running": sum(m.running for m in report.models),
        "queued": sum(m.queued for m in report.models),
        "round_trip_ms": round((time.monotonic() - started) * 1000, 1),
    }
