"""Ollama's chat and generate: the request, translated, and the answer, whole or in pieces."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from mecroute.engines.llama import openai
from mecroute.engines.llama.engine import Generation, GenerationRequest, LlamaEngine, Usage
from mecroute.errors import InvalidRequestError
from mecroute_server.formats.answers import read_whole
from mecroute_server.formats.fields import (
    flag,
    joined_text,
    known_fields,
    messages_in,
    role_of,
    text,
    unsupported,
    whole_number,
)
from mecroute_server.framing import Framing, encode_json, failure_in
from mecroute_server.generation import Reply

#: Fields that do not change what the answer says.
_NEUTRAL = frozenset({"model", "name", "stream", "keep_alive"})
_CHAT = _NEUTRAL | {"messages", "options"}
_GENERATE = _NEUTRAL | {"prompt", "system", "raw", "options"}
_EMPTY: dict[str, tuple[Any, ...]] = {
    "tools": ([],),
    "format": ("",),
    "think": (False,),
    "images": ([],),
    "suffix": ("",),
    "template": ("",),
    "context": ([],),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "truncate": (False,),
    "shift": (False,),
}
#: How the model lies in memory and is computed: the operator has decided that for all requests.
_MACHINE = frozenset(
    {
        *("numa", "num_batch", "num_gpu", "main_gpu", "low_vram", "f16_kv", "logits_all", "vocab_only"),
        *("use_mmap", "use_mlock", "embedding_only", "num_thread"),
        "num_keep",  # what survives when a context overflows: here none does, it is an error
    }
)
_SAMPLING = frozenset(
    {
        *("temperature", "top_p", "top_k", "min_p", "seed", "stop"),
        *("repeat_penalty", "presence_penalty", "frequency_penalty"),
    }
)
_OPTIONS = _MACHINE | _SAMPLING | {"num_predict", "num_ctx"}
_EMPTY_OPTIONS: dict[str, tuple[Any, ...]] = {
    "tfs_z": (1, 1.0),
    "typical_p": (1, 1.0),
    "mirostat": (0,),
    # Without mirostat these two say nothing, whatever they are set to; these are Ollama's defaults.
    "mirostat_tau": (5, 5.0),
    "mirostat_eta": (0.1,),
    "penalize_newline": (False,),
    "repeat_last_n": (64,),  # the engine's own window
}


def asks_nothing(body: Mapping[str, Any]) -> bool:
    """Whether a request only wants the model to be in memory, as Ollama's clients do before the first one, or
    to leave it.
    """
    if body.get("messages") or body.get("prompt"):
        return False
    # A system prompt alone is a prompt for a model, and an empty one from a body without any is not.
    return not body.get("system")


def parse_chat(body: Mapping[str, Any], engine: LlamaEngine) -> GenerationRequest:
    """Read the body of `/api/chat`.

    Raises:
        InvalidRequestError: names the field that is missing, wrong or not supported.
    """
    fields = known_fields(body, _CHAT, _EMPTY)
    messages = [_message(at, message) for at, message in enumerate(messages_in(fields))]
    return openai.parse_chat({"messages": messages, **_sampling(fields, engine)}, engine)


def parse_generate(body: Mapping[str, Any], engine: LlamaEngine) -> GenerationRequest:
    """Read the body of `/api/generate`: the prompt is a user's message, or with `raw` just text.

    Raises:
        InvalidRequestError: names the field that is missing, wrong or not supported.
    """
    fields = known_fields(body, _GENERATE, _EMPTY)
    prompt, system = text(fields, "prompt") or "", text(fields, "system")
    sampling = _sampling(fields, engine)
    if flag(fields, "raw"):
        if system:
            raise unsupported("'system' together with 'raw'")
        return openai.parse_completion({"prompt": prompt, **sampling}, engine)
    messages = [{"role": "system", "content": system}] if system else []
    return openai.parse_chat(
        {"messages": [*messages, {"role": "user", "content": prompt}], **sampling}, engine
    )


def _message(at: int, message: Mapping[str, Any]) -> dict[str, str]:
    where = f"messages[{at}]"
    role = role_of(message, ("system", "user", "assistant"), where)
    for name in ("images", "tool_calls"):
        if message.get(name):
            raise unsupported(f"'{where}.{name}'")
    content = message.get("content")
    return {
        "role": role,
        "content": "" if content is None else joined_text(content, ("text",), f"{where}.content"),
    }


def _sampling(fields: Mapping[str, Any], engine: LlamaEngine) -> dict[str, Any]:
    given = fields.get("options", {})
    if not isinstance(given, Mapping):
        raise InvalidRequestError("options is not an object")
    options = known_fields(given, _OPTIONS, _EMPTY_OPTIONS, "options.")
    num_ctx = whole_number(options, "num_ctx", 1, "options.")
    if num_ctx is not None and num_ctx > engine.n_ctx:
        raise InvalidRequestError(
            f"options.num_ctx is {num_ctx}, and this node serves {engine.name} with {engine.n_ctx}",
            hint=f"send {engine.n_ctx} or less, or serve the model with a longer context",
        )
    limit = whole_number(options, "num_predict", -2, "options.")
    if limit == 0:
        raise InvalidRequestError(
            "options.num_predict is 0", hint="it must be at least 1, or -1 for no limit"
        )
    no_limit = limit is None or limit < 0
    sampling = {name: options[name] for name in _SAMPLING if name in options}
    return {**sampling, "max_tokens": engine.n_ctx if no_limit else limit}


#: How one endpoint of the two puts text into its answer.
_Put = Callable[[str], dict[str, Any]]


def chat_text(content: str) -> dict[str, Any]:
    """A piece of a chat's answer."""
    return {"message": {"role": "assistant", "content": content}}


def generate_text(content: str) -> dict[str, Any]:
    """A piece of what `/api/generate` answers."""
    return {"response": content}


async def chat_whole(generation: Generation, reply: Reply) -> dict[str, Any]:
    """The whole answer of `/api/chat`."""
    return await _whole(generation, reply, chat_text)


async def generate_whole(generation: Generation, reply: Reply) -> dict[str, Any]:
    """The whole answer of `/api/generate`."""
    return await _whole(generation, reply, generate_text)


def chat_pieces(generation: Generation, reply: Reply) -> AsyncIterator[dict[str, Any]]:
    """The answer of `/api/chat` in pieces; the last one has no text and says what it took."""
    return _pieces(generation, reply, chat_text)


def generate_pieces(generation: Generation, reply: Reply) -> AsyncIterator[dict[str, Any]]:
    """The same for `/api/generate`."""
    return _pieces(generation, reply, generate_text)


def loaded(put: _Put, *, leaves: bool = False) -> dict[str, Any]:
    """The answer to a request that asks nothing, but for the model's name."""
    return {**_frame(""), **put(""), "done": True, "done_reason": "unload" if leaves else "load"}


async def _whole(generation: Generation, reply: Reply, put: _Put) -> dict[str, Any]:
    content, last, usage = await read_whole(generation)
    return {
        **_frame(reply.model),
        **put(content),
        "done": True,
        "done_reason": last.finish_reason,
        **_durations(usage, reply),
    }


async def _pieces(generation: Generation, reply: Reply, put: _Put) -> AsyncIterator[dict[str, Any]]:
    with generation:
        async for event in generation:
            if event.text:
                yield {**_frame(reply.model), **put(event.text), "done": False}
            if event.usage is not None:
                yield {
                    **_frame(reply.model),
                    **put(""),
                    "done": True,
                    "done_reason": event.finish_reason,
                    **_durations(event.usage, reply),
                }


def timestamp(at: datetime) -> str:
    """RFC 3339, as Go writes it."""
    return at.astimezone(UTC).isoformat().replace("+00:00", "Z")


def _frame(model: str) -> dict[str, Any]:
    return {"model": model, "created_at": timestamp(datetime.now(UTC))}


def _durations(usage: Usage, reply: Reply) -> dict[str, int]:
    """Nanoseconds. The total includes what the request waited for a sequence, which no other field does."""
    return {
        "total_duration": int(reply.load_s * 1e9 + (usage.ttft_ms + usage.decode_ms) * 1e6),
        "load_duration": int(reply.load_s * 1e9),
        "prompt_eval_count": usage.prompt_tokens,
        "prompt_eval_duration": int(usage.prefill_ms * 1e6),
        "eval_count": usage.completion_tokens,
        "eval_duration": int(usage.decode_ms * 1e6),
    }


def _line(value: dict[str, Any]) -> bytes:
    return encode_json(value) + b"\n"


def _lines(put: _Put) -> Framing:
    # A line is never blank or a comment: a piece without text is what changes nothing.
    heartbeat = _line({**put(""), "done": False})
    return Framing("application/x-ndjson", _line, failure=failure_in("ollama"), heartbeat=heartbeat)


CHAT_LINES = _lines(chat_text)
GENERATE_LINES = _lines(generate_text)
