"""Ollama's chat and generate."""

from mecroute_server.formats.ollama.answer import (
    CHAT_LINES,
    GENERATE_LINES,
    chat_pieces,
    chat_whole,
    generate_pieces,
    generate_whole,
    loaded_chat,
    loaded_generate,
    timestamp,
)
from mecroute_server.formats.ollama.request import asks_nothing, parse_chat, parse_generate

__all__ = [
    "CHAT_LINES",
    "GENERATE_LINES",
    "asks_nothing",
    "chat_pieces",
    "chat_whole",
    "generate_pieces",
    "generate_whole",
    "loaded_chat",
    "loaded_generate",
    "parse_chat",
    "parse_generate",
    "timestamp",
]
