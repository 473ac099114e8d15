"""Classes of texts, and the relevance of documents, from whatever kind of model is asked."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mecroute.classification import places_of
from mecroute.errors import InvalidRequestError
from mecroute_server.embedding import cosines
from mecroute_server.encoding import compute_groups, embed
from mecroute_server.slot import OnnxLease

if TYPE_CHECKING:
    from mecroute.engines.onnx.classifier import TextClassifier
    from mecroute.engines.onnx.texts import Text, TextGroup


async def class_probabilities(
    lease: OnnxLease, texts: Sequence[str], wanted: Sequence[str] | None = None
) -> tuple[list[list[float]], Sequence[str], int]:
    """Classify texts.

    Args:
        lease: the model.
        texts: not empty.
        wanted: the classes to choose from; None for all.

    Returns:
        Probabilities [texts, classes], the classes, and the number of tokens read.

    Raises:
        InvalidRequestError: the model is no text classifier.
        UnknownLabelError: it lacks a class that is wanted.
        OverloadedError: its queue is full.
    """
    classifier = lease.engine.classifier
    if classifier is None:
        raise InvalidRequestError(
            f"'{lease.ref}' does not classify texts",
            hint="that takes an ONNX model with an output 'logits', and beside it its tokenizer.json and a "
            "config.json with id2label",
            model=lease.ref,
        )
    labels = classifier.classes.labels
    places = places_of(labels, wanted, lease.ref)
    rows, tokens = await _probabilities(classifier, texts, places)
    return rows, labels if wanted is None else wanted, tokens


async def relevance(lease: OnnxLease, query: str, documents: Sequence[str]) -> tuple[list[float], int]:
    """How relevant documents are to a query: 0..1 from a cross-encoder, -1..1 (a cosine) from an encoder.

    Returns:
        One score for each document, and the number of tokens read.

    Raises:
        InvalidRequestError: the model is neither.
        OverloadedError: its queue is full.
    """
    engine = lease.engine
    if engine.encoder is not None:
        vectors, tokens = await embed(engine.encoder, [query, *documents])
        return cosines(vectors), tokens
    if engine.classifier is None or len(engine.classifier.classes.labels) != 1:
        raise InvalidRequestError(
            f"'{lease.ref}' does not judge relevance",
            hint="ask a cross-encoder (a sequence classifier with one class) or a model that embeds texts",
            model=lease.ref,
        )
    rows, tokens = await _probabilities(engine.classifier, [(query, document) for document in documents])
    return [row[0] for row in rows], tokens


async def _probabilities(
    classifier: TextClassifier, texts: Sequence[Text], places: Sequence[int] | None = None
) -> tuple[list[list[float]], int]:
    groups, tokens = await asyncio.to_thread(classifier.groups, texts)
    rows: list[Any] = [None] * len(texts)

    def take(group: TextGroup, outputs: Mapping[str, Any]) -> None:
        for place, row in zip(group.places, classifier.probabilities(outputs, places), strict=True):
            rows[place] = row.tolist()

    await compute_groups(classifier, groups, take)
    return rows, tokens
