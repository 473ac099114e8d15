"""Measures the quality of a model file with the data that comes with the package."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from mecroute.engines.llama.model import LlamaModel
from mecroute_quantize.evaluation.accuracy import measure_accuracy
from mecroute_quantize.evaluation.dataset import dataset_name, load_questions, load_text
from mecroute_quantize.evaluation.perplexity import measure_perplexity
from mecroute_registry.facts import Evaluation

#: Perplexity's part of the work: 2,560 of 3,416 tokens with SmolLM2's tokenizer, and as much of the time.
_PERPLEXITY_SHARE = 0.75


def evaluate(
    path: Path, *, n_threads: int | None = None, progress: Callable[[float], None] | None = None
) -> Evaluation:
    """Measure perplexity and accuracy of a GGUF file.

    Args:
        path: a GGUF text generation model.
        n_threads: > 0; all usable CPUs by default.
        progress: called with the share done, 0 to 1.

    Returns:
        The figures, with the name and digest of the data they were measured on. The standard error of
        the accuracy is `accuracy_standard_error(accuracy, accuracy_items)`.

    Raises:
        InvalidModelFileError: the file cannot be loaded or cannot score text.
        MissingExtraError: numpy or llama-cpp-python is not installed.

    Thread safety: may be called from several threads.
    """

    def report(start: float, share: float) -> Callable[[float], None] | None:
        if progress is None:
            return None
        told = progress
        return lambda done: told(start + share * done)

    model = LlamaModel(path)
    try:
        perplexity = measure_perplexity(
            model, load_text(), n_threads=n_threads, progress=report(0.0, _PERPLEXITY_SHARE)
        )
        accuracy = measure_accuracy(
            model,
            load_questions(),
            n_threads=n_threads,
            progress=report(_PERPLEXITY_SHARE, 1 - _PERPLEXITY_SHARE),
        )
    finally:
        model.close()
    return Evaluation(
        dataset=dataset_name(),
        measured_at=datetime.now(UTC),
        perplexity=perplexity.value,
        perplexity_tokens=perplexity.tokens,
        accuracy=accuracy.value,
        accuracy_items=accuracy.items,
    )
