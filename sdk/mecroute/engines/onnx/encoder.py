"""Sentence embeddings from an ONNX encoder: tokens, mean pooling and unit length."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np

from mecroute.engines.onnx.classifier import TextClassifier, classes_of
from mecroute.engines.onnx.engine import OnnxEngine
from mecroute.engines.onnx.texts import Text, TextGroup, TextInputs, compute_texts
from mecroute.errors import InvalidModelFileError, InvalidRequestError
from mecroute_registry.onnx_folder import TOKENIZER_FILE, model_file, read_config, tokenizer_file


def open_onnx(path: Path, **options: Any) -> OnnxEngine:
    """Open a model file or folder; one that takes tokens and has its tokenizer beside it can embed texts, or
    classify them where its configuration names the classes.

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
            classes = classes_of(engine, tokenizer.parent)
            if classes is not None:
                engine.classifier = TextClassifier(engine, tokenizer, classes)
            else:
                engine.encoder = TextEncoder(engine, tokenizer)
        except BaseException:
            engine.close()
            raise
    return engine


class TextEncoder:
    """Turns texts into vectors of length 1 with an encoder model.

    A model that gives one vector per token is mean-pooled over the tokens of a text; one that gives a vector
    per text is taken at its word.

    Args:
        engine: the model; it must outlive this.
        tokenizer: its `tokenizer.json`.

    Attributes:
        family: what kind of model it is, such as `bert`, as the configuration beside it says; or empty.

    Raises:
        InvalidModelFileError: the tokenizer cannot be read, or the model is no encoder.
        MissingExtraError: the `device` extra is not installed.

    Thread-safe.
    """

    def __init__(self, engine: OnnxEngine, tokenizer: Path) -> None:
        self._engine = engine
        self._texts = TextInputs(engine, tokenizer)
        self._output = _embedding_output(engine)
        family = (read_config(tokenizer.parent) or {}).get("model_type")
        self.family = family if isinstance(family, str) else ""

    @property
    def max_tokens(self) -> int:
        """Tokens that a text may have, the marks around it included."""
        return self._texts.max_tokens

    @property
    def lanes(self) -> int:
        """How many groups are computed side by side."""
        return self._engine.lanes

    def groups(self, texts: Sequence[Text]) -> tuple[list[TextGroup], int]:
        """Tokenize texts, and put those of like length together; see `TextInputs.groups`."""
        return self._texts.groups(texts)

    def tokens(self, text: str, most: int) -> list[int]:
        """The token ids of a text, at most so many; see `TextInputs.tokens`."""
        return self._texts.tokens(text, min(most, self._texts.max_tokens))

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
            sums = np.matmul(group.mask[:, None, :], values)[:, 0]
            values = sums / group.mask.sum(1, keepdims=True)
        if dimensions is not None:
            if dimensions > values.shape[1]:
                raise InvalidRequestError(
                    f"'dimensions' is {dimensions}, and {self._engine.name} gives {values.shape[1]}",
                    hint="ask for fewer",
                )
            values = values[:, :dimensions]
        norms = np.linalg.norm(values, axis=1, keepdims=True)
        return values / np.where(norms > 0, norms, 1)

    def embed(self, texts: Sequence[Text], dimensions: int | None = None) -> tuple[Any, int]:
        """Embed texts and wait for them.

        Returns:
            float32 [len(texts), dim], and the number of tokens in all texts.

        Raises:
            ContextLengthError: a text has no tokens or too many.
            OverloadedError: the engine's queue is full.
        """
        return compute_texts(self, texts, lambda group, outputs: self.vectors(group, outputs, dimensions))


def _embedding_output(engine: OnnxEngine) -> str:
    """The output that holds the embeddings: one vector per text where there is one, else one per token."""
    floats = [spec for spec in engine.outputs if spec.array_dtype.startswith("float")]
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
