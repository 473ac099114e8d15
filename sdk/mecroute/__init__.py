"""mecroute runs AI where it should run: on the device, on a nearby edge server, or in the cloud.

    from mecroute import Client, Requirements

    client = Client()
    reply = client.chat.completions.create(messages=[{"role": "user", "content": "Hello"}])

Public names are imported on first use, so that `import mecroute` costs a device next to nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from mecroute_registry._version import __version__

if TYPE_CHECKING:
    from mecroute.client import AsyncClient, Client
    from mecroute.config import Config, load_config
    from mecroute.decision import Candidate, Decision, Rejection, Scores
    from mecroute.device.probe import DeviceProbe, DeviceReading
    from mecroute.errors import MecrouteError
    from mecroute.outcome import Outcome, Provenance, Segment
    from mecroute.requirements import Requirements
    from mecroute.results import (
        ChatCompletion,
        ChatCompletionChunk,
        Classification,
        CreateEmbeddingResponse,
        InferResult,
    )
    from mecroute.streams import AsyncStream, Stream
    from mecroute.target import Target

_HOMES = {
    "AsyncClient": "client",
    "AsyncStream": "streams",
    "Candidate": "decision",
    "ChatCompletion": "results",
    "ChatCompletionChunk": "results",
    "Classification": "results",
    "Client": "client",
    "Config": "config",
    "CreateEmbeddingResponse": "results",
    "Decision": "decision",
    "DeviceProbe": "device.probe",
    "DeviceReading": "device.probe",
    "InferResult": "results",
    "MecrouteError": "errors",
    "Outcome": "outcome",
    "Provenance": "outcome",
    "Rejection": "decision",
    "Requirements": "requirements",
    "Scores": "decision",
    "Segment": "outcome",
    "Stream": "streams",
    "Target": "target",
    "load_config": "config",
}

__all__ = [
    "AsyncClient",
    "AsyncStream",
    "Candidate",
    "ChatCompletion",
    "ChatCompletionChunk",
    "Classification",
    "Client",
    "Config",
    "CreateEmbeddingResponse",
    "Decision",
    "DeviceProbe",
    "DeviceReading",
    "InferResult",
    "MecrouteError",
    "Outcome",
    "Provenance",
    "Rejection",
    "Requirements",
    "Scores",
    "Segment",
    "Stream",
    "Target",
    "__version__",
    "load_config",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'mecroute' has no attribute '{name}'")
    value = getattr(import_module(f"mecroute.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
