"""A request of Ollama's chat or generate, translated."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mecroute.engines.llama import openai
from mecroute.engines.llama.engine import GenerationRequest, LlamaEngine
from mecroute.engines.llama.openai.fields import flag, integer, known_fields, unsupported
from mecroute.errors import InvalidRequestError
from mecroute_server.formats.fields import joined_text, messages_in, renamed, role_of, text

#: Fields that do not change what the answer says.
_NEUTRAL = frozenset({"model", "name", "stream", "keep_alive"})
_LOGPROBS = frozenset({"logprobs", "top_logprobs"})
_CHAT = _NEUTRAL | _LOGPROBS | {"messages", "options", "format", "tools"}
_GENERATE = _NEUTRAL | _LOGPROBS | {"prompt", "suffix", "system", "raw", "options", "format"}
_EMPTY: dict[str, tuple[Any, ...]] = {
    "think": (False,),
    "images": ([],),
    "template": ("",),
    "context": ([],),
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
#: From a part of OpenAI's name for a field to Ollama's.
_NAMES = {"response_format.json_schema.schema": "format", "response_format": "format"}
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
    if body.get("messages") or body.get("prompt") or body.get("suffix"):
        return False
    # A system prompt alone is a prompt for a model, and an empty one from a body without any is not.
    return not body.get("system")


def parse_chat(body: Mapping[str, Any], engine: LlamaEngine) -> GenerationRequest:
    """Read the body of `/api/chat`.

    Raises:
        InvalidRequestError: names the field that is missing, wrong or not supported.
    """
    fields = known_fields(body, _CHAT, _EMPTY)
    history = _History()
    messages = [history.translate(at, message) for at, message in enumerate(messages_in(fields))]
    asked = {"messages": messages, "tools": fields.get("tools", []), **_form(fields), **_logprobs(fields)}
    with renamed(_NAMES):
        return openai.parse_chat({**asked, **_sampling(fields, engine)}, engine)


def parse_generate(body: Mapping[str, Any], engine: LlamaEngine) -> GenerationRequest:
    """Read the body of `/api/generate`: the prompt is a user's message, with `raw` just text, and with a
    `suffix` what stands before the gap that the answer fills.

    Raises:
        InvalidRequestError: names the field that is missing, wrong or not supported.
    """
    fields = known_fields(body, _GENERATE, _EMPTY)
    prompt, system = text(fields, "prompt") or "", text(fields, "system")
    sampling, suffix = _sampling(fields, engine), text(fields, "suffix")
    if flag(fields, "raw") or suffix:
        beside = "suffix" if suffix else "raw"
        if system:
            raise unsupported(f"'system' together with '{beside}'")
        if _form(fields):
            raise unsupported(f"'format' together with '{beside}'")
        completion = {"prompt": prompt, "suffix": suffix, **sampling}
        if wanted := _logprobs(fields):
            completion["logprobs"] = wanted["top_logprobs"]
        (request,) = openai.parse_completion(completion, engine)
        return request
    messages = [{"role": "system", "content": system}] if system else []
    messages.append({"role": "user", "content": prompt})
    with renamed(_NAMES):
        asked = {"messages": messages, **_form(fields), **_logprobs(fields)}
        return openai.parse_chat({**asked, **sampling}, engine)


def _logprobs(fields: Mapping[str, Any]) -> dict[str, Any]:
    """What the chat is asked for; how many candidates says nothing where no probabilities are wanted."""
    if not flag(fields, "logprobs"):
        return {}
    return {"logprobs": True, "top_logprobs": fields.get("top_logprobs", 0)}


def _form(fields: Mapping[str, Any]) -> dict[str, Any]:
    """What `format` asks for: nothing, JSON, or what a schema says."""
    given = fields.get("format", "")
    if given == "":
        return {}
    if given == "json":
        return {"response_format": {"type": "json_object"}}
    if not isinstance(given, Mapping):
        raise InvalidRequestError("format is neither 'json' nor a JSON schema", hint='send "json" or {…}')
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "format", "schema": given}}}


class _History:
    """A conversation under translation. Ollama's calls may have no ids: a result belongs to the first call of
    its `tool_name` (or, without one, of any name) that has none yet."""

    def __init__(self) -> None:
        self._open: list[tuple[str, str]] = []

    def translate(self, at: int, message: Mapping[str, Any]) -> dict[str, Any]:
        where = f"messages[{at}]"
        role = role_of(message, ("system", "user", "assistant", "tool"), where)
        if message.get("images"):
            raise unsupported(f"'{where}.images'")
        content = message.get("content")
        plain: dict[str, Any] = {
            "role": role,
            "content": "" if content is None else joined_text(content, ("text",), f"{where}.content"),
        }
        if calls := message.get("tool_calls"):
            if not isinstance(calls, list):
                raise InvalidRequestError(f"{where}.tool_calls is not a list")
            plain["tool_calls"] = [
                self._call(f"{where}.tool_calls[{n}]", call) for n, call in enumerate(calls)
            ]
            self._open += [(call["id"], call["function"]["name"]) for call in plain["tool_calls"]]
        if role == "tool":
            plain["tool_call_id"] = self._answered(where, message)
        return plain

    def _call(self, where: str, call: Any) -> dict[str, Any]:
        function = call.get("function") if isinstance(call, Mapping) else None
        name = function.get("name") if isinstance(function, Mapping) else None
        if not isinstance(call, Mapping) or not isinstance(function, Mapping) or not isinstance(name, str):
            raise InvalidRequestError(f"{where} is not a call of a function with a name")
        call_id = call.get("id")
        if call_id is not None and not isinstance(call_id, str):
            raise InvalidRequestError(f"{where}.id is not a text")
        arguments = function.get("arguments", {})
        if not isinstance(arguments, Mapping):
            raise InvalidRequestError(f"{where}.function.arguments is not an object")
        made = {"name": name, "arguments": arguments}
        return {"id": call_id or where, "type": "function", "function": made}

    def _answered(self, where: str, message: Mapping[str, Any]) -> str:
        wanted, name = message.get("tool_call_id"), message.get("tool_name")
        for entry in self._open:
            if (wanted is None or wanted == entry[0]) and (name is None or name == entry[1]):
                self._open.remove(entry)
                return entry[0]
        raise InvalidRequestError(
            f"{where} is the result of a call that no earlier message has",
            hint="the assistant's message with its tool_calls must come before it",
        )


def _sampling(fields: Mapping[str, Any], engine: LlamaEngine) -> dict[str, Any]:
    given = fields.get("options", {})
    if not isinstance(given, Mapping):
        raise InvalidRequestError("options is not an object")
    options = known_fields(given, _OPTIONS, _EMPTY_OPTIONS, "options.")
    num_ctx = integer(options, "num_ctx", 1, where="options.")
    if num_ctx is not None and num_ctx > engine.n_ctx:
        raise InvalidRequestError(
            f"options.num_ctx is {num_ctx}, and this node serves {engine.name} with {engine.n_ctx}",
            hint=f"send {engine.n_ctx} or less, or serve the model with a longer context",
        )
    limit = integer(options, "num_predict", -2, where="options.")
    if limit == 0:
        raise InvalidRequestError(
            "options.num_predict is 0", hint="it must be at least 1, or -1 for no limit"
        )
    no_limit = limit is None or limit < 0
    sampling = {name: options[name] for name in _SAMPLING if name in options}
    return {**sampling, "max_tokens": engine.n_ctx if no_limit else limit}
