"""A real GGUF model small enough to write for each test: random weights, byte-fallback vocabulary.

Its dimensions are multiples of 32, so that block quantizations (Q8_0, Q4_0…) really apply to its tensors.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import gguf
import numpy as np
import numpy.typing as npt

EMBEDDING = 64
FEED_FORWARD = 128
LAYERS = 2
HEADS = 2
KV_HEADS = 1
HEAD_DIM = EMBEDDING // HEADS
#: Id of the token for byte 0x00 (`<0x00>`); byte b is `FIRST_BYTE + b`.
FIRST_BYTE = 3
IM_START = 259
IM_END = 260

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

_PIECES = (
    *("▁", *"abcdefghijklmnopqrstuvwxyz", *".,?!", *"0123456789"),
    *("th", "he", "in", "er", "an", "re", "on", "at", "en", "nd", "▁t", "▁a", "▁s"),
    *("the", "▁the", "ing", "and", "▁and"),
)


def _vocabulary() -> tuple[list[str], list[float], list[int]]:
    control, byte = int(gguf.TokenType.CONTROL), int(gguf.TokenType.BYTE)
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256)), "<|im_start|>", "<|im_end|>"]
    types = [int(gguf.TokenType.UNKNOWN), control, control, *([byte] * 256), control, control]
    scores = [0.0] * len(tokens)
    for rank, piece in enumerate(_PIECES):
        tokens.append(piece)
        types.append(int(gguf.TokenType.NORMAL))
        # SentencePiece merges the highest score first: longer pieces win, then the earlier ones.
        scores.append(-1.0 - rank / 100 + 10.0 * len(piece))
    return tokens, scores, types


def write_tiny_gguf(
    path: Path,
    *,
    seed: int = 0,
    context_length: int = 256,
    says: str | Sequence[str] | None = None,
    chat_template: bool = True,
    infill: bool = False,
) -> Path:
    """Write a loadable GGUF model of about 0.5 MB.

    Args:
        path: where to write; replaced if it exists.
        seed: of the weights; the same seed gives the same bytes.
        context_length: tokens the header claims the model was trained for.
        says: a text whose UTF-8 bytes are all different: greedy decoding then repeats it for ever, one
            byte a token, whatever comes before (after one of its bytes it goes on from there, after
            anything else it starts at the first). A list of pieces of the vocabulary (`▁` is a space) instead
            makes each a token. None: weights are random and the output means nothing.
        chat_template: whether the file carries a ChatML template.
        infill: whether its vocabulary ends with the three tokens of fill-in-the-middle.

    Returns:
        `path`.
    """
    rng = np.random.default_rng(seed)
    tokens, scores, types = _vocabulary()
    if infill:
        for name in ("prefix", "suffix", "middle"):
            tokens.append(f"<|fim_{name}|>")
            scores.append(0.0)
            types.append(int(gguf.TokenType.CONTROL))

    def random(*shape: int, scale: float) -> npt.NDArray[np.float32]:
        return (rng.standard_normal(shape) * scale).astype(np.float32)

    embeddings = random(len(tokens), EMBEDDING, scale=1.0)
    output = random(len(tokens), EMBEDDING, scale=0.4)
    # Only printable pieces and bytes compete, so that greedy output is text and does not end by itself.
    printable = [FIRST_BYTE + b for b in range(0x21, 0x7F)] + list(range(IM_END + 1, len(tokens)))
    silent = np.ones(len(tokens), dtype=bool)
    silent[printable] = False
    output[silent] = 0.0
    attention_scale, feed_forward_scale = 0.15, 0.15

    if says is not None:
        if isinstance(says, str):
            ids = [FIRST_BYTE + b for b in says.encode()]
        else:
            ids = [tokens.index(piece) for piece in says]
        if len(set(ids)) != len(ids) or not 2 <= len(ids) <= EMBEDDING // 2:
            raise ValueError(f"'{says}' must have 2 to {EMBEDDING // 2} bytes, all different")
        # No layer adds anything, so the last token's embedding alone decides the next token: each byte has
        # an axis of its own, and every other token shares one.
        embeddings[:] = 0.0
        embeddings[:, EMBEDDING - 1] = 1.0
        output[:] = 0.0
        output[ids[0], EMBEDDING - 1] = 4.0
        for axis, (here, following) in enumerate(pairwise([*ids, ids[0]])):
            embeddings[here] = np.eye(EMBEDDING, dtype=np.float32)[axis]
            output[following, axis] = 4.0
        attention_scale = feed_forward_scale = 0.0

    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("tiny")
    writer.add_license("apache-2.0")
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    writer.add_context_length(context_length)
    writer.add_embedding_length(EMBEDDING)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(FEED_FORWARD)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_rope_dimension_count(HEAD_DIM)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores(scores)
    writer.add_token_types(types)
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_eot_token_id(IM_END)
    writer.add_add_bos_token(True)
    writer.add_add_space_prefix(False)
    if infill:
        keys = gguf.Keys.Tokenizer
        for at, key in enumerate((keys.FIM_PRE_ID, keys.FIM_SUF_ID, keys.FIM_MID_ID), len(tokens) - 3):
            writer.add_uint32(key, at)
    if chat_template:
        writer.add_chat_template(CHAT_TEMPLATE)

    writer.add_tensor("token_embd.weight", embeddings)
    for layer in range(LAYERS):
        block = f"blk.{layer}"
        writer.add_tensor(f"{block}.attn_norm.weight", np.ones(EMBEDDING, dtype=np.float32))
        writer.add_tensor(f"{block}.attn_q.weight", random(EMBEDDING, EMBEDDING, scale=0.3))
        writer.add_tensor(f"{block}.attn_k.weight", random(KV_HEADS * HEAD_DIM, EMBEDDING, scale=0.3))
        writer.add_tensor(f"{block}.attn_v.weight", random(KV_HEADS * HEAD_DIM, EMBEDDING, scale=0.15))
        writer.add_tensor(f"{block}.attn_output.weight", random(EMBEDDING, EMBEDDING, scale=attention_scale))
        writer.add_tensor(f"{block}.ffn_norm.weight", np.ones(EMBEDDING, dtype=np.float32))
        writer.add_tensor(f"{block}.ffn_gate.weight", random(FEED_FORWARD, EMBEDDING, scale=0.15))
        writer.add_tensor(f"{block}.ffn_up.weight", random(FEED_FORWARD, EMBEDDING, scale=0.15))
        writer.add_tensor(
            f"{block}.ffn_down.weight", random(EMBEDDING, FEED_FORWARD, scale=feed_forward_scale)
        )
    writer.add_tensor("output_norm.weight", np.ones(EMBEDDING, dtype=np.float32))
    writer.add_tensor("output.weight", output)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
