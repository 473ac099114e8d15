"""GGUF models through llama.cpp. Importing this does not import llama.cpp; making an engine does."""

from mecroute.engines.llama.chat_template import ChatTemplate
from mecroute.engines.llama.engine import LlamaEngine
from mecroute.engines.llama.generation import (
    FinishReason,
    Generation,
    GenerationEvent,
    GenerationRequest,
    Usage,
)
from mecroute.engines.llama.model import LlamaModel
from mecroute.engines.llama.native import supports_gpu, system_info
from mecroute.engines.llama.sampling import GREEDY, SamplingParams
from mecroute.engines.llama.stats import EngineStats
from mecroute.engines.llama.submitter import Submitter, submitting

__all__ = [
    "GREEDY",
    "ChatTemplate",
    "EngineStats",
    "FinishReason",
    "Generation",
    "GenerationEvent",
    "GenerationRequest",
    "LlamaEngine",
    "LlamaModel",
    "SamplingParams",
    "Submitter",
    "Usage",
    "submitting",
    "supports_gpu",
    "system_info",
]
