"""The messages of an OpenAI chat request, checked and in the form that chat templates read."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from mecroute.engines.llama.chat_template import message_text
from mecroute.errors import InvalidRequestError

_ROLES = ("system", "developer", "user", "assistant", "tool")


def parse_messages(messages: Sequence[Any]) -> list[dict[str, Any]]:
    """Check messages.

    Args:
        messages: decoded JSON.

    Returns:
        Messages with a text as content; arguments of tool calls are objects, as templates expect them.

    Raises:
        InvalidRequestError: names the message and what is wrong with it.
    """
    called: dict[str, str] = {}
    found = [_message(f"messages[{at}]", message, called) for at, message in enumerate(messages)]
    if found and found[-1].get("tool_calls"):
        raise InvalidRequestError(
            f"messages[{len(found) - 1}]: tool calls must be followed by their results",
            hint="add a message of the role 'tool' for each call",
        )
    return found


def _message(where: str, message: Any, called: dict[str, str]) -> dict[str, Any]:
    if not isinstance(message, Mapping):
        raise InvalidRequestError(f"{where} is not an object")
    role = message.get("role")
    if role not in _ROLES:
        raise InvalidRequestError(f"{where}.role is {role!r}", hint=f"it must be one of {', '.join(_ROLES)}")
    calls = message.get("tool_calls")
    if calls and role != "assistant":
        raise InvalidRequestError(f"{where}: only the assistant can have tool_calls")
    try:
        content = message_text(message)
    except InvalidRequestError as error:
        raise InvalidRequestError(f"{where}: {error.message}", hint=error.hint) from error
    # OpenAI renamed the role; models were trained with the old name.
    plain: dict[str, Any] = {"role": "system" if role == "developer" else role, "content": content}
    if calls:
        if not isinstance(calls, list):
            raise InvalidRequestError(f"{where}.tool_calls is not a list")
        plain["tool_calls"] = [_call(f"{where}.tool_calls[{at}]", call) for at, call in enumerate(calls)]
        called.update({call["id"]: call["function"]["name"] for call in plain["tool_calls"]})
    if role == "tool":
        call_id = message.get("tool_call_id")
        if not isinstance(call_id, str) or call_id not in called:
            raise InvalidRequestError(
                f"{where}.tool_call_id is {call_id!r}",
                hint="it must be the id of a call in an earlier message",
            )
        plain |= {"tool_call_id": call_id, "name": called[call_id]}
    return plain


def _call(where: str, call: Any) -> dict[str, Any]:
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping):
        raise InvalidRequestError(f"{where} is not a call of a function")
    name, given = function.get("name"), function.get("arguments", "{}")
    if not isinstance(call.get("id"), str) or not isinstance(name, str):
        raise InvalidRequestError(f"{where} has no id, or its function no name")
    try:
        arguments = json.loads(given or "{}") if isinstance(given, str) else given
    except (ValueError, RecursionError) as error:
        raise InvalidRequestError(f"{where}.function.arguments is not JSON: {error}") from error
    if not isinstance(arguments, Mapping):
        raise InvalidRequestError(f"{where}.function.arguments is not a JSON object")
    return {"id": call["id"], "type": "function", "function": {"name": name, "arguments": arguments}}
