"""OpenAI's shapes around the llama.cpp engine, for the device tier and the MEC server alike."""

from mecroute.engines.llama.openai.choice import token_logprobs
from mecroute.engines.llama.openai.completion import parse_completion
from mecroute.engines.llama.openai.embeddings import (
    EmbeddingRequest,
    embeddings_json,
    embeddings_response,
    parse_embeddings,
    shortened,
)
from mecroute.engines.llama.openai.request import parse_chat, wants_usage
from mecroute.engines.llama.openai.response import (
    chat_chunks,
    chat_completion,
    text_chunks,
    text_completion,
)

__all__ = [
    "EmbeddingRequest",
    "chat_chunks",
    "chat_completion",
    "embeddings_json",
    "embeddings_response",
    "parse_chat",
    "parse_completion",
    "parse_embeddings",
    "shortened",
    "text_chunks",
    "text_completion",
    "token_logprobs",
    "wants_usage",
]
