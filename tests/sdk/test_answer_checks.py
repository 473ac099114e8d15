"""Checks of an answer: sums are verified, by a parser that runs nothing."""

from __future__ import annotations

import pytest

from mecroute.predict.answer_checks import CHECK_NAMES, check_answer
from mecroute.predict.arithmetic import evaluate, read_number


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3*5", 15), ("2 + 3 * 4", 14), ("(2+3)*4", 20), ("10/4", 2.5), ("$1,000 - 1", 999), ("-3+5", 2),
        ("5%*200", 10), ("3 x 4", 12), ("6×2", 12), ("1-2-3", -4), ("8/2/2", 2), (".5*4", 2),
    ],
)  # fmt: skip
def test_sums_are_evaluated(text: str, value: float) -> None:
    assert evaluate(text) == pytest.approx(value)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "1/0",
        "__import__('os')",
        "2**9",
        "((((((((((((1))))))))))))",
        "1 2",
        "a+b",
        "(1",
        "9" * 100,
        "-" * 50 + "1",
    ],
)
def test_what_is_no_sum_is_none(text: str) -> None:
    assert evaluate(text) is None


def test_a_number_is_read_from_the_beginning() -> None:
    assert read_number("$1,250.50 per week") == 1250.5
    assert read_number("twelve") is None


QUESTION = "Tom has 3 boxes of 5 pens and loses 2. How many pens are left?"


def found(answer: str) -> dict[str, float]:
    return dict(zip(CHECK_NAMES, check_answer(QUESTION, answer), strict=True))


def test_a_sound_answer_raises_no_alarm() -> None:
    checks = found("Tom has 3*5=<<3*5=15>>15 pens.\nHe keeps 15-2=<<15-2=13>>13 pens.\n#### 13")
    for name in (
        "no final answer",
        "wrong sum",
        "no sums",
        "final is not the last result",
        "unexplained numbers",
    ):
        assert checks[name] == 0


def test_what_is_wrong_is_found() -> None:
    assert found("3*5=<<3*5=16>>16\n#### 16")["wrong sum"] == 1
    assert found("3 * 5 = 16, so 16\n#### 16")["wrong sum"] == 1
    assert found("3*5=<<3*5=15>>15\n#### 14")["final is not the last result"] == 1
    assert found("3*5=<<3*5=15>>15")["no final answer"] == 1
    assert found("<<77*5=385>>385\n#### 385")["unexplained numbers"] == 1
    assert found("<<3/2=1.5>>\n#### 1.5")["final is a fraction"] == 1


@pytest.mark.parametrize(
    "answer", ["", "####", "<<=>>", "<<1/0=5>>", "#### -", "9" * 20_000, "3*" * 5000 + "= 4"]
)
def test_any_answer_can_be_checked(answer: str) -> None:
    assert len(check_answer(answer, answer)) == len(CHECK_NAMES)
