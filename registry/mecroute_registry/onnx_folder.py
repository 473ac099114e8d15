"""The files that belong to an ONNX model: which of a folder is the model, and what lies beside it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from mecroute_registry.errors import InvalidModelFileError
from mecroute_registry.facts import Task
from mecroute_registry.onnx import OnnxFacts

TOKENIZER_FILE = "tokenizer.json"
CONFIG_FILE = "config.json"
#: What a model that reads texts has beside it; the tokenizer first, without which the others say nothing.
TEXT_FILES = (TOKENIZER_FILE, CONFIG_FILE, "tokenizer_config.json", "sentence_bert_config.json")
_MODEL_FILES = ("model.onnx", "onnx/model.onnx")
_MAX_CONFIG_BYTES = 16 << 20
#: Tokens a text may have where no file beside the model says it.
_DEFAULT_TOKENS = 512


def model_file(path: Path) -> Path:
    """The model file that a path means: itself, or the one in that folder.

    Raises:
        InvalidModelFileError: the folder has no model, or several and none of the usual name.
    """
    if not path.is_dir():
        return path
    for name in _MODEL_FILES:
        if (path / name).is_file():
            return path / name
    files = sorted(path.glob("*.onnx"))
    if len(files) == 1:
        return files[0]
    raise InvalidModelFileError(
        f"the folder {path} has {len(files)} ONNX models, and none is called {_MODEL_FILES[0]}",
        hint="name one of its files",
    )


def tokenizer_file(path: Path) -> Path | None:
    """The `tokenizer.json` beside a model file, or above a folder `onnx` that it is in; None if none."""
    folders = [path.parent, path.parent.parent] if path.parent.name == "onnx" else [path.parent]
    return next((folder / TOKENIZER_FILE for folder in folders if (folder / TOKENIZER_FILE).is_file()), None)


def companions_of(path: Path, facts: OnnxFacts) -> dict[str, Path]:
    """The files that a model needs beside it: those that hold its tensors, and its tokenizer's.

    Args:
        path: the model file.
        facts: its outline.

    Returns:
        Each file by the name under which it must lie in the model file's folder.

    Raises:
        InvalidModelFileError: a file of tensors has the name of a tokenizer's.
    """
    found = {str(PurePosixPath(name)): path.parent / name for name in facts.external_files}
    tokenizer = tokenizer_file(path)
    if tokenizer is None or "input_ids" not in facts.inputs:
        return found
    for name in TEXT_FILES:
        file = tokenizer.parent / name
        if not file.is_file():
            continue
        if name in found:
            raise InvalidModelFileError(
                f"{path} keeps tensors in '{name}', which is the name of a tokenizer's file",
                hint="export the model again",
            )
        found[name] = file
    return found


def tasks_of(path: Path, facts: OnnxFacts) -> tuple[Task, ...]:
    """What a model can be asked for, as far as its files tell: texts to embed, classify or rank, or tensors.

    Args:
        path: the model file.
        facts: its outline.
    """
    tokenizer = tokenizer_file(path)
    if tokenizer is None or "input_ids" not in facts.inputs:
        return ("infer",)
    config = read_config(tokenizer.parent)
    if "logits" in facts.outputs and config is not None and states_classes(config):
        labels = config.get("id2label")
        count = len(labels) if isinstance(labels, dict) else config.get("num_labels")
        return ("rerank", "infer") if count == 1 else ("classify", "infer")
    return ("embed", "infer")


def read_config(folder: Path) -> dict[str, Any] | None:
    """The `config.json` of a folder; None where there is none that can be read."""
    return read_json(folder / CONFIG_FILE)


def read_json(path: Path) -> dict[str, Any] | None:
    """The JSON object in a file; None where there is none that can be read."""
    try:
        if path.stat().st_size > _MAX_CONFIG_BYTES:
            return None
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def labels_of(config: Mapping[str, Any]) -> tuple[str, ...] | None:
    """The classes that a configuration names, by the place of their logits; None where it does not."""
    named = config.get("id2label")
    if not isinstance(named, dict) or not named or set(named) != {str(at) for at in range(len(named))}:
        return None
    return tuple(str(named[str(at)]) for at in range(len(named)))


def max_tokens(told: Mapping[str, Mapping[str, Any] | None]) -> int:
    """How many tokens a text may have.

    Args:
        told: what the files of `TEXT_FILES` that there are say, by their names.
    """
    found: list[int] = []
    for name, key in (
        (CONFIG_FILE, "max_position_embeddings"),
        ("tokenizer_config.json", "model_max_length"),
        ("sentence_bert_config.json", "max_seq_length"),
    ):
        value = (told.get(name) or {}).get(key)
        # Where it is unknown, transformers writes 10**30.
        if isinstance(value, int) and 1 <= value <= 1 << 17:
            found.append(value)
    return min(found, default=_DEFAULT_TOKENS)


def states_classes(config: dict[str, Any]) -> bool:
    """Whether a configuration is a sequence classifier's: it names classes, or such an architecture."""
    architectures = config.get("architectures")
    named = architectures if isinstance(architectures, list) else []
    return bool(config.get("id2label")) or any(
        str(one).endswith("ForSequenceClassification") for one in named
    )
