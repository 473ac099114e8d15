"""How a GGUF model makes one vector, or one judgement, of a text's tokens."""

from __future__ import annotations

import ctypes
from typing import Any, Literal

#: `mean`, `cls` (the first token's) and `last` make a vector; `rank` makes a score of a query and a document.
Pooling = Literal["mean", "cls", "last", "rank"]

#: llama.cpp's numbers, which are also those in the files.
NUMBERS: dict[Pooling, int] = {"mean": 1, "cls": 2, "last": 3, "rank": 4}
_NAMES: dict[int, Pooling] = {number: name for name, number in NUMBERS.items()}
#: Of these, llama.cpp gives probabilities and not logits: the first of "yes" and "no".
_SOFTMAXED = frozenset({"qwen3", "qwen3vl"})


def pooling_of(lib: Any, model: Any, architecture: str) -> Pooling:
    """What the file of a model says, and the mean where it says nothing.

    Args:
        lib: llama.cpp's functions.
        model: handle of a model.
        architecture: the file's `general.architecture`.
    """
    buffer = ctypes.create_string_buffer(32)
    length = lib.llama_model_meta_val_str(model, f"{architecture}.pooling_type".encode(), buffer, len(buffer))
    said = buffer.value.decode("ascii", "replace") if length > 0 else ""
    return _NAMES.get(int(said), "mean") if said.isdecimal() else "mean"


def gives_probabilities(architecture: str) -> bool:
    """Whether a reranker's score is a probability already; else it is a logit."""
    return architecture in _SOFTMAXED
