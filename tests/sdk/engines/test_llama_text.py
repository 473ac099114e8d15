from __future__ import annotations

import pytest

from mecroute.engines.llama.text import TextStream


def feed(stream: TextStream, pieces: list[bytes]) -> list[str]:
    shown = []
    for piece in pieces:
        shown.append(stream.feed(piece))
        if stream.stopped:
            return shown
    return [*shown, stream.finish()]


def test_characters_are_never_split() -> None:
    pieces = [bytes([byte]) for byte in "aé€😀z".encode()]
    shown = feed(TextStream(), pieces)
    assert shown == ["a", "", "é", "", "", "€", "", "", "", "😀", "z", ""]


def test_half_a_character_at_the_end_is_dropped() -> None:
    assert "".join(feed(TextStream(), [b"ok", "😀".encode()[:3]])) == "ok"


def test_bytes_that_are_no_character_are_replaced_and_the_rest_survives() -> None:
    assert "".join(feed(TextStream(), [b"a\xff", b"b", b"\xc3", b"c"])) == "a\ufffdb\ufffdc"


@pytest.mark.parametrize(
    ("pieces", "stop", "text"),
    [
        ([b"abc", b"def"], ("cd",), "ab"),
        ([b"a", b"b", b"c", b"d"], ("bcd",), "a"),
        ([b"abcabd"], ("abd",), "abc"),
        ([b"ab", b"ab", b"ac"], ("abac",), "ab"),
        ([b"x", b"late", b"early"], ("early", "ateea"), "xl"),
        ([b"stop first"], ("first", "stop"), ""),
        (["é€".encode()[:3], "é€".encode()[3:]], ("€",), "é"),
    ],
)
def test_a_stop_string_ends_the_text_wherever_its_tokens_are_cut(
    pieces: list[bytes], stop: tuple[str, ...], text: str
) -> None:
    stream = TextStream(stop)
    shown = feed(stream, pieces)
    assert stream.stopped
    assert "".join(shown) == text


def test_what_only_looked_like_a_stop_string_is_shown_later() -> None:
    stream = TextStream(("DEX",))
    assert [stream.feed(piece) for piece in (b"CD", b"E", b"F")] == ["C", "", "DEF"]
    assert not stream.stopped
    assert stream.feed(b"D") == ""
    assert stream.finish() == "D"


def test_the_stop_string_that_was_met_is_named() -> None:
    stream = TextStream(["never", "lo w", "o wo"])
    assert stream.feed(b"hello world") == "hel"
    assert stream.met == "lo w"
