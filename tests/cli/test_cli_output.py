"""The output object: which stream carries what, on a terminal and in a pipe."""

from __future__ import annotations

import io
import json
import re

import pytest

from mecroute_cli import formats
from mecroute_cli.output import Output
from mecroute_cli.tables import Column

COLUMNS = (Column("name", "name"), Column("bytes", "size", formats.size, right=True))
ROWS = [{"name": "a" * 40, "bytes": 98_362_432}, {"name": "b", "bytes": None}]


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def _output(*, as_json: bool = False, terminal: bool = False) -> tuple[Output, io.StringIO, io.StringIO]:
    out, err = (Terminal(), Terminal()) if terminal else (io.StringIO(), io.StringIO())
    return Output(as_json=as_json, stdout=out, stderr=err), out, err


def test_a_piped_table_is_plain_and_never_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    output, out, err = _output()
    output.table("things", ROWS, COLUMNS)

    lines = out.getvalue().splitlines()
    assert lines[1] == f"{'a' * 40}  98.4 MB"
    assert lines[2].split() == ["b", "-"]
    assert err.getvalue() == ""


def test_a_table_on_a_terminal_fits_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "30")
    monkeypatch.setenv("TERM", "xterm")
    output, out, _ = _output(terminal=True)
    output.table("things", ROWS, COLUMNS)

    text = re.sub(r"\x1b\[[0-9;]*m", "", out.getvalue())
    assert max(len(line) for line in text.splitlines()) <= 30
    assert "98.4 MB" in out.getvalue()
    assert out.getvalue().count("a") >= 40


def test_markup_in_values_is_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    output, out, _ = _output(terminal=True)
    output.table("things", [{"name": "[bold]x[/bold] [/nope]", "bytes": 1}], COLUMNS)

    assert "[bold]x[/bold] [/nope]" in out.getvalue()


def test_json_is_one_document_of_raw_values() -> None:
    output, out, err = _output(as_json=True)
    output.table("things", ROWS, COLUMNS)
    output.dict("thing", {"name": "x", "bytes": 3}, {"name": "shown differently"})
    output.text("words", "yes")
    output.stream("piece by piece")
    output.note("a note")
    output.close()

    assert json.loads(out.getvalue()) == {"things": ROWS, "thing": {"name": "x", "bytes": 3}, "words": "yes"}
    assert err.getvalue() == "a note\n"


def test_an_error_replaces_what_json_had_gathered() -> None:
    output, out, err = _output(as_json=True)
    output.table("things", ROWS, COLUMNS)
    output.error(code="broken", message="it broke", hint=None)
    output.close()

    assert json.loads(out.getvalue()) == {"error": {"code": "broken", "message": "it broke", "hint": None}}
    assert err.getvalue() == ""


def test_an_empty_table_says_so_on_stderr() -> None:
    output, out, err = _output()
    output.table("things", [], COLUMNS, empty="there are none")

    assert (out.getvalue(), err.getvalue()) == ("", "there are none\n")


def test_progress_in_a_pipe_is_one_line_and_no_bar() -> None:
    output, out, err = _output()
    with output.progress("copying") as update:
        for done in range(0, 101, 10):
            update(done * 1000, 100_000)

    assert out.getvalue() == ""
    assert len(err.getvalue().splitlines()) == 1
    assert err.getvalue().startswith("copying: done in ")
    assert "100.0 kB" in err.getvalue()


def test_progress_in_a_pipe_names_each_new_state_once() -> None:
    output, _, err = _output()
    with output.progress("deploying") as update:
        for state in ("pulling", "pulling", "loading", "ready"):
            update(0, 0, state)

    assert [line.rpartition(": ")[2] for line in err.getvalue().splitlines()[:3]] == [
        "pulling",
        "loading",
        "ready",
    ]


def test_progress_on_a_terminal_draws_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    output, out, err = _output(terminal=True)
    with output.progress("copying") as update:
        update(50_000, 100_000)
        update(100_000, 100_000)

    assert out.getvalue() == ""
    assert "100%" in err.getvalue()
    assert "100.0 kB of 100.0 kB" in err.getvalue()


def test_a_failing_step_does_not_claim_to_be_done() -> None:
    output, _, err = _output()
    with pytest.raises(ValueError, match="no"), output.progress("copying"):
        raise ValueError("no")

    assert "done" not in err.getvalue()


def test_a_stream_that_cannot_carry_an_arrow_gets_a_plain_sign() -> None:
    raw = io.BytesIO()
    stderr = io.TextIOWrapper(raw, encoding="ascii")
    output = Output(stdout=io.StringIO(), stderr=stderr)
    output.hint("try this")

    assert raw.getvalue() == b"> try this\n"


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (formats.size(999), "999 B"),
        (formats.size(98_362_432), "98.4 MB"),
        (formats.size(3_200_000_000_000), "3.2 TB"),
        (formats.size(None), "-"),
        (formats.milliseconds(84.4), "84 ms"),
        (formats.milliseconds(1840), "1.84 s"),
        (formats.accuracy(0.5, 100), "0.500 ± 0.050"),
        (formats.accuracy(0.5), "0.500"),
        (formats.usd(0), "$0"),
        (formats.usd(0.00012), "$0.000120"),
        (formats.digest("sha256:" + "ab" * 32), "abababababab"),
        (formats.text(["a", "b"]), "a, b"),
        (formats.text([]), "-"),
        (formats.text(True), "yes"),
    ],
)
def test_numbers_are_written_for_people(shown: str, expected: str) -> None:
    assert shown == expected


def test_a_terminal_too_narrow_for_a_table_loses_no_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "24")
    monkeypatch.setenv("TERM", "xterm")
    columns = tuple(Column(f"c{i}", f"figure {i}", right=True) for i in range(8))
    output, out, _ = _output(terminal=True)
    output.table("things", [{f"c{i}": 123456 + i for i in range(8)}], columns)

    assert all(str(123456 + i) in out.getvalue() for i in range(8))
