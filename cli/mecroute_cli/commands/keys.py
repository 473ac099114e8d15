"""`mecroute keys`: the API keys of this machine's node."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mecroute_cli.help import examples
from mecroute_cli.nouns import Noun
from mecroute_cli.session import Session, session_of
from mecroute_cli.tables import Column

if TYPE_CHECKING:
    from mecroute_server.keys import ApiKey, KeyFile

COLUMNS = (
    Column("id", "id", whole=True),
    Column("name", "name"),
    Column("scopes", "scopes", lambda scopes: ", ".join(scopes)),
    Column("requests_per_minute", "requests/min", right=True),
    Column("output_tokens_per_minute", "output tokens/min", right=True),
    Column("created", "created"),
)

File = Annotated[
    Path | None,
    typer.Option("--file", metavar="FILE", help="The keys file; default: [server] keys_file, or the user's."),
]


def build() -> typer.Typer:
    """`mecroute keys …`."""
    noun = Noun("API keys of a node on this machine: what each may do, and how much.")
    noun.verb(
        "create",
        create,
        examples(
            "mecroute keys create --name app --scope infer --requests-per-minute 60",
            "mecroute keys create --name ci --scope deploy --file /etc/mecroute/keys.json",
        ),
    )
    noun.verb("list", list_keys, examples("mecroute keys list", "mecroute keys list --json"))
    noun.verb("revoke", revoke, examples("mecroute keys revoke 1f2e3d4c"))
    return noun.app


def create(
    ctx: typer.Context,
    name: Annotated[str, typer.Option("--name", help="Whose key it is.")],
    scope: Annotated[
        list[str] | None,
        typer.Option("--scope", metavar="SCOPE", help="infer (default), deploy or admin; several times."),
    ] = None,
    requests_per_minute: Annotated[
        int | None, typer.Option("--requests-per-minute", min=1, help="Then 429.")
    ] = None,
    output_tokens_per_minute: Annotated[
        int | None, typer.Option("--output-tokens-per-minute", min=1, help="Then 429.")
    ] = None,
    file: File = None,
) -> None:
    """Make a key; its secret is shown this once and kept nowhere."""
    from mecroute.errors import InvalidRequestError
    from mecroute_server.keys import KeyScope

    session = session_of(ctx)
    keys = _file(session, file)
    try:
        scopes = [KeyScope(word) for word in scope or ["infer"]]
    except ValueError as error:
        raise InvalidRequestError(f"--scope: {error}", hint="infer, deploy or admin") from error
    key, secret = keys.create(
        name,
        scopes,
        requests_per_minute=requests_per_minute,
        output_tokens_per_minute=output_tokens_per_minute,
    )
    session.output.dict("key", {**_row(key), "secret": secret}, {"id": key.id, "key": secret})
    session.output.note("the key is shown this once: only its digest is kept")
    if session.config.server.keys_file != keys.path:
        session.output.hint(f"mecroute serve --keys-file {keys.path}")


def list_keys(ctx: typer.Context, file: File = None) -> None:
    """List the keys, without their secrets."""
    session = session_of(ctx)
    keys = _file(session, file)
    rows = [_row(key) for key in keys.read()]
    session.output.table("keys", rows, COLUMNS, empty=f"no key in {keys.path}")
    if not rows:
        session.output.hint("mecroute keys create --name app --scope infer")


def revoke(
    ctx: typer.Context,
    id: Annotated[str, typer.Argument(metavar="ID", help="As `mecroute keys list` shows it.")],
    file: File = None,
) -> None:
    """Take a key out of the file; a running node refuses it at once."""
    session = session_of(ctx)
    key = _file(session, file).revoke(id)
    session.output.dict("revoked", _row(key), {"revoked": f"{key.id} ({key.name})"})


def _file(session: Session, path: Path | None) -> KeyFile:
    from mecroute_registry.paths import config_dir
    from mecroute_server.keys import KeyFile

    return KeyFile(path or session.config.server.keys_file or config_dir() / "keys.json")


def _row(key: ApiKey) -> dict[str, Any]:
    return {name: value for name, value in key.to_dict().items() if name != "sha256"}
