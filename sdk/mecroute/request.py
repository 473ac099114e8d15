"""One validated request on its way through the pipeline."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, get_args

from pydantic import BaseModel

from mecroute.errors import DeadlineExceededError, InvalidRequestError
from mecroute.request_body import check_body
from mecroute.requirements import Requirements
from mecroute_registry.facts import Task, Tier, parse_ref

_TIERS: tuple[Tier, ...] = get_args(Tier)
#: What a request may need beyond plain text in and text out.
Need = str


@dataclass(frozen=True, slots=True)
class ModelSelector:
    """Which targets a caller's `model` admits: `auto`, `NAME`, `NAME:VERSION`, `TIER/…` or `TIER`."""

    text: str
    tier: Tier | None = None
    name: str | None = None
    version: str | None = None

    @classmethod
    def parse(cls, text: object) -> ModelSelector:
        """Read a `model` argument.

        Raises:
            InvalidRequestError: it is no model reference.
        """
        if not isinstance(text, str) or not text.strip():
            raise InvalidRequestError("model must be a text such as 'auto', 'smollm2' or 'mec/smollm2:q8_0'")
        head, _, rest = text.partition("/")
        tier: Tier | None = next((t for t in _TIERS if t == head), None)
        ref = rest if tier else text
        if ref in ("", "auto"):
            return cls(text=text, tier=tier)
        try:
            name, version = parse_ref(ref)
        except ValueError:
            # A cloud's model names follow no grammar of ours; they match as a whole.
            name, version = ref, None
        return cls(text=text, tier=tier, name=name, version=version)

    def admits(self, tier: Tier, ref: str) -> bool:
        """Whether a model `ref` (`name`, `name:version` or a cloud's own name) on `tier` is meant."""
        if self.tier is not None and tier != self.tier:
            return False
        if self.name is None:
            return True
        if self.version is None:
            return ref == self.name or ref.partition(":")[0] == self.name
        return ref == f"{self.name}:{self.version}"


#: Of its own, seeded by the system: a caller's `random.seed` does not make ids come again. A uuid asks the
#: system each time, which took half as long as a whole decision.
_IDS = random.Random()  # noqa: S311 - a name, no secret
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_IDS.seed)


@dataclass(frozen=True, slots=True)
class Payer:
    """Whom a request's cost is counted for: its user, its app, and the key it came with, where named."""

    user: str | None = None
    app: str | None = None
    key: str | None = None


@dataclass(frozen=True, slots=True)
class Request:
    """One validated request.

    `body` holds the OpenAI request fields except `model`, `stream` and mecroute's own.
    """

    task: Task
    model: ModelSelector
    body: Mapping[str, Any]
    requirements: Requirements
    stream: bool = False
    user: str | None = None
    app: str | None = None
    key: str | None = None
    id: str = field(default_factory=lambda: f"req-{_IDS.getrandbits(96):024x}")
    started: float = field(default_factory=time.monotonic)

    @property
    def payer(self) -> Payer:
        """Whom its cost is counted for."""
        return Payer(self.user, self.app, self.key)

    def remaining_s(self) -> float | None:
        """Seconds left before the deadline, or None without one.

        Raises:
            DeadlineExceededError: none are left.
        """
        if self.requirements.deadline_ms is None:
            return None
        left = self.requirements.deadline_ms / 1000 - (time.monotonic() - self.started)
        if left <= 0:
            raise DeadlineExceededError(
                f"the deadline of {self.requirements.deadline_ms:.0f} ms passed", hint="allow more time"
            )
        return left

    def text(self) -> str:
        """Everything the model is to read, as plain text (images and other parts left out)."""
        if self.task == "infer":
            return ""
        if self.task in ("embed", "classify"):
            given = self.body["input"]
            return given if isinstance(given, str) else "\n".join(str(item) for item in given)
        if self.task == "completion":
            suffix = self.body.get("suffix")
            return str(self.body["prompt"]) + (suffix if isinstance(suffix, str) else "")
        return "\n".join(message_text(message) for message in self.body["messages"])


def message_text(message: Mapping[str, Any]) -> str:
    """The text of one chat message, whose content is a text or a list of parts."""
    content = message.get("content")
    if isinstance(content, str):
        return content
    if isinstance(content, Sequence):
        return "\n".join(str(part.get("text", "")) for part in content if isinstance(part, Mapping))
    return ""


def _plain_messages(messages: object) -> object:
    """Message objects, ours or `openai`'s (that of an answer, say), as the JSON that they stand for."""
    if not isinstance(messages, list | tuple):
        return messages
    return [
        message.model_dump(mode="json", exclude_none=True) if isinstance(message, BaseModel) else message
        for message in messages
    ]


def ingest(
    task: Task,
    *,
    model: object,
    body: Mapping[str, Any],
    requirements: Requirements | Mapping[str, Any] | None = None,
    stream: bool = False,
) -> Request:
    """Validate a caller's request and give it an id and a deadline.

    Raises:
        InvalidRequestError: the message names the field and what is wrong with it.
    """
    selector = ModelSelector.parse(model)
    if task == "chat":
        body = {**body, "messages": _plain_messages(body.get("messages"))}
    check_body(task, body)
    if task == "infer" and selector.name is None:
        raise InvalidRequestError("tensors are for one model only", hint="name it with model=")
    user, app, key = body.get("user"), body.get("app"), body.get("key")
    return Request(
        task=task,
        model=selector,
        body={
            name: value for name, value in body.items() if value is not None and name not in ("app", "key")
        },
        requirements=Requirements.parse(requirements),
        stream=stream,
        user=str(user) if user is not None else None,
        app=str(app) if app is not None else None,
        key=str(key) if key is not None else None,
    )
