"""Writes all-MiniLM-L6-v2 as ONNX (float32, and dynamically quantized to int8) from its safetensors.

    python benchmarks/minilm.py FOLDER OUT

FOLDER holds `model.safetensors`, `config.json` and `tokenizer.json` as sentence-transformers publishes them.
The graph is BERT's, written with the `onnx` package, without torch; it is checked against cosine similarities
that the model's makers publish for it, and refused if it is off by more than 0.002.
"""

from __future__ import annotations

import json
import shutil
import struct
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

#: From the model's page: how similar these are to "That is a happy person".
PUBLISHED = {
    "That is a happy dog": 0.6945773,
    "That is a very happy person": 0.9429150,
    "Today is a sunny day": 0.2568760,
}
_FILES = ("tokenizer.json", "config.json", "tokenizer_config.json", "sentence_bert_config.json")


def read_safetensors(path: Path) -> dict[str, np.ndarray]:
    """Every tensor of a file of float32 and int64 tensors."""
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    body = memoryview(data)[8 + length :]
    types = {"F32": np.float32, "I64": np.int64}
    return {
        name: np.frombuffer(body[slice(*facts["data_offsets"])], types[facts["dtype"]]).reshape(
            facts["shape"]
        )
        for name, facts in header.items()
        if name != "__metadata__"
    }


class _Graph:
    """Nodes and weights, each result under a name of its own."""

    def __init__(self, weights: dict[str, np.ndarray]) -> None:
        self._weights = weights
        self.nodes: list[Any] = []
        self.initializers: dict[str, Any] = {}

    def add(self, op: str, *inputs: str, **attributes: Any) -> str:
        name = f"{op.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, [name], **attributes))
        return name

    def weight(self, name: str, *, transposed: bool = False) -> str:
        value = self._weights[name]
        return self.constant(name, np.ascontiguousarray(value.T if transposed else value))

    def constant(self, name: str, value: Any) -> str:
        self.initializers.setdefault(name, numpy_helper.from_array(np.asarray(value), name))
        return name

    def linear(self, x: str, prefix: str) -> str:
        product = self.add("MatMul", x, self.weight(f"{prefix}.weight", transposed=True))
        return self.add("Add", product, self.weight(f"{prefix}.bias"))

    def norm(self, x: str, prefix: str) -> str:
        return self.add(
            "LayerNormalization", x, self.weight(f"{prefix}.weight"), self.weight(f"{prefix}.bias"),
            axis=-1, epsilon=1e-12,
        )  # fmt: skip

    def gelu(self, x: str) -> str:
        scaled = self.add("Div", x, self.constant("sqrt2", np.float32(2**0.5)))
        shifted = self.add("Add", self.add("Erf", scaled), self.constant("one", np.float32(1)))
        return self.add("Mul", self.add("Mul", x, shifted), self.constant("half", np.float32(0.5)))


def bert(weights: dict[str, np.ndarray], config: dict[str, Any]) -> onnx.ModelProto:
    """The encoder: token ids, mask and types → last_hidden_state float32 [batch, sequence, dim]."""
    g = _Graph(weights)
    heads, dim = config["num_attention_heads"], config["hidden_size"]
    split = g.constant("split", np.array([0, 0, heads, dim // heads], np.int64))
    joined = g.constant("joined", np.array([0, 0, dim], np.int64))
    length = g.add("Gather", g.add("Shape", "input_ids"), g.constant("axis1", np.int64(1)))
    positions = g.add("Range", g.constant("zero", np.int64(0)), length, g.constant("step", np.int64(1)))
    x = g.add("Gather", g.weight("embeddings.word_embeddings.weight"), "input_ids")
    x = g.add("Add", x, g.add("Gather", g.weight("embeddings.position_embeddings.weight"), positions))
    x = g.add(
        "Add", x, g.add("Gather", g.weight("embeddings.token_type_embeddings.weight"), "token_type_ids")
    )
    x = g.norm(x, "embeddings.LayerNorm")
    mask = g.add("Cast", "attention_mask", to=TensorProto.FLOAT)
    mask = g.add("Unsqueeze", mask, g.constant("axes12", np.array([1, 2], np.int64)))
    mask = g.add("Sub", g.constant("one", np.float32(1)), mask)
    mask = g.add("Mul", mask, g.constant("low", np.float32(-10000)))
    scale = g.constant("scale", np.float32((dim // heads) ** 0.5))
    for layer in range(config["num_hidden_layers"]):
        at = f"encoder.layer.{layer}"
        q, k, v = (
            g.add("Reshape", g.linear(x, f"{at}.attention.self.{name}"), split)
            for name in ("query", "key", "value")
        )
        q, v = (g.add("Transpose", one, perm=[0, 2, 1, 3]) for one in (q, v))
        k = g.add("Transpose", k, perm=[0, 2, 3, 1])
        scores = g.add("Add", g.add("Div", g.add("MatMul", q, k), scale), mask)
        mixed = g.add("MatMul", g.add("Softmax", scores, axis=-1), v)
        mixed = g.add("Reshape", g.add("Transpose", mixed, perm=[0, 2, 1, 3]), joined)
        attended = g.linear(mixed, f"{at}.attention.output.dense")
        x = g.norm(g.add("Add", attended, x), f"{at}.attention.output.LayerNorm")
        inner = g.gelu(g.linear(x, f"{at}.intermediate.dense"))
        x = g.norm(g.add("Add", g.linear(inner, f"{at}.output.dense"), x), f"{at}.output.LayerNorm")
    g.nodes.append(helper.make_node("Identity", [x], ["last_hidden_state"]))
    inputs = [
        helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "sequence"])
        for name in ("input_ids", "attention_mask", "token_type_ids")
    ]
    output = helper.make_tensor_value_info("last_hidden_state", TensorProto.FLOAT, ["batch", "sequence", dim])
    graph = helper.make_graph(g.nodes, "minilm", inputs, [output], list(g.initializers.values()))
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    return model


def embed(model: Path, texts: list[str]) -> np.ndarray:
    """Sentence vectors at unit length, float32 [len(texts), dim]."""
    import onnxruntime
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(model.parent / "tokenizer.json"))
    tokenizer.enable_padding()
    encoded = tokenizer.encode_batch(texts)
    feed = {
        "input_ids": np.array([one.ids for one in encoded], np.int64),
        "attention_mask": np.array([one.attention_mask for one in encoded], np.int64),
        "token_type_ids": np.array([one.type_ids for one in encoded], np.int64),
    }
    (hidden,) = onnxruntime.InferenceSession(str(model)).run(None, feed)
    mask = feed["attention_mask"][..., None]
    mean = (hidden * mask).sum(1) / mask.sum(1)
    return np.asarray(mean / np.linalg.norm(mean, axis=1, keepdims=True))


def write(source: Path, out: Path) -> dict[str, Path]:
    """Write both models, each into a folder with its tokenizer, unless they are there.

    Returns:
        Their folders, by `fp32` and `int8`.
    """
    folders = {name: out / f"minilm-{name}" for name in ("fp32", "int8")}
    if all((folder / "model.onnx").exists() for folder in folders.values()):
        return folders
    for folder in folders.values():
        folder.mkdir(parents=True, exist_ok=True)
        for name in _FILES:
            shutil.copy(source / name, folder / name)
    weights = read_safetensors(source / "model.safetensors")
    config = json.loads((source / "config.json").read_text())
    whole = folders["fp32"] / "model.onnx"
    onnx.save(bert(weights, config), str(whole))
    vectors = embed(whole, ["That is a happy person", *PUBLISHED])
    for found, (text, expected) in zip(vectors[1:] @ vectors[0], PUBLISHED.items(), strict=True):
        if abs(found - expected) > 0.002:
            whole.unlink()
            sys.exit(f"the graph is wrong: {text!r} has a similarity of {found:.4f}, not {expected:.4f}")
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantize_dynamic(
        whole, folders["int8"] / "model.onnx", weight_type=QuantType.QInt8, per_channel=True,
        op_types_to_quantize=["MatMul"],
    )  # fmt: skip
    return folders


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    for name, folder in write(Path(sys.argv[1]), Path(sys.argv[2])).items():
        vectors = embed(folder / "model.onnx", ["That is a happy person", *PUBLISHED])
        similar = ", ".join(f"{value:.4f}" for value in vectors[1:] @ vectors[0])
        print(f"{name}: {folder} ({similar}; published {', '.join(f'{v:.4f}' for v in PUBLISHED.values())})")
