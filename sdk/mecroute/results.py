"""OpenAI-shaped results: objects the way `openai`'s are, plus `.mecroute`.

Fields that an endpoint adds are kept and reachable as attributes.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, PrivateAttr

from mecroute.outcome import Provenance


class _Shape(BaseModel):
    model_config = ConfigDict(extra="allow")

    def to_dict(self) -> dict[str, Any]:
        """The result as JSON types, without fields that are unset."""
        return self.model_dump(mode="json", exclude_none=True)

    def to_json(self, *, indent: int | None = 2) -> str:
        """The result as JSON text."""
        return self.model_dump_json(exclude_none=True, indent=indent)


class Usage(_Shape):
    """Token counts of one call."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    total_tokens: int = 0


class Function(_Shape):
    """A function and what it is to be called with: a JSON object as text."""

    name: str | None = None
    arguments: str | None = None


class ToolCall(_Shape):
    """A call that the model wants to be made; in a chunk, a part of one (`index` says of which)."""

    id: str | None = None
    type: str | None = None
    index: int | None = None
    function: Function | None = None


class Message(_Shape):
    """The message a model wrote."""

    role: str = "assistant"
    content: str | None = None
    tool_calls: list[ToolCall] | None = None


class Choice(_Shape):
    """One of the answers."""

    index: int = 0
    message: Message
    finish_reason: str | None = None


class _Answer(_Shape):
    _mecroute: Provenance | None = PrivateAttr(default=None)

    @property
    def mecroute(self) -> Provenance:
        """Where the answer comes from: tier, decision, outcome, segments."""
        assert self._mecroute is not None, "set by the pipeline before the answer is handed out"
        return self._mecroute


class ChatCompletion(_Answer):
    """A whole answer to a chat request."""

    id: str
    object: str = "chat.completion"
    created: int
    model: str
    choices: list[Choice]
    usage: Usage | None = None


class ChoiceDelta(_Shape):
    """What one chunk adds to the message."""

    role: str | None = None
    content: str | None = None
    tool_calls: list[ToolCall] | None = None


class ChunkChoice(_Shape):
    """One of the answers, as far as this chunk adds to it."""

    index: int = 0
    delta: ChoiceDelta
    finish_reason: str | None = None


class ChatCompletionChunk(_Shape):
    """One piece of a streamed answer."""

    id: str
    object: str = "chat.completion.chunk"
    created: int
    model: str
    choices: list[ChunkChoice]
    usage: Usage | None = None


class Embedding(_Shape):
    """One vector: float32 [dim], or base64 of it where that was asked for."""

    object: str = "embedding"
    index: int
    embedding: list[float] | str


class EmbeddingUsage(_Shape):
    """Token counts of an embedding call."""

    prompt_tokens: int = 0
    total_tokens: int = 0


class CreateEmbeddingResponse(_Answer):
    """Vectors in the order of the inputs."""

    object: str = "list"
    data: list[Embedding]
    model: str
    usage: EmbeddingUsage | None = None


class ClassScore(_Shape):
    """A class and its probability, 0..1."""

    label: str
    score: float


class Classified(_Shape):
    """The class of one text.

    Args:
        label: the most probable class.
        probs: the probability of every class, in the order of the labels that were given, else in the
            model's; empty where a chat model was asked.
        num_classes: how many classes it was chosen from.
        scores: classes by falling probability; of a chat model that of the label, where it is told.
    """

    index: int
    label: str
    probs: list[float] = []
    num_classes: int
    scores: list[ClassScore] = []

    @property
    def score(self) -> float | None:
        """The probability of the label, 0..1; None where a chat model was asked that does not tell."""
        if self.scores:
            return self.scores[0].score
        return max(self.probs, default=None)


class Classification(_Answer):
    """Classes in the order of the inputs."""

    object: str = "list"
    data: list[Classified]
    model: str
    usage: EmbeddingUsage | None = None


class Tensor(_Shape):
    """A named tensor, its values in row-major order.

    Args:
        datatype: the Open Inference Protocol's: `FP32`, `INT64`, `BYTES`…
    """

    name: str
    shape: list[int]
    datatype: str
    data: list[Any]


class InferResult(_Answer):
    """What a tensor model answered."""

    model_name: str
    outputs: list[Tensor]

    def output(self, name: str) -> Tensor:
        """The output of that name.

        Raises:
            KeyError: there is none.
        """
        for tensor in self.outputs:
            if tensor.name == name:
                return tensor
        raise KeyError(name)


class Model(_Shape):
    """A model that can be asked for.

    Args:
        tiers: where it can answer now.
        heat: `hot` (loaded on a MEC node), `warm` (in the registry, deployable) or `cold` (cloud only).
    """

    id: str
    object: str = "model"
    created: int = 0
    owned_by: str = "mecroute"
    tiers: tuple[str, ...] = ()
    heat: str = "cold"


class ModelList(_Shape):
    """Every model that can be asked for."""

    object: str = "list"
    data: list[Model]
