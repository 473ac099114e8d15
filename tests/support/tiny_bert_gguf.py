"""A real BERT as GGUF, small enough to write for each test; numpy can follow what it computes."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import gguf
import numpy as np

WIDTH = 32
CONTEXT = 64
#: llama.cpp writes the beginning of a word as "▁".
WORDS = ("edge", "cloud", "device", "model", "fast", "slow")
_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"▁{word}" for word in WORDS))
CLS, SEP = 2, 3

_RNG = np.random.default_rng(11)


def _random(*shape: int) -> Any:
    return _RNG.standard_normal(shape).astype(np.float32)


_TABLE, _POSITIONS, _TYPE = _random(len(_TOKENS), WIDTH), _random(CONTEXT, WIDTH), _random(2, WIDTH)
_HEAD, _HEAD_BIAS, _OUT = _random(WIDTH, WIDTH) * 0.3, _random(WIDTH), _random(1, WIDTH)


def ids_of(*texts: str) -> list[int]:
    """A text, or a pair of texts, as BERT reads it: [CLS] a [SEP] or [CLS] a [SEP] b [SEP]."""
    ids = [CLS]
    for text in texts:
        ids += [len(_TOKENS) - len(WORDS) + WORDS.index(word) for word in text.split()] + [SEP]
    return ids


def hidden(ids: list[int]) -> Any:
    """The last hidden states, float32 [tokens, WIDTH]."""
    rows = _normed(_TABLE[ids] + _TYPE[0] + _POSITIONS[: len(ids)])
    return _normed(rows + rows.mean(0))


def _normed(rows: Any) -> Any:
    return (rows - rows.mean(1, keepdims=True)) / rows.std(1, keepdims=True)


def probability(query: str, document: str) -> float:
    """What a reranker makes of a query and a document."""
    logit = _OUT @ np.tanh(_HEAD @ hidden(ids_of(query, document))[0] + _HEAD_BIAS)
    return float(1 / (1 + np.exp(-logit[0])))


def write_tiny_bert_gguf(path: Path, pooling: Literal["MEAN", "CLS", "LAST", "RANK"]) -> Path:
    """Write an encoder of about 30 KB that pools so; `RANK` makes it a reranker."""
    writer = gguf.GGUFWriter(path, "bert")
    writer.add_name("tiny-bert")
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(1)
    writer.add_feed_forward_length(WIDTH)
    writer.add_head_count(1)
    writer.add_layer_norm_eps(1e-12)
    writer.add_causal_attention(False)
    writer.add_pooling_type(gguf.PoolingType[pooling])
    writer.add_vocab_size(len(_TOKENS))
    writer.add_tokenizer_model("bert")
    writer.add_token_type_count(2)
    writer.add_token_list(list(_TOKENS))
    writer.add_token_types([int(gguf.TokenType.CONTROL)] * 5 + [int(gguf.TokenType.NORMAL)] * len(WORDS))
    writer.add_pad_token_id(0)
    writer.add_unk_token_id(1)
    writer.add_bos_token_id(CLS)
    writer.add_sep_token_id(SEP)
    writer.add_mask_token_id(4)
    ones, zeros = np.ones(WIDTH, dtype=np.float32), np.zeros(WIDTH, dtype=np.float32)
    square = np.zeros((WIDTH, WIDTH), dtype=np.float32)
    for name, tensor in {"token_embd": _TABLE, "position_embd": _POSITIONS, "token_types": _TYPE}.items():
        writer.add_tensor(f"{name}.weight", tensor)
    for name in ("token_embd_norm", "blk.0.attn_output_norm", "blk.0.layer_output_norm"):
        writer.add_tensor(f"{name}.weight", ones)
        writer.add_tensor(f"{name}.bias", zeros)
    for part in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_up", "ffn_down"):
        passes = part in ("attn_v", "attn_output")
        writer.add_tensor(f"blk.0.{part}.weight", np.eye(WIDTH, dtype=np.float32) if passes else square)
        writer.add_tensor(f"blk.0.{part}.bias", zeros)
    if pooling == "RANK":
        writer.add_tensor("cls.weight", _HEAD)
        writer.add_tensor("cls.bias", _HEAD_BIAS)
        writer.add_tensor("cls.output.weight", _OUT)
        writer.add_tensor("cls.output.bias", np.zeros(1, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
