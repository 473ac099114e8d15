"""A request of OpenAI's Responses, translated into one of its chat completions."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from mecroute.engines.llama import openai
from mecroute.engines.llama.engine import GenerationRequest, LlamaEngine
from mecroute.engines.llama.openai.fields import integer, known_fields, unsupported
from mecroute.errors import InvalidRequestError
from mecroute_server.formats.fields import joined_text, messages_in, renamed, role_of, text

#: Fields that do not change what the answer says. `store` is one: the answer says that it was not stored.
_NEUTRAL = frozenset(
    {
        *("model", "stream", "stream_options", "store", "metadata", "user", "service_tier"),
        *("safety_identifier", "prompt_cache_key", "prompt_cache_retention", "max_tool_calls"),
    }
)
_SAMPLING = frozenset({"temperature", "top_p"})
_TOOLS = frozenset({"tools", "tool_choice", "parallel_tool_calls"})
_KNOWN = (
    _NEUTRAL
    | _SAMPLING
    | _TOOLS
    | {"input", "instructions", "max_output_tokens", "text", "include", "top_logprobs"}
)
#: What `include` may ask for: log-probabilities, and what only matters where there is reasoning to be kept.
_LOGPROBS, _REASONING = "message.output_text.logprobs", "reasoning.encrypted_content"
_EMPTY: dict[str, tuple[Any, ...]] = {
    "background": (False,),
    "truncation": ("disabled",),
    "reasoning": ({},),
}
_STATEFUL = ("previous_response_id", "conversation")
_ROLES = ("system", "developer", "user", "assistant")
_TEXT = ("input_text", "output_text", "text")
_FUNCTION = frozenset({"type", "name", "description", "parameters", "strict"})
#: From a part of the chat's name for a field to this API's.
_NAMES = {
    ".function.": ".",
    "response_format.json_schema": "text.format",
    "response_format": "text.format",
}


def parse_response(body: Mapping[str, Any], engine: LlamaEngine) -> GenerationRequest:
    """Read the body of `/v1/responses`. A last message of the assistant is continued.

    Raises:
        InvalidRequestError: names the field that is missing, wrong or not supported.
    """
    for name in _STATEFUL:
        if body.get(name) is not None:
            raise InvalidRequestError(
                f"'{name}' is not supported: this server stores no responses",
                hint="send the whole conversation as 'input'",
            )
    fields = known_fields(body, _KNOWN, _EMPTY)
    chat = {
        "messages": _messages(fields),
        "max_tokens": integer(fields, "max_output_tokens", 1),
        "tools": [_tool(at, tool) for at, tool in enumerate(messages_in(fields, "tools"))],
        "tool_choice": _tool_choice(fields.get("tool_choice")),
        "response_format": _form(fields.get("text", {})),
        **_logprobs(fields),
        **{name: fields[name] for name in _SAMPLING if name in fields},
    }
    with renamed(_NAMES):
        return openai.parse_chat(chat, engine)


def _logprobs(fields: Mapping[str, Any]) -> dict[str, Any]:
    """What the chat is asked for: `top_logprobs` alone wants them too."""
    include = fields.get("include", [])
    if not isinstance(include, list):
        raise InvalidRequestError("include is not a list")
    for at, name in enumerate(include):
        if name not in (_LOGPROBS, _REASONING):
            raise unsupported(f"include[{at}], {name!r},")
    top = fields.get("top_logprobs")
    wanted = _LOGPROBS in include or top not in (None, 0)
    return {"logprobs": wanted, "top_logprobs": top} if wanted else {}


def _tool(at: int, tool: Mapping[str, Any]) -> dict[str, Any]:
    where = f"tools[{at}]"
    if tool.get("type") != "function":
        raise unsupported(f"{where} of type {tool.get('type')!r}")
    known = known_fields(tool, _FUNCTION, {}, f"{where}.")
    return {
        "type": "function",
        "function": {name: value for name, value in known.items() if name != "type"},
    }


def _tool_choice(choice: Any) -> Any:
    if isinstance(choice, Mapping):
        if choice.get("type") != "function" or not isinstance(choice.get("name"), str):
            raise unsupported(f"tool_choice of type {choice.get('type')!r}")
        return {"type": "function", "function": {"name": choice["name"]}}
    return choice


def _form(given: Any) -> Any:
    """The chat's `response_format` for this API's `text`."""
    if not isinstance(given, Mapping):
        raise InvalidRequestError("text is not an object", hint='{"format": {"type": "text"}}')
    form = known_fields(given, ("format",), {"verbosity": ("medium",)}, "text.").get("format")
    if isinstance(form, Mapping) and form.get("type") == "json_schema":
        return {"type": "json_schema", "json_schema": {n: v for n, v in form.items() if n != "type"}}
    return form


def _messages(fields: Mapping[str, Any]) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = []
    if instructions := text(fields, "instructions"):
        messages.append({"role": "system", "content": instructions})
    given = fields.get("input")
    if isinstance(given, str):
        return [*messages, {"role": "user", "content": given}]
    if not given:
        raise InvalidRequestError("input is missing or empty", hint="send a text or a list of messages")
    called: set[str] = set()
    for at, item in enumerate(messages_in(fields, "input")):
        where = f"input[{at}]"
        kind = item.get("type", "message")
        if kind == "function_call":
            _add_call(messages, _call(where, item, called))
        elif kind == "function_call_output":
            messages.append(_result(where, item, called))
        elif kind == "message":
            role = role_of(item, _ROLES, where)
            content = joined_text(item.get("content"), _TEXT, f"{where}.content")
            messages.append({"role": role, "content": content})
        else:
            raise unsupported(f"{where} of type {kind!r}")
    return messages


def _add_call(messages: list[dict[str, Any]], call: dict[str, Any]) -> None:
    """What the assistant says and calls in one turn are several items here and one message to a model."""
    if not messages or messages[-1]["role"] != "assistant":
        messages.append({"role": "assistant", "content": ""})
    messages[-1].setdefault("tool_calls", []).append(call)


def _call(where: str, item: Mapping[str, Any], called: set[str]) -> dict[str, Any]:
    call_id, name, spelled = item.get("call_id"), item.get("name"), item.get("arguments")
    if not isinstance(call_id, str) or not isinstance(name, str) or not isinstance(spelled, str):
        raise InvalidRequestError(f"{where} is not a call with a call_id, a name and arguments, all texts")
    try:
        arguments = json.loads(spelled or "{}")
    except (ValueError, RecursionError) as error:
        raise InvalidRequestError(f"{where}.arguments is not JSON: {error}") from error
    if not isinstance(arguments, Mapping):
        raise InvalidRequestError(f"{where}.arguments is not a JSON object")
    called.add(call_id)
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}


def _result(where: str, item: Mapping[str, Any], called: set[str]) -> dict[str, Any]:
    call_id = item.get("call_id")
    if not isinstance(call_id, str) or call_id not in called:
        raise InvalidRequestError(
            f"{where}.call_id is {call_id!r}", hint="it must be that of a function_call before it"
        )
    content = joined_text(item.get("output"), _TEXT, f"{where}.output")
    return {"role": "tool", "tool_call_id": call_id, "content": content}
