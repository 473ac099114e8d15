"""`mecroute learned`: what was learned from answers, listed, exported, thrown away."""

from __future__ import annotations

import json
import time
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mecroute_cli import formats
from mecroute_cli.arguments import Yes
from mecroute_cli.help import examples
from mecroute_cli.nouns import Noun
from mecroute_cli.session import Session, session_of
from mecroute_cli.tables import Column

if TYPE_CHECKING:
    from mecroute.state.store import StateStore

COLUMNS = (
    Column("kind", "kind"),
    Column("name", "of"),
    Column("says", "says"),
    Column("at", "changed", formats.when, whole=True),
)


class KindName(StrEnum):
    """A kind of knowledge, as typed on the command line."""

    CORRECTION = "correction"
    QUALITY = "quality"
    DRIFT = "drift"
    USER = "user"
    CASCADE = "cascade"
    LOGPROBS = "logprobs"


Kinds = Annotated[
    list[KindName] | None,
    typer.Option(
        "--kind", metavar="KIND", help="correction, quality, drift, user, cascade or logprobs; several times."
    ),
]


def build() -> typer.Typer:
    """`mecroute learned …`."""
    noun = Noun("What was learned from answers: speeds, quality, drift, answer lengths.")
    noun.verb(
        "list", list_learned, examples("mecroute learned list", "mecroute learned list --kind quality --json")
    )
    noun.verb(
        "export", export, examples("mecroute learned export learned.json", "mecroute learned export - | jq .")
    )
    noun.verb(
        "reset",
        reset,
        examples(
            "mecroute learned reset --kind quality --target mec/node-1/smollm2:q8_0",
            "mecroute learned reset --yes",
        ),
    )
    return noun.app


def list_learned(ctx: typer.Context, kind: Kinds = None) -> None:
    """List everything that was learned."""
    from mecroute.evidence.listing import listed

    session = session_of(ctx)
    store = _store(session)
    rows = [row for row in listed(store.learned()) if not kind or row["kind"] in kind]
    store.close()
    session.output.table("learned", rows, COLUMNS, empty=f"nothing was learned yet in {store.path}")


def export(
    ctx: typer.Context,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Where to; - writes to stdout.")],
) -> None:
    """Write everything that was learned as one JSON document."""
    session = session_of(ctx)
    store = _store(session)
    entries = [{"kind": r.kind, "name": r.name, "at": r.at, "value": r.value} for r in store.learned()]
    store.close()
    text = json.dumps({"version": 1, "exported_at": time.time(), "learned": entries}, indent=2)
    if str(file) == "-":
        session.output.stdout.write(text + "\n")
        return
    file.write_text(text + "\n", encoding="utf-8")
    fields = {"path": str(file), "entries": len(entries)}
    session.output.dict("exported", fields, {"exported": f"{len(entries)} entries to {file}"})


def reset(
    ctx: typer.Context,
    kind: Kinds = None,
    target: Annotated[
        str | None, typer.Option("--target", metavar="TARGET", help="Only of this target (or user's digest).")
    ] = None,
    yes: Yes = False,
) -> None:
    """Throw away what was learned; running clients forget it within seconds of their next answer."""
    from mecroute.evidence.listing import KINDS

    session = session_of(ctx)
    store = _store(session)
    kinds = [item.value for item in kind] if kind else list(KINDS)
    if not yes:
        what = f"{', '.join(kinds)} of {target or 'everything'}"
        typer.confirm(f"throw away what was learned in {store.path}: {what}?", abort=True, err=True)
    gone = store.forget(kinds, target)
    store.close()
    fields = {"entries": gone, "kinds": kinds, "target": target}
    session.output.dict("reset", fields, {"thrown away": f"{gone} entries"})


def _store(session: Session) -> StateStore:
    from mecroute.state.store import StateStore, database_path

    return StateStore(database_path(session.config.state))
