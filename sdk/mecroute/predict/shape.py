"""What a text looks like: counts and ratios that no topic tells, read in one pass over its words.

They matter most where all texts are of one kind: two word problems differ little in what they are about, and
much in how many quantities and steps they hold.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from math import log1p

from mecroute.predict.excerpt import excerpt

_GROUPS: Mapping[str, str] = {
    "negations": "not except least never false incorrect neither nor cannot without",
    "number words": "half third quarter twice thrice double triple one two three four five six seven eight "
    "nine ten eleven twelve dozen once both",
    "comparisons": "more less fewer times many much older younger than greater smaller higher lower most",
    "shares": "percent percentage fraction ratio rate average mean discount tax profit interest",
    "distribution": "each every per all",
    "conditions": "if suppose given assume when unless then",
    "remainders": "remaining rest left remain leftover total altogether combined",
    "times": "second seconds minute minutes hour hours day days week weeks month months year years",
    "people": "he she his her him they their man woman person patient who",
    "first person": "i my me we our",
    "reasoning": "prove derive explain why justify implies therefore because compare analyze analyse "
    "evaluate proof deduce critique",
    "open questions": "what how which where describe",
    "law": "court statute liability plaintiff defendant contract jury law constitutional",
    "formal": "theorem function set group ring integer integral derivative matrix equation polynomial x y n "
    "graph vector continuous",
}
_GROUP_OF = {word: number for number, words in enumerate(_GROUPS.values()) for word in words.split()}
_OPTION = re.compile(r"^[ \t]*\(?[A-J][.):][ \t]+(.*)$", re.M)
_MARKS = re.compile(r"[=+^<>*/\\∑∫√≤≥≠]")
_LONG_WORD = 9

SHAPE_NAMES: tuple[str, ...] = (
    *("characters", "words", "mean word length", "long words", "different words"),
    *("sentences", "lines", "commas", "mathematical marks", "money", "percent signs"),
    *("numbers", "share of numbers", "digits in the longest number"),
    *("options", "mean option length", "spread of option lengths", "numeric options", "likeness of options"),
    *_GROUPS,
)  # fmt: skip


def shape(text: str, words: Sequence[str]) -> list[float]:
    """The shape of a text, in the order of `SHAPE_NAMES`; of a long one, that of its beginning and its end.

    Args:
        words: its words, lower case, as `read_words` gives them.

    Returns:
        Counts as log(1 + n); ratios so stretched that they differ by about as much.
    """
    groups = [0] * len(_GROUPS)
    for group in map(_GROUP_OF.get, words):
        if group is not None:
            groups[group] += 1
    lengths = list(map(len, words))
    numbers = [length for word, length in zip(words, lengths, strict=True) if word[0].isdigit()]
    count = max(1, len(words))
    characters, text = len(text), excerpt(text)
    return [
        log1p(characters),
        log1p(len(words)),
        sum(lengths) / count,
        10 * sum(length > _LONG_WORD for length in lengths) / count,
        5 * len(set(words)) / count**0.9,
        log1p(text.count(". ") + text.count("? ") + 1),
        log1p(text.count("\n")),
        log1p(text.count(",")),
        log1p(len(_MARKS.findall(text))),
        log1p(text.count("$")),
        log1p(text.count("%")),
        log1p(len(numbers)),
        10 * len(numbers) / count,
        log1p(max(numbers, default=0)),
        *_options(_OPTION.findall(text) if "\n" in text else ()),
        *map(log1p, groups),
    ]


def _options(options: Sequence[str]) -> tuple[float, float, float, float, float]:
    if not options:
        return 0.0, 0.0, 0.0, 0.0, 0.0
    lengths = [len(option) for option in options]
    numeric = sum(any(map(str.isdigit, option[:16])) and len(option) < 16 for option in options)
    sets = [set(option[:200].lower().split()) for option in options[:4]]
    pairs = [
        len(one & other) / max(1, len(one | other)) for i, one in enumerate(sets) for other in sets[i + 1 :]
    ]
    return (
        log1p(len(options)),
        log1p(sum(lengths) / len(lengths)),
        log1p(max(lengths) - min(lengths)),
        numeric / len(options),
        3 * sum(pairs) / len(pairs) if pairs else 0.0,
    )
