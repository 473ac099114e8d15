"""A text encoder run by ONNX Runtime in this process, as an embedder for the semantic cache."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mecroute.engines.onnx.encoder import open_onnx
from mecroute.errors import InvalidModelFileError
from mecroute_registry.onnx_folder import model_file

_MAX_QUEUE, _MAX_BATCH = 64, 32


class EncoderEmbedder:
    """Vectors of a model; see `Embedder`. Thread-safe.

    Args:
        folder: the model with its tokenizer.
        threads: CPU threads; None takes every usable one.

    Raises:
        InvalidModelFileError: it is no text encoder.
        MissingExtraError: the `device` extra is not installed.
    """

    is_fast = False

    def __init__(self, folder: Path, *, threads: int | None = None) -> None:
        file = model_file(folder)
        engine = open_onnx(
            folder, n_threads=threads, max_queue=_MAX_QUEUE, max_batch=_MAX_BATCH, name=folder.name
        )
        if engine.encoder is None:
            engine.close()
            raise InvalidModelFileError(
                f"{folder} is no text encoder",
                hint="[cache] encoder names a folder with an encoder and its tokenizer.json",
            )
        self._engine = engine
        self._encoder = engine.encoder
        self.name = f"encoder:{folder.name}:{file.stat().st_size}"

    def embed(self, texts: Sequence[str]) -> list[Any]:
        """float32 [dim] of length 1 for each text; see `Embedder`."""
        rows, _ = self._encoder.embed(texts)
        return list(rows)

    def similarity(self, one: Any, other: Any) -> float:
        """See `Embedder`."""
        return min(1.0, float(one @ other))

    def nearest(self, queries: Sequence[Any], known: Sequence[Any]) -> list[tuple[int, float]]:
        """See `Embedder`."""
        matrix = np.stack(known)
        found = []
        for query in queries:
            scores = matrix @ query
            best = int(scores.argmax())
            found.append((best, min(1.0, float(scores[best]))))
        return found

    def close(self) -> None:
        """Unload the model."""
        self._engine.close()
