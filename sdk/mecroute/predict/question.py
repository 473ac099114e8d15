"""What a request asks for: a choice, a fact, an explanation, a rewriting, code."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence

from mecroute.context import Question
from mecroute.predict.signal_words import Wish

_OPTION = re.compile(r"^[ \t]*\(?[A-Ea-e][.):][ \t]", re.M)
#: First words of questions that are answered by yes or no, where a language has such.
_CLOSED_WORDS = (
    "is are was were do does did can could has have will would should may ist sind war waren hat haben kann "
    "können darf wird soll gibt est peut puis es son puede hay czy är har kan finns heeft"
)
_CLOSED = frozenset(_CLOSED_WORDS.split())
_CODE_WORDS = frozenset(
    ("implement", "refactor", "debug", "code", "function", "script", "program", "sql", "regex")
)


def question_of(
    text: str, words: Sequence[str], wishes: Collection[Wish], *, has_code: bool, max_brief_words: int = 60
) -> Question:
    """What a text asks for.

    Args:
        text: a few thousand characters at most.
        words: its words, lower case.
        wishes: what the words of its language say.
        has_code: whether it holds code.
        max_brief_words: a text of more words asks for more than a word, however it begins.
    """
    if len(_OPTION.findall(text)) >= 2:
        return "choice"
    if "shorten" in wishes:
        return "summary"
    if "rewrite" in wishes:
        return "rewriting"
    if has_code or not _CODE_WORDS.isdisjoint(words[:30]):
        return "code"
    if "write" in wishes:
        return "text"
    if "plan" in wishes:
        return "comparison"
    is_short = len(words) <= max_brief_words
    if "brief" in wishes and is_short:
        return "fact"
    if is_short and words and words[0] in _CLOSED and text.rstrip().endswith("?"):
        return "yes-no"
    if "explain" in wishes or "reason" in wishes:
        return "explanation"
    return "other"
