"""Joining the rest of an answer to what was delivered."""

from __future__ import annotations

import pytest

from mecroute.continuation import OverlapTrimmer, continue_body

BODY = {"messages": [{"role": "user", "content": "Go"}], "max_tokens": 10, "temperature": 0}


def test_the_rest_is_asked_for_without_changing_the_original() -> None:
    body, seam = continue_body(BODY, "One two", 2, continues_prefix=True)
    assert seam == "exact"
    assert body["messages"] == [*BODY["messages"], {"role": "assistant", "content": "One two"}]
    assert (body["max_tokens"], body["temperature"]) == (8, 0)
    assert len(BODY["messages"]) == 1


def test_a_prefix_of_the_callers_own_is_extended() -> None:
    mine = {"messages": [*BODY["messages"], {"role": "assistant", "content": "Well, "}]}
    body, _ = continue_body(mine, "one", 1, continues_prefix=True)
    assert body["messages"][-1] == {"role": "assistant", "content": "Well, one"}


def test_a_text_completion_is_continued_in_its_prompt() -> None:
    body, seam = continue_body({"prompt": "Once"}, " upon", 1, continues_prefix=False)
    assert (body["prompt"], seam) == ("Once upon", "exact")


@pytest.mark.parametrize(
    ("delivered", "pieces", "expected"),
    [
        ("The quick brown", ["brown fox"], " fox"),
        ("The quick brown", ["bro", "wn", " fox", " jumps"], " fox jumps"),
        ("The quick brown", [" fox"], " fox"),
        ("The quick ", ["The quick brown"], "brown"),
        ("ends with a space ", [" begins so"], " begins so"),  # one character is chance
        ("", ["all of it"], "all of it"),
    ],
)
def test_what_is_repeated_is_cut(delivered: str, pieces: list[str], expected: str) -> None:
    trimmer = OverlapTrimmer(delivered)
    assert "".join(trimmer.feed(piece) for piece in pieces) + trimmer.flush() == expected
