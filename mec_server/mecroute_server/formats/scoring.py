"""`/v1/classify` and `/v1/rerank`: their requests, checked, and the answers of the latter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mecroute.engines.llama.openai.fields import flag, integer, known_fields
from mecroute.errors import InvalidRequestError
from mecroute_server.formats.fields import text

#: What one request may bring.
MAX_TEXTS = 2048
_CLASSIFY = frozenset({"model", "input", "labels", "top_k", "user"})
_RERANK = frozenset({"model", "query", "documents", "top_n", "return_documents", "user"})


def parse_classify(body: Mapping[str, Any]) -> tuple[list[str], list[str] | None, int | None]:
    """The texts to classify, the classes to choose from (None: all), and how many of them each answer is to
    name (None: all).

    Raises:
        InvalidRequestError: names the field that is missing or wrong.
    """
    fields = known_fields(body, _CLASSIFY, {})
    given = fields.get("input")
    texts = [given] if isinstance(given, str) else given
    if not isinstance(texts, list) or not texts:
        raise InvalidRequestError("'input' must be a text or a list of texts, at least one")
    if len(texts) > MAX_TEXTS:
        raise InvalidRequestError(f"'input' has {len(texts)} texts; the limit is {MAX_TEXTS}")
    for at, one in enumerate(texts):
        if not isinstance(one, str) or not one:
            raise InvalidRequestError(f"'input[{at}]' must be a text that is not empty")
    labels = fields.get("labels")
    if labels is not None:
        named = isinstance(labels, list) and bool(labels) and all(isinstance(one, str) for one in labels)
        if not named or len(set(labels)) < len(labels):
            raise InvalidRequestError("'labels' must be a list of different classes, at least one")
    return texts, labels, integer(fields, "top_k", 1)


@dataclass(frozen=True, slots=True)
class RerankRequest:
    """Documents to put in the order of their relevance to a query.

    Attributes:
        query: not empty.
        documents: at least one, none empty.
        top_n: >= 1; how many to name. None names all.
        return_documents: whether to repeat their texts.
    """

    query: str
    documents: list[str]
    top_n: int | None
    return_documents: bool


def parse_rerank(body: Mapping[str, Any]) -> RerankRequest:
    """Read a request of Jina's and Cohere's shape; a document is a text or `{"text": …}`.

    Raises:
        InvalidRequestError: names the field that is missing or wrong.
    """
    fields = known_fields(body, _RERANK, {})
    query = text(fields, "query")
    if not query:
        raise InvalidRequestError("'query' must be a text that is not empty")
    given = fields.get("documents")
    if not isinstance(given, list) or not given:
        raise InvalidRequestError("'documents' must be a list of texts, at least one")
    if len(given) > MAX_TEXTS:
        raise InvalidRequestError(f"'documents' has {len(given)} texts; the limit is {MAX_TEXTS}")
    documents: list[str] = []
    for at, one in enumerate(given):
        document = one.get("text") if isinstance(one, Mapping) else one
        if not isinstance(document, str) or not document:
            raise InvalidRequestError(f"'documents[{at}]' must be a text that is not empty")
        documents.append(document)
    return RerankRequest(
        query, documents, integer(fields, "top_n", 1), return_documents=flag(fields, "return_documents")
    )


def rerank_answer(
    asked: RerankRequest, scores: Sequence[float], *, id: str, model: str, tokens: int
) -> dict[str, Any]:
    """Jina's answer: the most relevant document first; equal ones stay in the order they were sent.

    Args:
        asked: the request.
        scores: one for each document.
        id: of the answer.
        model: the reference of the model.
        tokens: prompt tokens read.
    """
    order = sorted(range(len(scores)), key=lambda at: -scores[at])[: asked.top_n]
    results: list[dict[str, Any]] = [{"index": at, "relevance_score": scores[at]} for at in order]
    if asked.return_documents:
        for result in results:
            result["document"] = {"text": asked.documents[result["index"]]}
    return {
        "id": id,
        "model": model,
        "results": results,
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }
