"""Text classification with an ONNX sequence classifier: tokens in, the probability of each class out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mecroute.engines.onnx.texts import Text, TextGroup, TextInputs, compute_texts
from mecroute.errors import InvalidModelFileError
from mecroute_registry.onnx_folder import CONFIG_FILE, read_config, states_classes

if TYPE_CHECKING:
    from mecroute.engines.onnx.engine import OnnxEngine

_OUTPUT = "logits"
_MAX_CLASSES = 65_536


@dataclass(frozen=True, slots=True)
class Classes:
    """What a sequence classifier tells apart.

    Attributes:
        labels: by the place of their logits; one alone is a score (a cross-encoder's relevance).
        independent: whether several may be true of a text at once: each has a probability of its own then,
            else they sum to 1.
    """

    labels: tuple[str, ...]
    independent: bool


def classes_of(engine: OnnxEngine, folder: Path) -> Classes | None:
    """What `config.json` says of a sequence classifier; None where the model is none.

    It is one if it has an output `logits` of [texts, classes], and its configuration names an architecture
    `…ForSequenceClassification`, or classes in `id2label`.

    Args:
        engine: the model.
        folder: where `config.json` lies.

    Raises:
        InvalidModelFileError: the classes do not agree with the model's output.
    """
    spec = next((spec for spec in engine.outputs if spec.name == _OUTPUT and len(spec.shape) == 2), None)
    if spec is None:
        return None
    config = read_config(folder)
    if config is None or not states_classes(config):
        return None
    named = config.get("id2label")
    stated = len(named) if isinstance(named, Mapping) else config.get("num_labels")
    count = spec.shape[1] if spec.shape[1] is not None else stated or 2
    if type(count) is not int or not 1 <= count <= _MAX_CLASSES:
        raise InvalidModelFileError(f"{engine.name} states {count} classes", hint="export the model again")
    if named is None:
        named = {str(at): f"LABEL_{at}" for at in range(count)}
    if not isinstance(named, Mapping) or set(named) != {str(at) for at in range(count)}:
        raise InvalidModelFileError(
            f"{folder / CONFIG_FILE} does not name the {count} classes of {engine.name}",
            hint='id2label must be {"0": …, "1": …}, one for each class',
        )
    labels = tuple(str(named[str(at)]) for at in range(count))
    independent = count == 1 or config.get("problem_type") == "multi_label_classification"
    return Classes(labels, independent)


class TextClassifier:
    """Gives the probabilities of classes for texts, or for pairs of texts.

    Args:
        engine: the model; it must outlive this.
        tokenizer: its `tokenizer.json`.
        classes: what it tells apart.

    Raises:
        InvalidModelFileError: the tokenizer cannot be read, or the model has inputs of other kinds.
        MissingExtraError: the `device` extra is not installed.

    Thread-safe.
    """

    def __init__(self, engine: OnnxEngine, tokenizer: Path, classes: Classes) -> None:
        self._engine = engine
        self._texts = TextInputs(engine, tokenizer)
        self.classes = classes

    @property
    def lanes(self) -> int:
        """How many groups are computed side by side."""
        return self._engine.lanes

    def groups(self, texts: Sequence[Text]) -> tuple[list[TextGroup], int]:
        """Tokenize texts, and put those of like length together; see `TextInputs.groups`."""
        return self._texts.groups(texts)

    def submit(self, group: TextGroup, *, admitted: bool = False) -> Future[dict[str, Any]]:
        """Queue a group; see `OnnxEngine.submit`."""
        return self._engine.submit(group.inputs, [_OUTPUT], admitted=admitted)

    def probabilities(self, outputs: Mapping[str, Any], places: Sequence[int] | None = None) -> Any:
        """The probabilities of a group, from what its future gave: float64 [texts, classes], each 0..1.

        The logistic function where classes are independent, else softmax.

        Args:
            outputs: what its future gave.
            places: the classes to choose from, by their places; the others are as if they did not exist. None
                takes all.
        """
        logits = np.asarray(outputs[_OUTPUT], np.float64)
        if places is not None:
            logits = logits[:, places]
        if self.classes.independent:
            # exp of large numbers overflows; the tanh form of the logistic function does not.
            return 0.5 * (1 + np.tanh(0.5 * logits))
        shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
        return shifted / shifted.sum(axis=1, keepdims=True)

    def classify(self, texts: Sequence[Text], places: Sequence[int] | None = None) -> tuple[Any, int]:
        """Classify texts and wait for it.

        Args:
            texts: texts, or pairs of them.
            places: as for `probabilities`.

        Returns:
            float64 [len(texts), classes], and the number of tokens in all texts.

        Raises:
            ContextLengthError: a text has no tokens or too many.
            OverloadedError: the engine's queue is full.
        """
        return compute_texts(self, texts, lambda _, outputs: self.probabilities(outputs, places))
