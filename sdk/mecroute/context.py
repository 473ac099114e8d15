"""What is known of a request, the device and the network when a decision is made."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from mecroute.request import Need

#: What a request asks for, as far as its words tell.
Question = Literal[
    "choice", "yes-no", "fact", "explanation", "comparison", "rewriting", "summary", "text", "code", "other"
]
#: Where a conversation stands: a first message, a further one, the result of a tool, an answer to go on with.
Conversation = Literal["opening", "follow-up", "tool-result", "continuation"]


@dataclass(frozen=True, slots=True)
class RequestFeatures:
    """What the text of a request tells.

    Args:
        complexity: 0..1, how demanding it is for a language model.
        reasons: the signals that raised it, in plain words.
        prompt_tokens: estimated tokens to read.
        output_tokens: predicted tokens to write.
        needs: abilities beyond plain text, as `tools` or `images`.
        kind: what requests with the same instructions have in common; None where there are none.
        language: ISO 639-1 code of the language it is written in; None where nothing speaks for one.
        question: what it asks for; None where that does not apply (embeddings, tensors).
        conversation: where the conversation stands; None where there is none.
        turns: messages of the user in it; 0 without a conversation.
        longest_tokens: estimated tokens of the longest of several texts, each of which is read by itself; 0
            where there is only one, which is the whole.
        texts: how many texts there are.
        chat_prompt_tokens, chat_output_tokens: what a chat model reads beside a text and writes for it, that
            is asked for a class of it; 0 where none can be asked.
    """

    complexity: float
    reasons: tuple[str, ...]
    prompt_tokens: int
    output_tokens: int
    needs: frozenset[Need] = frozenset()
    kind: str | None = None
    language: str | None = None
    question: Question | None = None
    conversation: Conversation | None = None
    turns: int = 0
    longest_tokens: int = 0
    texts: int = 1
    chat_prompt_tokens: int = 0
    chat_output_tokens: int = 0


@dataclass(frozen=True, slots=True)
class DeviceState:
    """The machine this process runs on.

    Args:
        hardware: hardware class, the key of profiles.
        memory_available_bytes: memory a model may still take; None where it cannot be read.
        battery: charge 0..1; None without a battery.
        charging: whether it is on mains power.
        throttled: whether the processor is being slowed down for heat.
        speed_share: 0..1, what is left of its usual speed while it is slowed down; 1 while it is not.
        bandwidth_bytes_per_s: measured memory bandwidth of one thread; None until it was measured.
    """

    hardware: str
    memory_available_bytes: int | None = None
    battery: float | None = None
    charging: bool = True
    throttled: bool = False
    bandwidth_bytes_per_s: float | None = None
    speed_share: float = 1.0


@dataclass(frozen=True, slots=True)
class NetworkState:
    """The way to other machines, as the system and live traffic show it; None where nothing was measured.

    Args:
        offline: this host has no route beyond itself.
        metered: bytes cost.
        upload_limit_bytes: a larger request goes to no remote target; None without a limit.
        rtt_ms, jitter_ms: median over the remotes that were lately heard of.
        loss: 0..1, share of recent exchanges that were lost on the way.
        bandwidth_bytes_per_s: best rate at which a body recently came in.
        upload_bytes_per_s: usual rate at which a body recently went out.
    """

    offline: bool = False
    metered: bool = False
    upload_limit_bytes: int | None = None
    rtt_ms: float | None = None
    jitter_ms: float | None = None
    loss: float = 0.0
    bandwidth_bytes_per_s: float | None = None
    upload_bytes_per_s: float | None = None


@dataclass(frozen=True, slots=True)
class Context:
    """Everything the router is told about one request besides the targets.

    `upload_bytes`: about how much a remote target would have to be sent.
    """

    features: RequestFeatures
    device: DeviceState
    network: NetworkState
    upload_bytes: int = 0
