"""Where judged answers come from, that they survive a restart, and that they can be thrown away."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mecroute import Client, Requirements
from mecroute.cascade.calibration import Pair
from mecroute.cascade.file import KIND, judged_in, keep_judged, read_judged
from mecroute.cascade.judged import Given, JudgedAnswers, judged_answers
from mecroute.cascade.marks import Marks
from mecroute.config import MonitorConfig
from mecroute.config.cascade import CascadeConfig
from mecroute.errors import UsageError
from mecroute.evidence.learning import Judgement
from mecroute.evidence.listing import listed
from mecroute.state.store import StateStore
from support.cascades import HELLO, LARGE, SECOND, SMALL, UNSURE, calibrated, report, settings, text_of
from support.upstream import upstream

CONFIG = CascadeConfig(max_error_rate=0.2)


def judgement(source: str = "feedback", score: float = 1.0, **more: object) -> Judgement:
    return Judgement("r", source, SMALL, 0.5, 0.5, score, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("given", "said", "expected"),
    [
        (Given(SMALL, Marks()), judgement(), (None, 0.0)),
        (Given(SMALL, Marks(), "x", 0.7), judgement(), ("x", 0.7)),
        # Which answers are compared is a matter of chance, and of no score.
        (Given(SMALL, Marks(), "x", 0.7), judgement("shadow"), (None, 0.0)),
        (Given(SMALL, Marks(), is_escalated=True), judgement("shadow"), (None, 0.0)),
        (Given(SMALL, Marks(), is_escalated=True), judgement(), None),
        (Given(SMALL, Marks()), judgement("signals"), None),
        (Given(SMALL, Marks()), judgement("shadow", is_settled=False), None),
        (Given(LARGE, Marks()), judgement(), None),
    ],
)
def test_what_is_counted_and_how(
    given: Given, said: Judgement, expected: tuple[str | None, float] | None
) -> None:
    known = JudgedAnswers(CONFIG)
    known.given("r", given)
    known.judged(said)
    known.judged(said)
    pages = known.take_changes()
    if expected is None:
        assert pages == {}
    else:
        ((name, page),) = pages.items()
        assert name == f"{SMALL}|live|0"
        assert [row[:3] for row in page["answers"]] == [[1, *expected]], "once, however often it was said"


def test_everything_survives_a_restart_in_any_order() -> None:
    known = JudgedAnswers(CONFIG)
    pairs = [Pair(Marks(mean_logprob=-at / 1000), at < 900) for at in range(1000)]
    known.read(SMALL, pairs)
    for at in range(2200):
        known.given("r", Given(SMALL, Marks(mean_logprob=-0.5)))
        known.judged(judgement(score=float(at % 2)))
    kept = known.take_changes()
    assert known.take_changes() == {}
    assert json.loads(json.dumps(kept)) == kept
    again = judged_answers(kept.items(), CONFIG)
    assert again.counts(SMALL) == known.counts(SMALL) == {"file": 1000, "live": 2048, "wrong": 1124}
    assert again.of(SMALL) == known._calibrate(SMALL)
    as_stored = JudgedAnswers(CONFIG)
    for name in sorted(kept):
        as_stored.restore(name, kept[name])
    as_stored.ready()
    assert as_stored.of(SMALL) == again.of(SMALL)


def test_damage_is_left_out() -> None:
    known = JudgedAnswers(CONFIG)
    row = [1, None, 0.0, -0.5, -0.5, None, None, 0.0]
    for name, value in {
        "x": {"answers": [row], "added": 1},
        f"{SMALL}|file|x": {"answers": [row], "added": 1},
        f"{SMALL}|other|0": {"answers": [row], "added": 1},
        f"{SMALL}|file|0": {"answers": [row]},
        f"{SMALL}|file|1": {"answers": [[2, *row[1:]]], "added": 1},
        f"{SMALL}|file|2": {"answers": [[1, 3, *row[2:]]], "added": 1},
        f"{SMALL}|file|3": {"answers": [[]], "added": 1},
        f"{SMALL}|file|4": {"answers": "x", "added": 1},
        f"{SMALL}|file|5": {"answers": [[1, None, "x", *row[3:]]], "added": 1},
    }.items():
        known.restore(name, value)
    known.ready()
    assert known.targets() == []


@pytest.fixture
def csv(tmp_path: Path) -> Path:
    path = tmp_path / "judged.csv"
    path.write_text(
        "prompt,answer,mean_logprob,min_logprob,agreement,correct,else\n"
        "2+2?,It is 4.,-0.1,-0.5,1,1,x\n"
        "3+3?,It is 7.,-1.5,-3,,0,\n"
        "5?,I'm sorry but I cannot help with that.,,,0.5,0,\n"
    )
    return path


def test_a_file_is_read(csv: Path) -> None:
    one, two, three = read_judged(csv)
    assert (one.right, one.marks.mean_logprob, one.marks.min_logprob, one.marks.agreement) == (
        True,
        -0.1,
        -0.5,
        1,
    )
    assert (two.right, two.marks.agreement, two.marks.bad) == (False, None, False)
    assert (three.marks.mean_logprob, three.marks.bad) == (None, True)
    assert one.under is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no column 'correct'"),
        ("prompt,correct\nx,1\n", "no column 'answer' or 'mean_logprob'"),
        ("answer,correct\nx,2\n", "row 2, column 'correct': '2' is neither 0 nor 1"),
        ("answer,correct\nx,\n", "is neither 0 nor 1"),
        ("mean_logprob,correct\n0.5,1\n", "row 2, column 'mean_logprob': '0.5' is not a number of at most 0"),
        ("mean_logprob,correct\n-inf,1\n", "is not a number of at most 0"),
        ("mean_logprob,correct\nnan,1\n", "is not a number of at most 0"),
        ("agreement,correct\n1.5,1\n", "is not a number from 0 to 1"),
        ("agreement,correct\nx,1\n", "is not a number from 0 to 1"),
        ("answer,correct\n", "holds no row"),
        ('answer,correct\n"x,1\n', "is not a CSV file"),
    ],
)
def test_a_file_that_is_wrong_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "judged.csv"
    path.write_text(text)
    with pytest.raises(UsageError) as refused:
        read_judged(path)
    assert message in refused.value.message
    path.write_bytes(b"answer,correct\n\xff,1\n")
    with pytest.raises(UsageError, match="not UTF-8"):
        read_judged(path)
    with pytest.raises(UsageError, match="cannot be read"):
        read_judged(tmp_path / "absent.csv")


def test_a_second_file_takes_the_place_of_the_first_and_a_reset_of_both(tmp_path: Path) -> None:
    store = StateStore(tmp_path / "state.sqlite3")
    keep_judged(store, CONFIG, SMALL, [Pair(Marks(mean_logprob=-0.1), True)] * 200)
    keep_judged(store, CONFIG, f"{SMALL}-b", [Pair(Marks(mean_logprob=-0.1), True)] * 3)
    keep_judged(store, CONFIG, SMALL, [Pair(Marks(mean_logprob=-0.1), False)] * 70)
    assert judged_in(store, CONFIG).counts(SMALL) == {"file": 70, "live": 0, "wrong": 70}
    (entry, other) = listed(store.learned())
    assert (entry["kind"], entry["name"], entry["file"], other["file"]) == (KIND, SMALL, 70, 3)
    assert "70 judged answers from a file" in entry["says"]
    assert store.forget([KIND], SMALL) > 0
    assert judged_in(store, CONFIG).targets() == [f"{SMALL}-b"]
    store.close()


def test_thresholds_come_from_feedback_alone_where_there_is_enough(tmp_path: Path) -> None:
    cascade = {"max_error_rate": 0.4, "confidence": 0.8}  # six right answers are the least
    with upstream(report=report(), words=["Four."], logprob=-0.05) as small, upstream() as large:
        config = settings(tmp_path, small, large, cascade=cascade, router={"policy": "cheap"})
        with Client(config) as client:
            for _ in range(8):
                reply = client.chat.completions.create(messages=HELLO, requirements={"cache": "off"})
                assert reply.mecroute.tier == "mec"
                assert "logprobs" not in reply.to_dict()["choices"][0]
                client.feedback(reply.id, score=1.0)
            large.requests.clear()
        with Client(config) as client:
            asked = Requirements(cascade=True)
            decision = client.route(messages=HELLO, requirements=asked)
            assert decision.cascade is not None, decision.explain()
            small.logprob = UNSURE
            reply = client.chat.completions.create(messages=HELLO, requirements=asked)
            assert text_of(reply) == SECOND
            # This is said of the other target's answer.
            client.feedback(reply.id, score=0.0)
    store = StateStore(config.state.path)
    assert judged_in(store, config.router.cascade).counts(SMALL) == {"file": 0, "live": 8, "wrong": 0}
    store.close()


def test_escalations_and_kept_answers_are_compared_alike(tmp_path: Path) -> None:
    with (
        upstream(report=report(), words=["It is 4."], logprob=UNSURE) as small,
        upstream(words=["4"]) as large,
    ):
        config = settings(tmp_path, small, large).model_copy(
            update={"monitor": MonitorConfig(shadow_rate=1, shadow_budget_usd_per_day=1)}
        )
        calibrated(config)
        with Client(config) as client:
            large.words = ["4"]
            same = client.chat.completions.create(messages=HELLO)
            large.words = ["5"]
            other = client.chat.completions.create(messages=HELLO, temperature=0.1)
        assert [r.mecroute.tier for r in (same, other)] == ["cloud", "cloud"]
        assert len(large.requests) == 2, "what is there already is not asked for again"
    store = StateStore(config.state.path)
    counts = judged_in(store, config.router.cascade).counts(SMALL)
    store.close()
    assert counts["live"] == 2
    assert counts["wrong"] - 450 == 1


def test_a_target_that_refuses_to_be_measured_answers_as_it_would_without(
    tmp_path: Path,
) -> None:
    with upstream(report=report(), refuses_logprobs=True) as small, upstream() as large:
        config = settings(tmp_path, small, large, router={"policy": "cheap"})
        with Client(config) as client:
            for _ in range(2):
                reply = client.chat.completions.create(messages=HELLO, requirements={"cache": "off"})
                assert (text_of(reply), reply.mecroute.tier) == (SECOND, "mec")
        assert [request.get("logprobs") for request in small.requests] == [True, None, None]
