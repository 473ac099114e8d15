"""`mecroute registry`: the registry as a whole."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from mecroute_cli.help import examples
from mecroute_cli.nouns import Noun
from mecroute_cli.session import session_of


def build() -> typer.Typer:
    """`mecroute registry …`."""
    noun = Noun("The local registry as a whole.")
    noun.verb(
        "export",
        export,
        examples("mecroute registry export", "mecroute registry export --output models.json"),
    )
    return noun.app


def export(
    ctx: typer.Context,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Write there; default: stdout.")
    ] = None,
) -> None:
    """Write the registry as one JSON index."""
    session = session_of(ctx)
    index = session.registry().export()
    if output is None:
        # JSON either way: the index is data that older tools read, so it keeps its own shape under --json.
        session.output.stdout.write(json.dumps(index, indent=2, ensure_ascii=False) + "\n")
        return
    temporary = output.with_name(f".{output.name}.part")
    temporary.write_text(json.dumps(index, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    temporary.replace(output)
    session.output.dict(
        "exported",
        {"file": str(output), "models": len(index["models"])},
        {"exported": f"{len(index['models'])} models to {output}"},
    )
