"""A request of Anthropic's Messages, translated."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mecroute.engines.llama import openai
from mecroute.engines.llama.engine import GenerationRequest, LlamaEngine
from mecroute.engines.llama.openai.fields import integer, known_fields, unsupported
from mecroute.errors import InvalidRequestError
from mecroute_server.formats.fields import joined_text, messages_in, renamed, role_of

#: Fields that do not change what the answer says; the prefix cache is always on.
_NEUTRAL = frozenset({"model", "stream", "metadata", "service_tier", "cache_control"})
_SAMPLING = frozenset({"temperature", "top_p", "top_k"})
_PROMPT = frozenset({"messages", "system", "tools", "tool_choice"})
_KNOWN = _NEUTRAL | _SAMPLING | _PROMPT | {"max_tokens", "stop_sequences", "output_config"}
_EMPTY: dict[str, tuple[Any, ...]] = {
    "thinking": ({"type": "disabled"},),
    "mcp_servers": ([],),
    "speed": ("standard",),
}
_TEXT = ("text",)
_TOOL = frozenset({"name", "description", "input_schema", "type", "strict", "cache_control"})
_CHOICES = {"auto": "auto", "any": "required", "none": "none"}
_NAMES = {
    ".function.parameters": ".input_schema",
    ".function.": ".",
    "response_format.json_schema": "output_config.format",
}


def parse_messages(body: Mapping[str, Any], engine: LlamaEngine) -> GenerationRequest:
    """Read the body of `/v1/messages`. A last message of the assistant is continued.

    Raises:
        InvalidRequestError: names the field that is missing, wrong or not supported.
    """
    fields = known_fields(body, _KNOWN, _EMPTY)
    max_tokens = integer(fields, "max_tokens", 1)
    if max_tokens is None:
        raise InvalidRequestError(
            "max_tokens is missing", hint="say how many tokens the answer may have at most"
        )
    stops = fields.get("stop_sequences", [])
    if not isinstance(stops, list) or not all(isinstance(stop, str) and stop for stop in stops):
        raise InvalidRequestError("stop_sequences is not a list of texts, none of them empty")
    sampling = {name: fields[name] for name in _SAMPLING if name in fields}
    form = _form(fields.get("output_config", {}))
    with renamed(_NAMES):
        return openai.parse_chat(
            {**_prompt(fields), "max_tokens": max_tokens, "stop": stops, **sampling, **form}, engine
        )


def parse_count(body: Mapping[str, Any], engine: LlamaEngine) -> GenerationRequest:
    """Read the body of `/v1/messages/count_tokens`: the prompt, and no request to run.

    Raises:
        InvalidRequestError: names the field that is missing, wrong or not supported.
    """
    fields = known_fields(body, _NEUTRAL | _PROMPT, _EMPTY)
    with renamed(_NAMES):
        return openai.parse_chat(_prompt(fields), engine)


def _prompt(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {"messages": _messages(fields), **_tools(fields)}


def _tools(fields: Mapping[str, Any]) -> dict[str, Any]:
    given = [_tool(at, tool) for at, tool in enumerate(messages_in(fields, "tools"))]
    choice = fields.get("tool_choice", {"type": "auto"})
    kind = choice.get("type") if isinstance(choice, Mapping) else None
    if kind == "tool":
        return {
            "tools": given,
            "tool_choice": {"type": "function", "function": {"name": choice.get("name")}},
        }
    if not isinstance(kind, str) or kind not in _CHOICES:
        raise InvalidRequestError(
            f"tool_choice is {choice!r}", hint="its type must be 'auto', 'any', 'none' or 'tool' with a name"
        )
    return {"tools": given, "tool_choice": _CHOICES[kind]}


def _tool(at: int, tool: Mapping[str, Any]) -> dict[str, Any]:
    where = f"tools[{at}]"
    if tool.get("type") not in (None, "custom"):
        raise unsupported(f"{where} of type {tool.get('type')!r}")
    known = known_fields(tool, _TOOL, {}, f"{where}.")
    function = {name: known[name] for name in ("name", "description", "strict") if name in known}
    if "input_schema" not in known:
        raise InvalidRequestError(f"{where}.input_schema is missing", hint='{"type": "object", …}')
    return {"type": "function", "function": {**function, "parameters": known["input_schema"]}}


def _form(config: Any) -> dict[str, Any]:
    if not isinstance(config, Mapping):
        raise InvalidRequestError("output_config is not an object")
    given = known_fields(config, ("format",), {}, "output_config.").get("format")
    if given is None:
        return {}
    if not isinstance(given, Mapping) or given.get("type") != "json_schema" or given.get("schema") is None:
        raise InvalidRequestError(
            "output_config.format is not a JSON schema", hint='{"type": "json_schema", "schema": {…}}'
        )
    schema = {"name": "output", "schema": given["schema"], "strict": True}
    return {"response_format": {"type": "json_schema", "json_schema": schema}}


def _messages(fields: Mapping[str, Any]) -> list[dict[str, Any]]:
    given = messages_in(fields)
    if not given:
        raise InvalidRequestError("messages is missing or empty", hint="send at least one message")
    turns: list[dict[str, Any]] = []
    if (system := fields.get("system")) is not None:
        turns.append({"role": "system", "content": joined_text(system, _TEXT, "system", "\n\n")})
    called: set[str] = set()
    for at, message in enumerate(given):
        where = f"messages[{at}]"
        if role_of(message, ("user", "assistant"), where) == "user":
            for turn in _user_turns(message.get("content"), f"{where}.content", called):
                _append(turns, turn)
        else:
            turn = _assistant_turn(message.get("content"), f"{where}.content")
            called.update(call["id"] for call in turn.get("tool_calls", ()))
            _append(turns, turn)
    return turns


def _append(turns: list[dict[str, Any]], turn: dict[str, Any]) -> None:
    """Anthropic takes messages of the same role in a row for one; many templates refuse them."""
    if not turns or turns[-1]["role"] != turn["role"] or turn["role"] == "tool":
        turns.append(turn)
        return
    before = turns[-1]
    before["content"] = "\n\n".join(filter(None, (before["content"], turn["content"])))
    if calls := [*before.get("tool_calls", ()), *turn.get("tool_calls", ())]:
        before["tool_calls"] = calls


def _assistant_turn(content: Any, where: str) -> dict[str, Any]:
    if not isinstance(content, list):
        return {"role": "assistant", "content": joined_text(content, _TEXT, where)}
    texts, calls = [], []
    for at, block in enumerate(content):
        if not isinstance(block, Mapping) or block.get("type") != "tool_use":
            texts.append(_block_text(block, f"{where}[{at}]", ("text", "tool_use")))
            continue
        call_id, name, arguments = block.get("id"), block.get("name"), block.get("input", {})
        if not isinstance(call_id, str) or not isinstance(name, str) or not isinstance(arguments, Mapping):
            raise InvalidRequestError(f"{where}[{at}] is not a tool_use with an id, a name and an input")
        function = {"name": name, "arguments": arguments}
        calls.append({"id": call_id, "type": "function", "function": function})
    turn: dict[str, Any] = {"role": "assistant", "content": "".join(texts)}
    return turn | {"tool_calls": calls} if calls else turn


def _user_turns(content: Any, where: str, called: set[str]) -> list[dict[str, Any]]:
    """A user's message; the results of tools in it are turns of their own."""
    if not isinstance(content, list):
        return [{"role": "user", "content": joined_text(content, _TEXT, where)}]
    texts: list[str] = []
    turns: list[dict[str, Any]] = []
    for at, block in enumerate(content):
        place = f"{where}[{at}]"
        if not isinstance(block, Mapping) or block.get("type") != "tool_result":
            texts.append(_block_text(block, place, ("text", "tool_result")))
            continue
        call_id = block.get("tool_use_id")
        if not isinstance(call_id, str) or call_id not in called:
            raise InvalidRequestError(
                f"{place}.tool_use_id is {call_id!r}",
                hint="it must be the id of a tool_use in an earlier message",
            )
        result = block.get("content")
        told = "" if result is None else joined_text(result, _TEXT, f"{place}.content")
        if block.get("is_error") is True:  # no template has a place for it but the text
            told = f"Error: {told}"
        turns.append({"role": "tool", "tool_call_id": call_id, "content": told})
    if texts or not turns:
        turns.append({"role": "user", "content": "".join(texts)})
    return turns


def _block_text(block: Any, place: str, supported: tuple[str, ...]) -> str:
    kind = block.get("type") if isinstance(block, Mapping) else type(block).__name__
    if not isinstance(block, Mapping) or kind != "text":
        raise InvalidRequestError(
            f"{place} of type {kind!r} is not supported by this server",
            hint=f"only parts of type {' or '.join(supported)} are",
        )
    if not isinstance(block.get("text"), str):
        raise InvalidRequestError(f"{place} has no text")
    return str(block["text"])
