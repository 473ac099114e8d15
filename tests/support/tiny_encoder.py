"""A tiny sentence encoder: an ONNX model that looks token vectors up, and its tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from onnx import helper
from tokenizers import Tokenizer, models, pre_tokenizers

from support.tiny_onnx import FLOAT, INT64, write_onnx

WORDS = ("[PAD]", "[UNK]", "edge", "cloud", "device", "model", "fast", "slow")
TABLE = np.random.default_rng(7).normal(size=(len(WORDS), 6)).astype(np.float32)


def write_encoder(folder: Path, *, pooled: bool = False, file: str = "model.onnx") -> Path:
    """Write `model.onnx` and `tokenizer.json` into a folder.

    Args:
        folder: made if it is not there.
        pooled: give one vector per text (the mean over all tokens, padding included), not one per token.
        file: the model file's name in that folder.
    """
    (folder / file).parent.mkdir(parents=True, exist_ok=True)
    inputs = [
        (name, INT64, ["batch", "tokens"]) for name in ("input_ids", "attention_mask", "token_type_ids")
    ]
    nodes = [helper.make_node("Gather", ["table", "input_ids"], ["last_hidden_state"])]
    outputs: list[tuple[str, int, list[Any]]] = [
        ("last_hidden_state", FLOAT, ["batch", "tokens", TABLE.shape[1]])
    ]
    if pooled:
        nodes.append(
            helper.make_node(
                "ReduceMean", ["last_hidden_state"], ["sentence_embedding"], axes=[1], keepdims=0
            )
        )
        outputs.append(("sentence_embedding", FLOAT, ["batch", TABLE.shape[1]]))
    write_onnx(folder / file, nodes, inputs, outputs, {"table": TABLE})
    tokenizer = Tokenizer(models.WordLevel({word: n for n, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.enable_truncation(4)  # as exported files have it; it must not cut what is embedded
    tokenizer.enable_padding(length=4)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def embedding(text: str, dimensions: int | None = None) -> Any:
    """What the encoder's vector of a text of WORDS must be."""
    mean = TABLE[[WORDS.index(word) for word in text.split()]].mean(0)[:dimensions]
    return mean / np.linalg.norm(mean)
