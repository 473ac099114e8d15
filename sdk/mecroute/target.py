"""A target: one place that can serve a request now, and what is known of its state."""

from __future__ import annotations

from dataclasses import dataclass, field

from mecroute.request import Need
from mecroute_registry.facts import Task, Tier

#: Stands for the models of a node that tells of none: it is out of reach, or has nothing ready.
ANY_MODEL = "*"


@dataclass(frozen=True, slots=True)
class Target:
    """Tier, node and model version.

    Args:
        node: the node's name on the MEC tier, the provider's on the cloud tier; None on the device.
        model: the reference the target is asked for (`name:version`, or a cloud's own model name).
        digest: the registry digest of the model version, where it has one.
        region: where the data is while it is served; None where unknown.
        id: a readable, unique name: `device/smollm2:q4_0`, `mec/node-1/smollm2:q8_0`.
    """

    tier: Tier
    model: str
    node: str | None = None
    digest: str | None = None
    region: str | None = None

    id: str = field(init=False, repr=False, compare=False, default="")

    def __post_init__(self) -> None:
        # Kept, since a decision reads it for every target.
        parts = (self.tier, self.node, self.model) if self.node else (self.tier, self.model)
        object.__setattr__(self, "id", "/".join(parts))


@dataclass(frozen=True, slots=True)
class TargetState:
    """A target with everything the router needs to predict what it would do.

    Speeds are tokens per second of one request; None where nothing was measured.

    Args:
        accuracy: 0..1, share of evaluation items right; None where unknown.
        accuracy_source: `measured`, `declared` or `assumed`.
        round_trip_ms: time to reach the target and back, without its work.
        jitter_ms: mean deviation of that.
        loss: 0..1, share of recent exchanges with it that were lost on the way.
        upload_bytes_per_s, download_bytes_per_s: rates of bodies to it and from it; None until measured.
        speed_source: where the speeds come from, in words.
        ready_in_ms: time until it can begin (a model that must be loaded first).
        availability: 0..1, share of recent calls that were answered.
        decode_slowdown: 0..1, how much longer a token takes for each other request there, as a share of what
            it takes alone; None where it was not measured.
        prefill_left_tokens: prompt tokens that it had accepted and not computed, at `told_at_s`.
        told_at_s: when its load was told, in monotonic seconds.
        zone: where the node stands; None where unknown.
        prefixes: keys of the conversations whose tokens it holds (`mecroute.prefix_keys`).
        labels: the classes that a classifier tells apart; None where it is none, or they are unknown.
        unavailable: why it cannot be used at all at this moment; None when it can.
    """

    target: Target
    tasks: frozenset[Task]
    abilities: frozenset[Need]
    context_length: int
    accuracy: float | None = None
    accuracy_source: str = "assumed"
    prefill_tokens_per_s: float | None = None
    decode_tokens_per_s: float | None = None
    speed_source: str = "assumed"
    round_trip_ms: float = 0.0
    ready_in_ms: float = 0.0
    running: int = 0
    queued: int = 0
    parallel: int = 1
    input_usd_per_mtok: float = 0.0
    output_usd_per_mtok: float = 0.0
    availability: float = 1.0
    memory_needed_bytes: int = 0
    reached_over_network: bool = False
    unavailable: str | None = None
    decode_slowdown: float | None = None
    prefill_left_tokens: int = 0
    told_at_s: float = 0.0
    zone: str | None = None
    prefixes: frozenset[str] = frozenset()
    jitter_ms: float = 0.0
    loss: float = 0.0
    upload_bytes_per_s: float | None = None
    download_bytes_per_s: float | None = None
    labels: frozenset[str] | None = None
