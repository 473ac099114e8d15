"""OpenAI's embeddings: the request, checked, and the response."""

from __future__ import annotations

import base64
import sys
from array import array
from collections.abc import Mapping, Sequence
from typing import Any

from mecroute.errors import InvalidRequestError

#: OpenAI's own limit.
MAX_TEXTS = 2048
_KNOWN = frozenset({"model", "input", "encoding_format", "user", "dimensions"})


def parse_embeddings(body: Mapping[str, Any]) -> tuple[list[str], bool]:
    """The texts to embed, and whether the vectors are wanted as base64.

    Args:
        body: the request.

    Raises:
        InvalidRequestError: a field is wrong, or asks for what this engine does not do.
    """
    unknown = sorted(body.keys() - _KNOWN)
    if unknown:
        raise InvalidRequestError(f"'{unknown[0]}' is not supported yet by this server", hint="leave it out")
    if body.get("dimensions") is not None:
        raise InvalidRequestError("'dimensions' is not supported yet by this server", hint="leave it out")
    encoding = body.get("encoding_format") or "float"
    if encoding not in ("float", "base64"):
        raise InvalidRequestError("'encoding_format' must be 'float' or 'base64'")
    given = body.get("input")
    texts = [given] if isinstance(given, str) else given
    if not isinstance(texts, list) or not texts:
        raise InvalidRequestError("'input' must be a text or a list of texts, at least one")
    if len(texts) > MAX_TEXTS:
        raise InvalidRequestError(f"'input' has {len(texts)} texts; the limit is {MAX_TEXTS}")
    for index, text in enumerate(texts):
        if isinstance(text, int | list):
            raise InvalidRequestError(
                "'input' as token ids is not supported yet by this server", hint="send texts"
            )
        if not isinstance(text, str) or not text:
            raise InvalidRequestError(f"'input[{index}]' must be a text that is not empty")
    return texts, encoding == "base64"


def parse_dimensions(body: Mapping[str, Any]) -> int | None:
    """How many dimensions are wanted; None for all.

    Raises:
        InvalidRequestError: it is not a number of at least 1.
    """
    dimensions = body.get("dimensions")
    if dimensions is not None and (type(dimensions) is not int or dimensions < 1):
        raise InvalidRequestError("'dimensions' must be a whole number of at least 1")
    return dimensions


def embeddings_response(
    vectors: Sequence[list[float]], *, tokens: int, model: str, as_base64: bool
) -> dict[str, Any]:
    """OpenAI's response body.

    Args:
        vectors: float32 values [n, dim].
        tokens: prompt tokens read.
        as_base64: give each vector as base64 of little-endian float32.
    """
    encode = _base64_of if as_base64 else list
    return {
        "object": "list",
        "model": model,
        "data": [
            {"object": "embedding", "index": index, "embedding": encode(vector)}
            for index, vector in enumerate(vectors)
        ],
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }


def _base64_of(vector: list[float]) -> str:
    values = array("f", vector)
    if sys.byteorder == "big":
        values.byteswap()
    return base64.b64encode(values.tobytes()).decode("ascii")
