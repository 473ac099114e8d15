"""Encoders and classifiers of the device: what is known of each before it is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from mecroute.config.schema import TextModelConfig
from mecroute.errors import MecrouteError
from mecroute_registry.facts import ModelVersion, Task
from mecroute_registry.onnx import read_onnx
from mecroute_registry.onnx_folder import (
    CONFIG_FILE,
    TEXT_FILES,
    labels_of,
    max_tokens,
    model_file,
    read_json,
    tasks_of,
    tokenizer_file,
)

#: What is done with texts here; tensors and rankings are for nodes.
TEXT_TASKS: frozenset[Task] = frozenset({"embed", "classify"})


@dataclass(frozen=True, slots=True)
class TextModel:
    """An ONNX model of texts, as its files describe it.

    Args:
        ref: what it is asked for by.
        tasks: `embed` or `classify`.
        labels: its classes; None where it has none, or they are not named.
        max_tokens: of one text.
        size_bytes: of its files.
        accuracy: 0..1, as stated in the configuration or the registry.
        digest: of the registered version; None for files.
        problem: why it cannot be used; None where it can.
    """

    ref: str
    tasks: frozenset[Task] = TEXT_TASKS
    labels: frozenset[str] | None = None
    max_tokens: int = 512
    size_bytes: int = 0
    accuracy: float | None = None
    digest: str | None = None
    problem: str | None = None


def is_text_model(model: ModelVersion) -> bool:
    """Whether a registered version is one that the device runs on texts."""
    return (
        model.format == "onnx"
        and "device" in model.deployment_tiers
        and not TEXT_TASKS.isdisjoint(model.tasks)
    )


def describe_files(config: TextModelConfig) -> TextModel:
    """What the files of `[[device.text_models]]` say. Nothing is loaded."""
    path = config.path.expanduser()
    try:
        file = model_file(path)
        outline = read_onnx(file)
        tasks = frozenset(tasks_of(file, outline)) & TEXT_TASKS
        size = file.stat().st_size + sum(
            (file.parent / name).stat().st_size for name in outline.external_files
        )
    except OSError as error:
        return TextModel(config.name, problem=f"{path} cannot be read: {error.strerror}")
    except MecrouteError as error:
        return TextModel(config.name, problem=error.message)
    tokenizer = tokenizer_file(file)
    if tokenizer is None or not tasks:
        return TextModel(
            config.name, problem=f"{path} holds no model of texts with a tokenizer.json beside it"
        )
    told = {name: read_json(tokenizer.parent / name) for name in TEXT_FILES[1:]}
    return _described(TextModel(config.name, tasks, size_bytes=size, accuracy=config.accuracy), told)


def describe_registered(model: ModelVersion, companions: Mapping[str, Path]) -> TextModel:
    """What the registry says of a version for which `is_text_model` holds. No digest is checked yet.

    Args:
        model: the version.
        companions: where the files beside its model file lie, by their names.
    """
    told = {name: read_json(companions[name]) for name in TEXT_FILES[1:] if name in companions}
    made = TextModel(
        model.ref,
        frozenset(model.tasks) & TEXT_TASKS,
        size_bytes=model.size_bytes,
        accuracy=model.accuracy,
        digest=model.digest,
        problem=None if TEXT_FILES[0] in companions else "it was registered without its tokenizer.json",
    )
    return _described(made, told)


@lru_cache(maxsize=1)
def missing_here() -> str | None:
    """Why no text model can run in this process; None where they can."""
    if find_spec("onnxruntime") is None or find_spec("tokenizers") is None:
        return "running models here needs: pip install 'mecroute[device]'"
    return None


def _described(model: TextModel, told: Mapping[str, Mapping[str, Any] | None]) -> TextModel:
    """A text model with what the files beside it tell, by their names."""
    labels = labels_of(told.get(CONFIG_FILE) or {}) if "classify" in model.tasks else None
    return replace(
        model,
        labels=frozenset(labels) if labels is not None else None,
        max_tokens=max_tokens(told),
        problem=missing_here() or model.problem,
    )
