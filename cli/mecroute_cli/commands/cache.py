"""`mecroute cache`: remembered answers, and how similar a question must be for one of them."""

from __future__ import annotations

import csv
import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from mecroute_cli.help import examples
from mecroute_cli.nouns import Noun
from mecroute_cli.session import Session, session_of

_MAX_BYTES = 200_000_000


def build() -> typer.Typer:
    """`mecroute cache …`."""
    noun = Noun("Remembered answers.")
    noun.verb(
        "calibrate",
        calibrate_semantic,
        examples(
            "mecroute cache calibrate questions.csv --label category",
            "mecroute cache calibrate questions.jsonl --rate 0.05",
        ),
    )
    noun.verb("show", show, examples("mecroute cache show", "mecroute cache show --json"))
    noun.verb("clear", clear, examples("mecroute cache clear --yes"))
    return noun.app


def calibrate_semantic(
    ctx: typer.Context,
    data: Annotated[
        Path, typer.Argument(metavar="DATA", help="CSV or JSON lines: questions, and which are alike.")
    ],
    text: Annotated[str, typer.Option("--text", help="Column of the questions.")] = "text",
    label: Annotated[
        str, typer.Option("--label", help="Column that is equal where one answer would do.")
    ] = "label",
    rate: Annotated[
        float | None, typer.Option("--rate", help="Wrong hits among hits, at most; default: the setting.")
    ] = None,
    limit: Annotated[int, typer.Option("--limit", min=10, help="Rows to read, at most.")] = 6000,
) -> None:
    """Find how similar a question must be, so that at most a stated share of semantic hits is wrong."""
    from mecroute.agents.cache import open_embedder
    from mecroute.caching.calibration import calibrate, save_calibration

    session = session_of(ctx)
    config = session.config.cache
    rows = read_pairs(data, text, label, limit)
    embedder = open_embedder(config)
    with session.output.progress(f"comparing {len(rows)} questions", unit="share") as update:
        try:
            found = calibrate(rows, embedder, rate=rate if rate is not None else config.wrong_hit_rate)
        finally:
            embedder.close()
        update(1, 1)
    kept = save_calibration(found)
    session.output.dict(
        "calibration",
        asdict(found),
        {
            "embedder": found.embedder,
            "threshold": "none" if found.threshold is None else f"{found.threshold:.3f}",
            "hits": f"{found.hits} of {found.lookups}, {found.wrong} wrong",
            "bound": f"at most {found.upper_bound:.2%} wrong, with {found.confidence:.0%} confidence",
            "unseen": f"{found.check_hits} of {found.check_lookups}, {found.check_wrong} wrong",
        },
    )
    if found.threshold is None:
        session.output.note(
            f"no threshold keeps wrong hits at {found.rate:g} on these: the semantic cache stays off"
        )
        session.output.hint("allow more with --rate, or name an [cache] encoder, which knows more of meaning")
    else:
        session.output.note(f"kept in {kept}")
        if not config.semantic:
            session.output.hint("[cache] semantic = true puts it to use")


def show(ctx: typer.Context) -> None:
    """Show what is kept on disk, and whether the semantic cache can be used."""
    from mecroute.agents.cache import open_embedder, semantic_problem
    from mecroute.errors import MecrouteError

    session = session_of(ctx)
    config = session.config.cache
    answers, size = _count(session)
    problem: str | None = "[cache] semantic is false"
    if config.semantic:
        try:
            embedder = open_embedder(config)
            try:
                problem, _ = semantic_problem(config, embedder)
            finally:
                embedder.close()
        except MecrouteError as error:
            problem = error.message
    told = {
        "persist": config.persist,
        "answers": answers,
        "size_bytes": size,
        "semantic": problem is None,
        "semantic_problem": problem,
    }
    session.output.dict(
        "cache",
        told,
        {
            "on disk": f"{answers} answers, {size} bytes" + ("" if config.persist else " (persist is false)"),
            "semantic": "on" if problem is None else f"off: {problem}",
        },
    )


def clear(
    ctx: typer.Context, yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False
) -> None:
    """Forget every answer that is kept on disk."""
    session = session_of(ctx)
    disk = _disk(session)
    if disk is None:
        session.output.note("no answers are kept on disk")
        return
    if not yes:
        typer.confirm(f"Forget every answer in {disk.path}?", abort=True, err=True)
    count = disk.clear()
    disk.close()
    session.output.dict("cleared", {"answers": count})


def read_pairs(path: Path, text: str, label: str, limit: int) -> list[tuple[str, str]]:
    """Questions with their labels, from CSV with a header or JSON lines.

    Raises:
        UsageError: the file cannot be read, or has no such column.
    """
    from mecroute.errors import UsageError

    def wrong(what: str) -> UsageError:
        return UsageError(f"{path}: {what}", hint="name the columns with --text and --label")

    try:
        if path.stat().st_size > _MAX_BYTES:
            raise wrong(f"is larger than {_MAX_BYTES:,} bytes")
        with path.open(encoding="utf-8", newline="") as file:
            rows: Any = csv.DictReader(file) if path.suffix.lower() == ".csv" else map(json.loads, file)
            found = []
            for number, row in enumerate(rows, 1):
                if not isinstance(row, dict) or row.get(text) is None or row.get(label) is None:
                    raise wrong(f"row {number} has no '{text}' or no '{label}'")
                found.append((str(row[text]), str(row[label])))
    except (OSError, UnicodeDecodeError, ValueError, csv.Error) as error:
        raise wrong(str(error)) from error
    # Files are often sorted by label, so rows are taken from all over it.
    step = max(1, math.ceil(len(found) / limit))
    return found[::step]


def _disk(session: Session) -> Any:
    from mecroute.caching.disk import AnswerDisk, default_path

    config = session.config.cache
    path = config.path.expanduser() if config.path is not None else default_path()
    return AnswerDisk(path, ttl_s=config.ttl_s, max_bytes=config.max_bytes) if path.exists() else None


def _count(session: Session) -> tuple[int, int]:
    disk = _disk(session)
    if disk is None:
        return 0, 0
    try:
        count, size = disk.count()
        return count, size
    finally:
        disk.close()
