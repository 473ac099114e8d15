"""Sentence embeddings from an ONNX encoder: tokens, mean pooling and unit length."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mecroute.engines.onnx.engine import OnnxEngine
from mecroute.errors import ContextLengthError, InvalidModelFileError, InvalidRequestError, MissingExtraError

TOKENIZER_FILE = "tokenizer.json"
_MODEL_FILES = ("model.onnx", "onnx/model.onnx")
_MAX_TOKENIZER_BYTES = 64 << 20
#: Tokens a text may have where no file beside the model says it.
_DEFAULT_TOKENS = 512
#: Texts are padded to a multiple of this, so that requests of about the same length can be run together.
_PAD_TO = 16
_KNOWN_INPUTS = frozenset({"input_ids", "attention_mask", "token_type_ids"})


def model_file(path: Path) -> Path:
    """The model file that a path means: itself, or the one in that folder.

    Raises:
        InvalidModelFileError: the folder has no model, or several and none of the usual name.
    """
    if not path.is_dir():
        return path
    for name in _MODEL_FILES:
        if (path / name).is_file():
            return path / name
    files = sorted(path.glob("*.onnx"))
    if len(files) == 1:
        return files[0]
    raise InvalidModelFileError(
        f"the folder {path} has {len(files)} ONNX models, and none is called {_MODEL_FILES[0]}",
        hint="name one of its files",
    )


def tokenizer_file(path: Path) -> Path | None:
    """The `tokenizer.json` beside a model file, or above a folder `onnx` that it is in; None if none."""
    folders = [path.parent, path.parent.parent] if path.parent.name == "onnx" else [path.parent]
    return next((folder / TOKENIZER_FILE for folder in folders if (folder / TOKENIZER_FILE).is_file()), None)


def open_onnx(path: Path, **options: Any) -> OnnxEngine:
    """Open a model file or folder; one that takes tokens and has its tokenizer beside it can embed texts.

    Args:
        path: an ONNX file, or a folder with one.
        options: of `OnnxEngine`.

    Raises:
        InvalidModelFileError: the model or its tokenizer cannot be used.
    """
    path = model_file(path)
    tokenizer = tokenizer_file(path)
    engine = OnnxEngine(path, **options)
    if tokenizer is not None and any(spec.name == "input_ids" for spec in engine.inputs):
        try:
            engine.encoder = TextEncoder(engine, tokenizer)
        except BaseException:
            engine.close()
            raise
    return engine


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


class TextEncoder:
    """Turns texts into vectors of length 1 with an encoder model.

    A model that gives one vector per token is mean-pooled over the tokens of a text; one that gives a vector
    per text is taken at its word.

    Args:
        engine: the model; it must outlive this.
        tokenizer: its `tokenizer.json`.

    Raises:
        InvalidModelFileError: the tokenizer cannot be read, or the model is no encoder.
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
                hint=f"serve it without {TOKENIZER_FILE} beside it",
            )
        self._dtypes = {name: spec.dtype for name, spec in specs.items()}
        self._output = _embedding_output(engine)
        self._tokenizer = _load_tokenizer(tokenizer)
        self.max_tokens = _max_tokens(tokenizer.parent)

    def groups(self, texts: Sequence[str]) -> tuple[list[TextGroup], int]:
        """Tokenize texts, and put those of like length together.

        Returns:
            The groups, each for one `submit`, and the number of tokens in all texts.

        Raises:
            ContextLengthError: a text has no tokens or too many.
        """
        encoded = self._tokenizer.encode_batch(list(texts))
        lengths = [len(one.ids) for one in encoded]
        for at, length in enumerate(lengths):
            if not length:
                raise ContextLengthError(f"text {at} of the input is empty", hint="send at least one token")
            if length > self.max_tokens:
                raise ContextLengthError(
                    f"text {at} of the input has {length} tokens, "
                    f"and {self._engine.name} embeds up to {self.max_tokens}",
                    hint="split the text into shorter ones",
                )
        rows = self._engine.n_parallel
        return [self._group(encoded, places) for places in _by_length(lengths, rows)], sum(lengths)

    def submit(self, group: TextGroup, *, admitted: bool = False) -> Future[dict[str, Any]]:
        """Queue a group; see `OnnxEngine.submit`."""
        return self._engine.submit(group.inputs, [self._output], admitted=admitted)

    def vectors(self, group: TextGroup, outputs: Mapping[str, Any], dimensions: int | None = None) -> Any:
        """The vectors of a group.

        Args:
            group: the group.
            outputs: what its future gave.
            dimensions: ≥ 1; only the first so many are kept. None keeps all.

        Returns:
            float32 [texts, dim], each of length 1.

        Raises:
            InvalidRequestError: the model's vectors have fewer dimensions than asked for.
        """
        values = np.asarray(outputs[self._output], np.float32)
        if values.ndim == 3:
            weights = group.mask[:, :, None]
            values = (values * weights).sum(1) / weights.sum(1)
        if dimensions is not None:
            if dimensions > values.shape[1]:
                raise InvalidRequestError(
                    f"'dimensions' is {dimensions}, and {self._engine.name} gives {values.shape[1]}",
                    hint="ask for fewer",
                )
            values = values[:, :dimensions]
        norms = np.linalg.norm(values, axis=1, keepdims=True)
        return values / np.where(norms > 0, norms, 1)

    def embed(self, texts: Sequence[str], dimensions: int | None = None) -> tuple[Any, int]:
        """Embed texts and wait for them.

        Returns:
            float32 [len(texts), dim], and the number of tokens in all texts.

        Raises:
            ContextLengthError: a text has no tokens or too many.
            OverloadedError: the engine's queue is full.
        """
        groups, tokens = self.groups(texts)
        rows: list[Any] = [None] * len(texts)
        for number, group in enumerate(groups):
            outputs = self.submit(group, admitted=number > 0).result()
            for place, vector in zip(group.places, self.vectors(group, outputs, dimensions), strict=True):
                rows[place] = vector
        return np.stack(rows), tokens

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


def _by_length(lengths: Sequence[int], rows: int) -> Iterator[tuple[int, ...]]:
    """Places of texts, sorted by length and cut into groups of at most `rows`."""
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    for at in range(0, len(order), rows):
        yield tuple(order[at : at + rows])


def _embedding_output(engine: OnnxEngine) -> str:
    """The output that holds the embeddings: one vector per text where there is one, else one per token."""
    floats = [spec for spec in engine.outputs if spec.dtype.startswith("float")]
    for name, rank in (("sentence_embedding", 2), ("last_hidden_state", 3), ("token_embeddings", 3)):
        if any(spec.name == name and len(spec.shape) == rank for spec in floats):
            return name
    for rank in (3, 2):
        for spec in floats:
            if len(spec.shape) == rank:
                return spec.name
    raise InvalidModelFileError(
        f"{engine.name} is no text encoder: no output holds a vector per token or per text",
        hint=f"serve it without {TOKENIZER_FILE} beside it",
    )


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


def _max_tokens(folder: Path) -> int:
    """What the files beside the model say that a text may have, of tokens."""
    found: list[int] = []
    for name, key in (
        ("config.json", "max_position_embeddings"),
        ("tokenizer_config.json", "model_max_length"),
        ("sentence_bert_config.json", "max_seq_length"),
    ):
        try:
            value = json.loads((folder / name).read_text(encoding="utf-8")).get(key)
        except (OSError, ValueError, AttributeError, RecursionError):
            continue
        # Where it is unknown, transformers writes 10**30.
        if isinstance(value, int) and 1 <= value <= 1 << 17:
            found.append(value)
    return min(found, default=_DEFAULT_TOKENS)
