"""Tells a model whose chat template knows nothing of tools about them, in plain messages."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

#: Around each call in an answer; the Hermes format, which most small models were trained with.
CALL_BEGIN, CALL_END = "<tool_call>", "</tool_call>"

_INSTRUCTION = """\
You may call functions to help with the user's request. They are, one JSON object per line:
{tools}
To call one, answer with nothing but its name and its arguments, like this:
<tool_call>
{{"name": "function name", "arguments": {{"argument name": "value"}}}}
</tool_call>
You are then given the result between <tool_response> and </tool_response>."""


def describe_tools(
    messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Messages that say the same with roles that every template knows.

    Args:
        messages: in OpenAI's form, each content a text, arguments of calls as objects.
        tools: in OpenAI's form; none of them if only the history has calls.
    """
    plain: list[dict[str, Any]] = []
    for message in messages:
        if message["role"] == "tool":
            text = f"<tool_response>\n{message['content']}\n</tool_response>"
            # Several results are one turn: many templates want user and assistant to alternate.
            if plain and plain[-1].get("results"):
                plain[-1]["content"] += f"\n{text}"
            else:
                plain.append({"role": "user", "content": text, "results": True})
        elif message.get("tool_calls"):
            calls = [_call_text(call["function"]) for call in message["tool_calls"]]
            parts = [message["content"], *calls] if message["content"] else calls
            plain.append({"role": "assistant", "content": "\n".join(parts)})
        else:
            plain.append(dict(message))
    if tools:
        lines = "\n".join(json.dumps(tool["function"], ensure_ascii=False) for tool in tools)
        instruction = _INSTRUCTION.format(tools=lines)
        if plain and plain[0]["role"] == "system":
            plain[0]["content"] = f"{plain[0]['content']}\n\n{instruction}"
        else:
            plain.insert(0, {"role": "system", "content": instruction})
    for message in plain:
        message.pop("results", None)
    return plain


def _call_text(function: Mapping[str, Any]) -> str:
    call = {"name": function["name"], "arguments": function["arguments"]}
    return f"{CALL_BEGIN}\n{json.dumps(call, ensure_ascii=False)}\n{CALL_END}"
