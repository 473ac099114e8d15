"""`mecroute cascade`: how good a first answer must look to be kept, found by judged answers."""

from __future__ import annotations

from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mecroute_cli import formats
from mecroute_cli.help import examples
from mecroute_cli.nouns import Noun
from mecroute_cli.session import Session, session_of
from mecroute_cli.tables import Column

if TYPE_CHECKING:
    from mecroute.cascade.calibration import Calibrated
    from mecroute.config.cascade import CascadeConfig
    from mecroute.state.store import StateStore

COLUMNS = (
    Column("target", "first target"),
    Column("answers", "judged", right=True),
    Column("wrong_answers", "wrong", right=True),
    Column("judge", "judge"),
    Column("threshold", "keeps from", lambda v: "-" if v is None else formats.decimals(v, 3), right=True),
    Column("keep_share", "keeps", lambda v: f"{v:.0%}", right=True),
    Column("says", "of those kept"),
)


class JudgeName(StrEnum):
    """What an answer is judged by, as typed on the command line."""

    MEAN_LOGPROB = "mean-logprob"
    MIN_LOGPROB = "min-logprob"
    AGREEMENT = "agreement"
    VERIFIER = "verifier"


Judge = Annotated[
    JudgeName | None,
    typer.Option("--judge", help="What answers are judged by; default: [router.cascade] judge."),
]
ErrorRate = Annotated[
    float | None,
    typer.Option("--max-error-rate", help="Wrong answers among those kept, at most; default: the setting."),
]
Confidence = Annotated[
    float | None, typer.Option("--confidence", help="That this rate is kept; default: the setting.")
]


def build() -> typer.Typer:
    """`mecroute cascade …`."""
    noun = Noun("When a first answer is good enough to be kept.")
    noun.verb(
        "calibrate",
        calibrate,
        examples(
            "mecroute cascade calibrate judged.csv --target device/smollm2:q4_0",
            "mecroute cascade calibrate judged.csv --target device/smollm2:q4_0 --judge verifier --dry-run",
            "mecroute cascade calibrate gsm8k.csv --target mec/n1/qwen:q4 --answer weak_answer "
            "--correct weak_correct",
        ),
    )
    noun.verb(
        "show", show, examples("mecroute cascade show", "mecroute cascade show --max-error-rate 0.1 --json")
    )
    return noun.app


def calibrate(
    ctx: typer.Context,
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="CSV: prompt, answer, mean_logprob, …, correct (0 or 1).")
    ],
    target: Annotated[
        str,
        typer.Option(
            "--target", metavar="TARGET", help="Whose answers they are: a target of `mecroute route`."
        ),
    ],
    answer: Annotated[str, typer.Option("--answer", help="Column of the answers.")] = "answer",
    correct: Annotated[
        str, typer.Option("--correct", help="Column that is 1 where they are right.")
    ] = "correct",
    judge: Judge = None,
    max_error_rate: ErrorRate = None,
    confidence: Confidence = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Keep nothing; only say what follows.")] = False,
) -> None:
    """Find from which score on a target's answers may be kept, by answers that were judged.

    Of the answers kept at most a stated share is wrong, with a stated confidence. What was judged goes into
    the state database, as numbers without any text, in the place of an earlier file of that target.
    """
    from mecroute.cascade.file import keep_judged, read_judged
    from mecroute.cascade.judged import JudgedAnswers

    session = session_of(ctx)
    config = _config(session, judge, max_error_rate, confidence)
    pairs = read_judged(file, answer=answer, correct=correct)
    if dry_run:
        found = JudgedAnswers(config).read(target, pairs)
    else:
        _check_target(target)
        store = _store(session)
        found = keep_judged(store, config, target, pairs)
        store.close()
    wrong = sum(not pair.right for pair in pairs)
    told = {"target": target, "answers": len(pairs), "wrong_answers": wrong, **_told(found)}
    session.output.dict(
        "calibration",
        told,
        {
            "target": target,
            "read": f"{len(pairs)} answers, {wrong} wrong ({wrong / len(pairs):.1%})",
            "judge": found.judge,
            "keeps from": "nothing" if found.threshold is None else f"a score of {found.threshold:.3f}",
            "keeps": f"about {found.keep_share:.0%} of answers",
            "of those kept": _says(found),
        },
    )
    if found.threshold is None:
        session.output.note(f"no cascade begins at {target}: {found.problem}")
        session.output.hint(
            "judge more answers, allow more errors with --max-error-rate, or try another --judge"
        )
    elif not dry_run:
        session.output.note("kept; clients read it when they start")
        if not config.enabled:
            session.output.hint("[router.cascade] enabled = true, or requirements.cascade, puts it to use")
        if (config.judge, config.max_error_rate, config.confidence) != _settings(session):
            session.output.hint("clients go by [router.cascade]: set judge, max_error_rate, confidence there")


def show(
    ctx: typer.Context,
    judge: Judge = None,
    max_error_rate: ErrorRate = None,
    confidence: Confidence = None,
) -> None:
    """Show from which score on the answers of each target are kept, and what that stands on."""
    from mecroute.cascade.file import judged_in

    session = session_of(ctx)
    config = _config(session, judge, max_error_rate, confidence)
    store = _store(session)
    known = judged_in(store, config)
    store.close()
    rows: list[dict[str, Any]] = []
    for target in known.targets():
        found, counts = known.of(target), known.counts(target)
        if found is not None:
            answers = counts["file"] + counts["live"]
            rows.append(
                {"target": target, "answers": answers, "wrong_answers": counts["wrong"], **_told(found)}
            )
    session.output.table(
        "cascades",
        rows,
        COLUMNS,
        empty=f"no answers were judged yet in {store.path}; `mecroute cascade calibrate`",
    )


def _told(found: Calibrated) -> dict[str, Any]:
    fields = asdict(found)
    del fields["verifier"]
    return {**fields, "problem": found.problem, "says": _says(found)}


def _says(found: Calibrated) -> str:
    if found.threshold is None:
        return f"none: {found.problem}"
    return (
        f"{found.wrong} of {found.kept} wrong: at most {found.upper_bound:.1%}, with {found.confidence:.0%} "
        "confidence"
    )


def _config(
    session: Session, judge: JudgeName | None, max_error_rate: float | None, confidence: float | None
) -> CascadeConfig:
    from mecroute.errors import UsageError

    for name, value in (("--max-error-rate", max_error_rate), ("--confidence", confidence)):
        if value is not None and not 0 < value < 1:
            raise UsageError(f"{name} must be between 0 and 1, not {value:g}")
    asked = {
        "judge": judge.value if judge is not None else None,
        "max_error_rate": max_error_rate,
        "confidence": confidence,
    }
    stated = {name: value for name, value in asked.items() if value is not None}
    return session.config.router.cascade.model_copy(update=stated)


def _settings(session: Session) -> tuple[str, float, float]:
    config = session.config.router.cascade
    return config.judge, config.max_error_rate, config.confidence


def _check_target(target: str) -> None:
    from mecroute.errors import UsageError

    tier, _, rest = target.partition("/")
    if tier not in ("device", "mec", "cloud") or not rest or "|" in target:
        raise UsageError(
            f"'{target}' is no target",
            hint="device/MODEL, mec/NODE/MODEL or cloud/NAME/MODEL; see `mecroute route`",
        )


def _store(session: Session) -> StateStore:
    from mecroute.state.store import StateStore, database_path

    return StateStore(database_path(session.config.state))
