"""A LoRA adapter for the tiny model, written on the spot."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np

from support.tiny_gguf import EMBEDDING, FIRST_BYTE, IM_END

#: The vocabulary of `write_tiny_gguf`, all pieces counted.
_VOCABULARY = IM_END + 1 + 41 + 13 + 5
_STRENGTH = 8.0


def write_tiny_lora(
    path: Path,
    says: str,
    instead: str,
    *,
    embedding: int = EMBEDDING,
    architecture: str = "llama",
    kind: str = "adapter",
) -> Path:
    """Write an adapter that makes a model written with `says` repeat `instead` for ever.

    Args:
        path: where to write.
        says: what the model was written to say.
        instead: a permutation of it that starts with the same byte.
        embedding: the width of the model it is for.
        architecture: the model's.
        kind: `general.type`.
    """
    ids = [FIRST_BYTE + byte for byte in says.encode()]
    new = [FIRST_BYTE + byte for byte in instead.encode()]
    assert sorted(ids) == sorted(new)
    assert ids[0] == new[0]
    rank = len(ids)
    # The output layer's row of the token after each byte: less of the old one's axis, more of the new one's.
    down = np.zeros((rank, embedding), np.float32)
    up = np.zeros((_VOCABULARY, rank), np.float32)
    for axis, here in enumerate(ids):
        down[axis, axis] = 1.0
        up[ids[(axis + 1) % rank], axis] -= _STRENGTH
        up[new[(new.index(here) + 1) % rank], axis] += _STRENGTH
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_string("general.type", kind)
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", float(rank))
    writer.add_tensor("output.weight.lora_a", down)
    writer.add_tensor("output.weight.lora_b", up)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
