"""OpenAI's shapes around the llama.cpp engine, for the device tier and the MEC server alike."""

from mecroute.engines.llama.openai.request import parse_chat, parse_completion, wants_usage
from mecroute.engines.llama.openai.response import (
    chat_chunks,
    chat_chunks_sync,
    chat_completion,
    chat_completion_sync,
    text_chunks,
    text_chunks_sync,
    text_completion,
    text_completion_sync,
)

__all__ = [
    "chat_chunks",
    "chat_chunks_sync",
    "chat_completion",
    "chat_completion_sync",
    "parse_chat",
    "parse_completion",
    "text_chunks",
    "text_chunks_sync",
    "text_completion",
    "text_completion_sync",
    "wants_usage",
]
