"""A tiny sentence encoder: an ONNX model that looks token vectors up, and its tokenizer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from onnx import helper
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from support.tiny_onnx import FLOAT, INT64, write_onnx

WORDS = ("[PAD]", "[UNK]", "edge", "cloud", "device", "model", "fast", "slow")
TABLE = np.random.default_rng(7).normal(size=(len(WORDS), 6)).astype(np.float32)


def write_encoder(
    folder: Path, *, pooled: bool = False, file: str = "model.onnx", external: str | None = None
) -> Path:
    """Write `model.onnx` and `tokenizer.json` into a folder.

    Args:
        folder: made if it is not there.
        pooled: give one vector per text (the mean over all tokens, padding included), not one per token.
        file: the model file's name in that folder.
        external: a file beside it that holds its tensors; default: the file itself.
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
    write_onnx(folder / file, nodes, inputs, outputs, {"table": TABLE}, external)
    _write_tokenizer(folder)
    return folder


def _write_tokenizer(folder: Path) -> None:
    tokenizer = Tokenizer(models.WordLevel({word: n for n, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    # The second text of a pair has type 1, as encoders have it.
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A:0", pair="$A:0 $B:1", special_tokens=[]
    )
    tokenizer.enable_truncation(4)  # as exported files have it; it must not cut what is embedded
    tokenizer.enable_padding(length=4)
    tokenizer.save(str(folder / "tokenizer.json"))


def write_text_classifier(folder: Path, labels: tuple[str, ...], **config: Any) -> Path:
    """Write a sequence classifier: each word has logits of its own, and those of a text's words add up.

    Args:
        folder: made if it is not there.
        labels: its classes.
        config: more for its `config.json`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_onnx(
        folder / "model.onnx",
        [
            helper.make_node("Gather", ["table", "input_ids"], ["words"]),
            helper.make_node("ReduceSum", ["words", "axis"], ["logits"], keepdims=0),
        ],
        [("input_ids", INT64, ["batch", "tokens"]), ("attention_mask", INT64, ["batch", "tokens"])],
        [("logits", FLOAT, ["batch", len(labels)])],
        {"table": word_logits(len(labels)), "axis": np.array([1], np.int64)},
    )
    named = {str(at): label for at, label in enumerate(labels)}
    (folder / "config.json").write_text(json.dumps({"id2label": named, **config}))
    _write_tokenizer(folder)
    return folder


def word_logits(classes: int) -> Any:
    """The classifier's logits of each word: float32 [words, classes]; padding has none."""
    table = np.random.default_rng(9).normal(size=(len(WORDS), classes)).astype(np.float32) * 2
    table[0] = 0
    return table


def write_cross_encoder(folder: Path) -> Path:
    """Write a model that judges pairs: its one logit is the product of the sums of both texts' vectors."""
    folder.mkdir(parents=True, exist_ok=True)
    table = TABLE.copy()
    table[0] = 0  # padding
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["words"]),
        helper.make_node("Cast", ["token_type_ids"], ["types"], to=FLOAT),
        helper.make_node("Unsqueeze", ["types", "last"], ["second"]),
        helper.make_node("Sub", ["one", "second"], ["first"]),
        helper.make_node("Mul", ["words", "first"], ["query_words"]),
        helper.make_node("Mul", ["words", "second"], ["document_words"]),
        helper.make_node("ReduceSum", ["query_words", "axis"], ["query"], keepdims=0),
        helper.make_node("ReduceSum", ["document_words", "axis"], ["document"], keepdims=0),
        helper.make_node("Mul", ["query", "document"], ["products"]),
        helper.make_node("ReduceSum", ["products", "axis"], ["logits"], keepdims=1),
    ]
    names = ("input_ids", "attention_mask", "token_type_ids")
    write_onnx(
        folder / "model.onnx",
        nodes,
        [(name, INT64, ["batch", "tokens"]) for name in names],
        [("logits", FLOAT, ["batch", 1])],
        {
            "table": table,
            "axis": np.array([1], np.int64),
            "last": np.array([2], np.int64),
            "one": np.float32(1),
        },
    )
    (folder / "config.json").write_text('{"architectures": ["TinyForSequenceClassification"]}')
    _write_tokenizer(folder)
    return folder


def relevance(query: str, document: str) -> float:
    """What the cross-encoder says of a pair: the logistic function of its logit."""
    sums = [TABLE[[WORDS.index(word) for word in text.split()]].sum(0) for text in (query, document)]
    return float(1 / (1 + np.exp(-(sums[0] @ sums[1]))))


def embedding(text: str, dimensions: int | None = None) -> Any:
    """What the encoder's vector of a text of WORDS must be."""
    mean = TABLE[[WORDS.index(word) for word in text.split()]].mean(0)[:dimensions]
    return mean / np.linalg.norm(mean)
