"""A classifier of the workload's intents for the device: all-MiniLM-L6-v2 in int8 with a head of its own.

    python benchmarks/tiers_encoder.py DATA MINILM OUT      # trains it, and asks it every intent request

MINILM is the folder of all-MiniLM-L6-v2 (see `minilm.py`). The head is a softmax regression on the sentence
vectors of CLINC150's `train` rows of the workload's domains; what is none of the classes is learned from
`oos_train` and from rows of the other domains. Pooling and head are part of the ONNX graph, whose output
`logits` has a column per class, and `config.json` names them, so that it is a sequence classifier like any
other: OUT/classifier is a folder for `[[device.text_models]]` or `mecroute serve`.

OUT/encoder.jsonl gets an answer to every intent request: one at a time, in this process, on one thread.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

import minilm
from tiers_answers import Answer
from tiers_workload import NO_CLASS, SEED, Item, intent_classes, intent_rows, other_rows, read_workload

#: The folder of the classifier, below that of everything else.
CLASSIFIER = "classifier"
#: Rows of each intent of the other domains that stand for what is none of the classes.
OTHER_ROWS = 5
_STEPS, _RATE, _DECAY = 400, 4.0, 1e-4
_BATCH = 64


def fit_head(vectors: Any, places: Any, classes: int) -> tuple[Any, Any]:
    """Softmax regression by full-batch accelerated gradient descent; each class weighs alike.

    Args:
        vectors: float [rows, dim], of length 1.
        places: int [rows], the class of each.

    Returns:
        Weights float32 [dim, classes] and biases float32 [classes].
    """
    rows = np.concatenate([vectors, np.ones((len(vectors), 1))], axis=1)
    wanted = np.eye(classes)[places]
    share = 1 / np.bincount(places, minlength=classes)[places, None] / classes
    weights = ahead = np.zeros((rows.shape[1], classes))
    for step in range(_STEPS):
        scores = rows @ ahead
        odds = np.exp(scores - scores.max(1, keepdims=True))
        gradient = rows.T @ ((odds / odds.sum(1, keepdims=True) - wanted) * share) + _DECAY * ahead
        moved = ahead - _RATE * gradient
        ahead = moved + step / (step + 3) * (moved - weights)
        weights = moved
    return weights[:-1].astype(np.float32), weights[-1].astype(np.float32)


def with_head(model: onnx.ModelProto, weights: Any, biases: Any) -> onnx.ModelProto:
    """The encoder with mean pooling, unit length and the head: `logits` float32 [batch, classes]."""
    graph = model.graph
    nodes: list[Any] = []

    def add(op: str, *inputs: str, out: str | None = None, **attributes: Any) -> str:
        name = out or f"head_{len(nodes)}"
        nodes.append(helper.make_node(op, inputs, [name], **attributes))
        return name

    graph.initializer.extend(
        numpy_helper.from_array(np.asarray(value), name)
        for name, value in {
            "head_weights": weights, "head_biases": biases, "head_tokens": np.array([1], np.int64),
            "head_last": np.array([-1], np.int64),
        }.items()
    )  # fmt: skip
    mask = add("Unsqueeze", add("Cast", "attention_mask", to=TensorProto.FLOAT), "head_last")
    total = add("ReduceSum", add("Mul", "last_hidden_state", mask), "head_tokens", keepdims=0)
    unit = add("LpNormalization", total, axis=-1, p=2)  # the mean and the sum point the same way
    add("Add", add("MatMul", unit, "head_weights"), "head_biases", out="logits")
    graph.node.extend(nodes)
    del graph.output[:]
    graph.output.append(
        helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", int(weights.shape[1])])
    )
    onnx.checker.check_model(model)
    return model


def train(data: Path, source: Path, out: Path) -> Path:
    """Make the classifier in `out/classifier`, unless it is there; the folder."""
    folder = out / CLASSIFIER
    if (folder / "model.onnx").exists():
        return folder
    encoder = minilm.write(source, out)["int8"]
    classes = intent_classes(data / "clinc150")
    rows = intent_rows(data / "clinc150", "train")
    rows += [(text, NO_CLASS) for text in other_rows(data / "clinc150", "train", OTHER_ROWS, SEED)]
    vectors = np.concatenate(
        [
            minilm.embed(encoder / "model.onnx", [text for text, _ in rows[at : at + _BATCH]])
            for at in range(0, len(rows), _BATCH)
        ]
    )
    weights, biases = fit_head(vectors, np.array([classes.index(name) for _, name in rows]), len(classes))
    shutil.copytree(encoder, folder, dirs_exist_ok=True)
    onnx.save(with_head(onnx.load(str(encoder / "model.onnx")), weights, biases), str(folder / "model.onnx"))
    config = json.loads((folder / "config.json").read_text())
    config |= {
        "architectures": ["BertForSequenceClassification"],
        "id2label": {str(at): name for at, name in enumerate(classes)},
        "label2id": {name: at for at, name in enumerate(classes)},
    }
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    return folder


def ask_all(folder: Path, items: Sequence[Item], threads: int = 1) -> list[Answer]:
    """What it answers to each request, and how long that took from text to probabilities."""
    from mecroute.engines.onnx.encoder import open_onnx

    found = []
    with open_onnx(folder, n_threads=threads, max_batch=1) as engine:
        classifier = engine.classifier
        assert classifier is not None, "the configuration names the classes"
        labels = classifier.classes.labels
        for item in (*items[:20], *items):  # the first ones warm it up
            begun = time.perf_counter()
            groups, tokens = classifier.groups([item.text])
            shares = classifier.probabilities(classifier.submit(groups[0]).result())[0]
            took = round((time.perf_counter() - begun) * 1e3, 3)
            label = labels[int(shares.argmax())]
            found.append(
                Answer(
                    id=item.id, set=item.set, tier="encoder", answer=label, right=label == item.answer,
                    ttft_ms=took, latency_ms=took, prompt_tokens=tokens, cached_tokens=0, output_tokens=0,
                    probability=round(float(shares.max()), 4),
                )
            )  # fmt: skip
    return found[20:]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, help="folder of clinc150, hellaswag and arc_challenge")
    parser.add_argument("minilm", type=Path, help="folder with model.safetensors and tokenizer.json")
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    folder = train(args.data, args.minilm, args.out)
    items = [item for item in read_workload(args.data) if item.set == "intents"]
    answers = ask_all(folder, items)
    (args.out / "encoder.jsonl").write_text("".join(json.dumps(asdict(one)) + "\n" for one in answers))
    by_id = {item.id: item for item in items}
    for part in ("measured", "calibration"):
        for name, wanted in (("in scope", False), ("out of scope", True)):
            right = [
                one.right
                for one in answers
                if by_id[one.id].part == part and (by_id[one.id].answer == NO_CLASS) is wanted
            ]
            print(f"{part}, {name}: {sum(right) / len(right):.3f} of {len(right)}")
    print(f"median {np.median([one.latency_ms for one in answers]):.2f} ms")


if __name__ == "__main__":
    main()
