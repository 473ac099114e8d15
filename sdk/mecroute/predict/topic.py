"""What a text is about, as one of a few topics: a kind of request, where no instructions name one.

With an encoder it is the nearest of some described topics. Without one it is made of the signs of the word
vectors' first coordinates, the directions in which texts differ most; and of hashed pieces where the word
vectors do not know the script (Charikar, "Similarity estimation techniques from rounding algorithms", 2002).
Nothing is learned and no vector is kept, so that a topic means the same after a restart, and nobody gets a
text back from it.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping

from mecroute.predict.token_vectors import read_words, shipped_vectors

#: What encoders tell apart: broad subjects of questions and tasks, each as an encoder reads it.
TOPICS: Mapping[str, str] = {
    "mathematics": "mathematics: algebra, equations and calculus",
    "arithmetic": "arithmetic word problem about quantities and prices",
    "statistics": "probability and statistics",
    "physics": "physics: forces, energy and electricity",
    "chemistry": "chemistry: molecules and reactions",
    "biology": "biology: cells, genes and evolution",
    "medicine": "medicine: patients, symptoms and treatment",
    "psychology": "psychology: behaviour and the mind",
    "law": "law: courts, contracts and crimes",
    "morals": "right and wrong: whether an action is moral",
    "philosophy": "philosophy and religion",
    "history": "history of countries and wars",
    "geography": "geography: countries, cities and rivers",
    "politics": "politics and government",
    "economics": "economics: markets, prices and trade",
    "business": "business: companies, marketing and management",
    "code": "computer programming and code",
    "computing": "computers, networks and security",
    "engineering": "engineering and machines",
    "language": "language: grammar, words and translation",
    "literature": "literature, poems and stories",
    "arts": "music, film and art",
    "sports": "sports and games",
    "food": "food and cooking",
    "travel": "travel, flights and hotels",
    "money": "banking, cards and payments",
    "health": "health, fitness and the body",
    "home": "home, repairs and the garden",
    "people": "family, friends and feelings",
    "nature": "weather, animals and nature",
    "letters": "writing an email or a letter",
    "talk": "small talk and greetings",
}
_BITS = 4
_PIECE_CHARS = 3
#: Of a text in a script that the vectors do not know, its pieces are counted; time stays bounded.
_READ_CHARS = 200


def word_topic(text: str) -> str | None:
    """A topic from the word vectors; None for a text of which they know no word."""
    signs = shipped_vectors().vector(read_words(text), _BITS)
    return f"w{_name(signs)}" if any(signs) else None


def hashed_topic(text: str) -> str | None:
    """A topic from hashed pieces of three characters; None for a text that is shorter."""
    text = " ".join(text[:_READ_CHARS].split())
    signs = [0.0] * _BITS
    for begin in range(len(text) - _PIECE_CHARS + 1):
        hashed = zlib.crc32(text[begin : begin + _PIECE_CHARS].encode("utf-8", "replace"))
        for bit in range(_BITS):
            signs[bit] += 1 if hashed >> bit & 1 else -1
    return f"x{_name(signs)}" if any(signs) else None


def _name(signs: list[float]) -> str:
    return f"{sum(1 << bit for bit, sign in enumerate(signs) if sign > 0):x}"
