"""OpenAI's shapes around the llama.cpp engine, for the device tier and the MEC server alike."""

from mecroute.engines.llama.openai.embeddings import embeddings_response, parse_embeddings
from mecroute.engines.llama.openai.request import parse_chat, parse_completion, wants_usage
from mecroute.engines.llama.openai.response import (
    chat_chunks,
    chat_completion,
    text_chunks,
    text_completion,
)

__all__ = [
    "chat_chunks",
    "chat_completion",
    "embeddings_response",
    "parse_chat",
    "parse_completion",
    "parse_embeddings",
    "text_chunks",
    "text_completion",
    "wants_usage",
]
