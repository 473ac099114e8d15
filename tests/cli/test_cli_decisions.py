"""`mecroute decisions`, `learned` and `budgets` over what a real client recorded."""

from __future__ import annotations

import json
import os
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from mecroute import Client, load_config
from support.upstream import upstream

Run = Callable[..., Any]


@pytest.fixture
def recorded(empty_dir: Path) -> Iterator[list[str]]:
    """A project whose client answered four requests, one of which failed; yields their ids."""
    with upstream() as cloud:
        (empty_dir / "mecroute.toml").write_text(
            f'[registry]\npath = "{empty_dir}/registry"\n[device]\nenabled = false\n'
            f'[state]\npath = "{empty_dir}/state.sqlite3"\n'
            "[router]\ntie_margin = 0\nsticky_margin = 0\n"  # the cheaper cloud is always the first
            f'[[cloud]]\nname = "c1"\nbase_url = "{cloud.url}/v1"\nmodel = "big"\n'
            "input_usd_per_mtok = 1\noutput_usd_per_mtok = 1\n"
            f'[[cloud]]\nname = "c2"\nbase_url = "{cloud.url}/v1"\nmodel = "bigger"\nquality = 0.95\n'
            "input_usd_per_mtok = 2\noutput_usd_per_mtok = 2\n"
            '[[budgets]]\nname = "team"\nlimit_usd = 2\nper = "month"\n'
            '[[budgets]]\nname = "each"\nlimit_usd = 1\nfor = "user"\n'
        )
        ids = []
        with Client(load_config().config) as client:
            for number in range(3):
                reply = client.chat.completions.create(
                    messages=[{"role": "user", "content": f"Tell me about fox {number}."}],
                    max_tokens=20, user="ann",
                )  # fmt: skip
                ids.append(reply.id)
            client.feedback(ids[0], score=0.0)
            cloud.status = 500
            with pytest.raises(Exception, match="failed"):
                client.chat.completions.create(messages=[{"role": "user", "content": "x"}], max_tokens=20)
        yield ids


def test_decisions_are_listed_newest_first_and_filtered(recorded: list[str], mecroute: Run) -> None:
    rows = mecroute("decisions", "list", "--json").json["decisions"]
    assert [row["id"] for row in rows[1:]] == recorded[::-1]
    assert rows[0]["error"]
    assert [r["id"] for r in mecroute("decisions", "list", "--errors", "--json").json["decisions"]] == [
        rows[0]["id"]
    ]
    assert len(mecroute("decisions", "list", "--limit", "2", "--json").json["decisions"]) == 2
    assert len(mecroute("decisions", "list", "--since", "1h", "--json").json["decisions"]) == 4
    assert len(mecroute("decisions", "list", "--target", "cloud/c1", "--json").json["decisions"]) == 3
    for nothing in (("--until", "1h"), ("--target", "mec"), ("--under", "cheap"), ("--explored",)):
        assert mecroute("decisions", "list", *nothing, "--json").json["decisions"] == []
    told = mecroute("decisions", "list")
    assert recorded[0] in told.out
    assert f"mecroute decisions show {rows[0]['id']}" in told.err
    assert mecroute("decisions", "list", "--since", "sometime").code == 2


def test_one_decision_is_shown_with_everything_behind_it(recorded: list[str], mecroute: Run) -> None:
    found = mecroute("decisions", "show", recorded[0][:16], "--json").json["decision"]
    assert found["request_id"] == recorded[0]
    assert {c["target"]["id"] for c in found["decision"]["candidates"]} == {"cloud/c1/big", "cloud/c2/bigger"}
    assert found["judgements"][0]["source"] == "feedback"
    assert found["regret_after"] > found["regret"]["value"]
    told = mecroute("decisions", "show", recorded[0]).out
    for word in ("cloud/c1/big", "cloud/c2/bigger", "feedback", "regret", "propensity", "accuracy 0.90"):
        assert word in told
    failed = mecroute("decisions", "list", "--errors", "--json").json["decisions"][0]["id"]
    assert "500" in mecroute("decisions", "show", failed).out
    unknown = mecroute("decisions", "show", "req-nothing")
    assert unknown.code == 2
    assert "mecroute decisions list" in unknown.err
    assert "several" in mecroute("decisions", "show", "req-").err


def test_a_replay_tells_what_other_weights_would_choose(recorded: list[str], mecroute: Run) -> None:
    found = mecroute("decisions", "replay", "--weights", "quality=1", "--json").json["replay"]
    assert found["decisions"] == 4
    assert found["chosen"] == {"cloud/c2/bigger": 1.0}
    assert found["supported"] == 0
    told = mecroute("decisions", "replay", "--weights", "quality=1")
    assert "doubly robust" in told.out
    assert "support is missing for 100.0%" in told.err
    alike = mecroute("decisions", "replay", "--policy", "balanced", "--since", "1d", "--json").json["replay"]
    assert alike["agreement"] == 1
    assert mecroute("decisions", "replay", "--policy", "unheard-of").code == 2
    assert mecroute("decisions", "replay").code == 2


def test_health_shows_corrections_and_alarms(recorded: list[str], mecroute: Run, empty_dir: Path) -> None:
    (row,) = [
        r for r in mecroute("decisions", "health", "--json").json["health"] if r["target"] == "cloud/c1/big"
    ]
    assert row["samples"] == 4
    assert row["availability"] < 1
    assert row["alarms"] == []
    with closing(sqlite3.connect(empty_dir / "state.sqlite3")) as connection:
        (text,) = connection.execute(
            "SELECT value FROM learned WHERE kind = 'drift' AND name = 'cloud/c1/big'"
        ).fetchone()
        value = json.loads(text) | {"alarms": {"failing": 5}}
        connection.execute(
            "UPDATE learned SET value = ? WHERE kind = 'drift' AND name = 'cloud/c1/big'",
            (json.dumps(value),),
        )
        connection.commit()
    told = mecroute("decisions", "health")
    assert "failing" in told.out
    assert "fails more than it used to" in told.err


def test_what_was_learned_is_listed_exported_and_reset(
    recorded: list[str], mecroute: Run, empty_dir: Path
) -> None:
    rows = mecroute("learned", "list", "--json").json["learned"]
    assert {row["kind"] for row in rows} == {"correction", "quality", "drift", "user"}
    assert "ann" not in mecroute("learned", "list").out
    assert {r["kind"] for r in mecroute("learned", "list", "--kind", "user", "--json").json["learned"]} == {
        "user"
    }
    assert mecroute("learned", "export", empty_dir / "learned.json").code == 0
    exported = json.loads((empty_dir / "learned.json").read_text())
    assert len(exported["learned"]) == len(rows)
    assert json.loads(mecroute("learned", "export", "-").out)["learned"] == exported["learned"]

    gone = mecroute("learned", "reset", "--kind", "quality", "--target", "cloud/c1/big", "--yes", "--json")
    assert gone.json["reset"]["entries"] == 1
    left = mecroute("learned", "list", "--json").json["learned"]
    assert len(left) == len(rows) - 1
    assert not any(r["kind"] == "quality" and r["name"] == "cloud/c1/big" for r in left)
    assert mecroute("learned", "reset", "--yes").code == 0
    assert mecroute("learned", "list", "--json").json["learned"] == []


def test_a_reset_asks_first(recorded: list[str], mecroute: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    with Path(os.devnull).open(encoding="utf-8") as nothing:
        monkeypatch.setattr("sys.stdin", nothing)
        refused = mecroute("learned", "reset")
    assert refused.code == 1
    assert mecroute("learned", "list", "--json").json["learned"]


def test_budgets_show_what_was_spent_and_by_whom(recorded: list[str], mecroute: Run) -> None:
    rows = mecroute("budgets", "--json").json["budgets"]
    by_name = {row["budget"]: row for row in rows if row["spent_usd"]}
    assert set(by_name) == {"team", "each"}
    assert by_name["team"]["spent_usd"] == pytest.approx(3 * 14e-6)
    assert by_name["team"]["left_usd"] == pytest.approx(2 - 3 * 14e-6)
    assert by_name["each"]["subject"] not in ("", "ann")
    assert by_name["each"]["frees_at"] > time.time()
    assert "team" in mecroute("budgets").out


@pytest.mark.parametrize(
    "command",
    [("decisions", "list"), ("decisions", "health"), ("learned", "list"), ("budgets",)],
    ids=" ".join,
)
def test_with_nothing_recorded_they_say_so_and_succeed(command: tuple[str, ...], mecroute: Run) -> None:
    told = mecroute(*command)
    assert told.code == 0
    assert told.err


@pytest.mark.parametrize(
    "command", [("list",), ("show", "x"), ("replay", "--weights", "cost=1")], ids=" ".join
)
def test_a_damaged_database_is_an_error_with_a_way_out(
    command: tuple[str, ...], empty_dir: Path, mecroute: Run
) -> None:
    path = empty_dir / "state.sqlite3"
    path.write_bytes(b"this is no database" * 500)
    (empty_dir / "mecroute.toml").write_text(f'[state]\npath = "{path}"\n')
    told = mecroute("decisions", *command)
    assert told.code == 1
    assert "cannot be read" in told.err
    assert "move it away" in told.err
