"""Texts as inputs of a model that reads tokens: tokenized, and put together with others of like length."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from mecroute.errors import ContextLengthError, InvalidModelFileError, InvalidRequestError, MissingExtraError
from mecroute_registry.onnx_folder import TEXT_FILES, max_tokens, read_json

if TYPE_CHECKING:
    from mecroute.engines.onnx.engine import OnnxEngine

#: A text, two texts that the model reads together, or the token ids of a text.
Text = str | tuple[str, str] | Sequence[int]

_MAX_TOKENIZER_BYTES = 64 << 20
#: Texts are padded to a multiple of this, so that requests of about the same length can be run together.
_PAD_TO = 8
_KNOWN_INPUTS = frozenset({"input_ids", "attention_mask", "token_type_ids"})


@dataclass(frozen=True, slots=True)
class TextGroup:
    """Texts that are run together.

    Attributes:
        places: where each stands in what was asked.
        inputs: int arrays [len(places), tokens], by the model's names.
        mask: float32 [len(places), tokens], 1 where there is a token.
    """

    places: tuple[int, ...]
    inputs: Mapping[str, Any]
    mask: Any


@dataclass(frozen=True, slots=True)
class _Tokens:
    """What the tokenizer would say of a text that comes as token ids."""

    ids: list[int]
    type_ids: list[int]


class TextModel(Protocol):
    """An encoder or a classifier."""

    def groups(self, texts: Sequence[Text]) -> tuple[list[TextGroup], int]:
        """See `TextInputs.groups`."""
        ...

    def submit(self, group: TextGroup, *, admitted: bool = False) -> Future[dict[str, Any]]:
        """See `OnnxEngine.submit`."""
        ...


def compute_texts(
    model: TextModel, texts: Sequence[Text], rows_of: Callable[[TextGroup, Mapping[str, Any]], Any]
) -> tuple[Any, int]:
    """Compute texts and wait for them.

    Args:
        model: computes them.
        texts: at least one.
        rows_of: a row for each text of a group, from what its future gave.

    Returns:
        The rows in the order of the texts, [len(texts), …], and the number of tokens in all texts.

    Raises:
        ContextLengthError: a text has no tokens or too many.
        OverloadedError: the engine's queue is full.
    """
    groups, tokens = model.groups(texts)
    rows: list[Any] = [None] * len(texts)
    for number, group in enumerate(groups):
        outputs = model.submit(group, admitted=number > 0).result()
        for place, row in zip(group.places, rows_of(group, outputs), strict=True):
            rows[place] = row
    return np.stack(rows), tokens


class TextInputs:
    """Makes the inputs of an encoder model from texts.

    Args:
        engine: the model.
        tokenizer: its `tokenizer.json`.

    Raises:
        InvalidModelFileError: the tokenizer cannot be read, or the model has inputs of other kinds.
        MissingExtraError: the `device` extra is not installed.

    Thread-safe.
    """

    def __init__(self, engine: OnnxEngine, tokenizer: Path) -> None:
        self._engine = engine
        specs = {spec.name: spec for spec in engine.inputs}
        unknown = sorted(specs.keys() - _KNOWN_INPUTS)
        if unknown:
            raise InvalidModelFileError(
                f"{engine.name} is no text encoder: it has the input '{unknown[0]}'",
                hint=f"serve it without {tokenizer.name} beside it",
            )
        self._dtypes = {name: spec.array_dtype for name, spec in specs.items()}
        self._tokenizer = _load_tokenizer(tokenizer)
        self.max_tokens = max_tokens({name: read_json(tokenizer.parent / name) for name in TEXT_FILES[1:]})

    def groups(self, texts: Sequence[Text]) -> tuple[list[TextGroup], int]:
        """Tokenize texts, and put those of like length together.

        Args:
            texts: texts, pairs of texts, or token ids of texts, which are taken as they are.

        Returns:
            The groups, each for one `submit`, and the number of tokens in all texts.

        Raises:
            ContextLengthError: a text has no tokens or too many.
            InvalidRequestError: a token is not in the vocabulary.
        """
        encoded = self._encode(texts)
        lengths = [len(one.ids) for one in encoded]
        for at, length in enumerate(lengths):
            if not length:
                raise ContextLengthError(f"text {at} of the input is empty", hint="send at least one token")
            if length > self.max_tokens:
                raise ContextLengthError(
                    f"text {at} of the input has {length} tokens, "
                    f"and {self._engine.name} reads up to {self.max_tokens}",
                    hint="split the text into shorter ones",
                )
        rows = self._engine.piece_rows
        return [self._group(encoded, places) for places in _by_length(lengths, rows)], sum(lengths)

    def tokens(self, text: str, most: int) -> list[int]:
        """The token ids of a text. Where there are more than `most` (≥ 2), only the first ones and the last,
        which is the mark that texts end with."""
        ids: list[int] = self._tokenizer.encode(text).ids
        return ids if len(ids) <= most else [*ids[: most - 1], ids[-1]]

    def _encode(self, texts: Sequence[Text]) -> list[Any]:
        """Each text's `ids` and `type_ids`."""
        written = [text for text in texts if _is_written(text)]
        tokenized = iter(self._tokenizer.encode_batch(written) if written else ())
        size = self._tokenizer.get_vocab_size()
        encoded: list[Any] = []
        for at, text in enumerate(texts):
            if _is_written(text):
                encoded.append(next(tokenized))
                continue
            ids = [int(token) for token in text]
            if any(not 0 <= token < size for token in ids):
                raise InvalidRequestError(
                    f"text {at} of the input has a token outside the vocabulary of {size}",
                    hint="tokenize it with this model's tokenizer",
                )
            encoded.append(_Tokens(ids, [0] * len(ids)))
        return encoded

    def _group(self, encoded: Sequence[Any], places: tuple[int, ...]) -> TextGroup:
        longest = max(len(encoded[place].ids) for place in places)
        width = min(-(-longest // _PAD_TO) * _PAD_TO, self.max_tokens) if self._engine.batches else longest
        arrays = {name: np.zeros((len(places), width), dtype) for name, dtype in self._dtypes.items()}
        mask = np.zeros((len(places), width), np.float32)
        for row, place in enumerate(places):
            one = encoded[place]
            n = len(one.ids)
            mask[row, :n] = 1
            parts = {"input_ids": one.ids, "attention_mask": 1, "token_type_ids": one.type_ids}
            for name, array in arrays.items():
                array[row, :n] = parts[name]
        return TextGroup(places, arrays, mask)


def _is_written(text: Text) -> bool:
    return isinstance(text, str) or (isinstance(text, tuple) and isinstance(text[0], str))


def _by_length(lengths: Sequence[int], rows: int) -> Iterator[tuple[int, ...]]:
    """Places of texts, sorted by length and cut into groups of at most `rows`."""
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    for at in range(0, len(order), rows):
        yield tuple(order[at : at + rows])


def _load_tokenizer(path: Path) -> Any:
    os.environ.setdefault(
        "TOKENIZERS_PARALLELISM", "false"
    )  # or it takes every core, whatever n_threads says
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise MissingExtraError("device", "embedding texts with an ONNX model") from error
    try:
        if path.stat().st_size > _MAX_TOKENIZER_BYTES:
            raise ValueError("it is too large")
        tokenizer = Tokenizer.from_file(str(path))
    except BaseException as error:
        # A panic of the Rust library is a BaseException.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise InvalidModelFileError(
            f"{path} is not a tokenizer: {str(error)[:200]}", hint="export the model again"
        ) from error
    # Texts that are too long are refused, not cut, and rows are padded here.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer
