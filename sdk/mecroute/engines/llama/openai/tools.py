"""The tools of an OpenAI request: what they are, and which of them must be called."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mecroute.engines.llama.json_schema import schema_to_gbnf
from mecroute.engines.llama.openai.format import AnswerForm
from mecroute.errors import InvalidRequestError

_MAX_TOOLS = 128
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")


@dataclass(frozen=True, slots=True)
class Tools:
    """Functions that a model may call.

    Attributes:
        offered: what the model is told of, in OpenAI's form.
        names: whose calls are looked for in the answer.
        form: that of the one call which the answer must be; None leaves it to the model.
    """

    offered: tuple[Mapping[str, Any], ...] = ()
    names: tuple[str, ...] = ()
    form: AnswerForm | None = None


def parse_tools(fields: Mapping[str, Any]) -> Tools:
    """Read `tools` and `tool_choice`.

    Args:
        fields: the request's, without those that are null.

    Raises:
        InvalidRequestError: names the field and what is wrong with it.
    """
    given = fields.get("tools", [])
    if not isinstance(given, list):
        raise InvalidRequestError("tools is not a list")
    if len(given) > _MAX_TOOLS:
        raise InvalidRequestError(f"tools has {len(given)} entries", hint=f"send at most {_MAX_TOOLS}")
    functions = [_function(at, tool) for at, tool in enumerate(given)]
    names = tuple(str(function["name"]) for function in functions)
    if len(set(names)) < len(names):
        raise InvalidRequestError("tools has two functions of the same name")
    forced = _forced(fields.get("tool_choice", "auto"), names)
    if forced is None or not functions:
        return Tools()
    offered = tuple({"type": "function", "function": function} for function in functions)
    if not forced:
        return Tools(offered, names)
    try:
        form = AnswerForm(_grammar([f for f in functions if f["name"] in forced]), "tools")
    except RecursionError as error:
        raise InvalidRequestError("tools is nested too deeply") from error
    return Tools(offered, forced, form)


def _forced(choice: Any, names: Sequence[str]) -> tuple[str, ...] | None:
    """The functions of which one must be called; empty: as the model likes; None: no tools at all."""
    if choice == "none":
        return None
    if choice == "auto":
        return ()
    if choice == "required":
        if not names:
            raise InvalidRequestError("tool_choice is 'required' and there are no tools")
        return tuple(names)
    function = choice.get("function") if isinstance(choice, Mapping) else None
    name = function.get("name") if isinstance(function, Mapping) else None
    if name is None:
        raise InvalidRequestError(
            f"tool_choice is {choice!r}",
            hint="it must be 'none', 'auto', 'required' or {'type': 'function', 'function': {'name': …}}",
        )
    if name not in names:
        raise InvalidRequestError(f"tool_choice names {name!r}, which tools does not have")
    return (name,)


def _function(at: int, tool: Any) -> dict[str, Any]:
    function = tool.get("function") if isinstance(tool, Mapping) and tool.get("type") == "function" else None
    if not isinstance(function, Mapping):
        raise InvalidRequestError(
            f"tools[{at}] is not a function", hint='{"type": "function", "function": {"name": …}}'
        )
    name, description = function.get("name"), function.get("description")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise InvalidRequestError(
            f"tools[{at}].function.name is {name!r}", hint="1 to 64 letters, digits, '_', '.' or '-'"
        )
    if description is not None and not isinstance(description, str):
        raise InvalidRequestError(f"tools[{at}].function.description is not a text")
    parameters = function.get("parameters")
    if parameters is None:
        parameters = {"type": "object", "properties": {}, "additionalProperties": False}
    field = f"tools[{at}].function.parameters"
    if not isinstance(parameters, Mapping):
        raise InvalidRequestError(f"{field} is not an object")
    if parameters.get("type", "object") != "object":
        raise InvalidRequestError(f"{field}.type is not 'object'")
    schema_to_gbnf(parameters, field=field, strict=function.get("strict") is True)
    described = {"description": description} if description else {}
    return {"name": name, **described, "parameters": parameters}


def _grammar(functions: Sequence[Mapping[str, Any]]) -> str:
    calls = []
    for at, function in enumerate(functions):
        properties = {
            "name": {"const": function["name"]},
            "arguments": _moved(
                {"type": "object", **function["parameters"]}, f"#/anyOf/{at}/properties/arguments"
            ),
        }
        calls.append({"type": "object", "properties": properties, "required": ["name", "arguments"]})
    return schema_to_gbnf({"anyOf": calls}, field="tools", strict=False)


def _moved(schema: Any, place: str) -> Any:
    """A schema whose references into itself hold when it stands at another place."""
    if isinstance(schema, list):
        return [_moved(item, place) for item in schema]
    if not isinstance(schema, Mapping):
        return schema
    return {
        name: place + value[1:] if name == "$ref" and isinstance(value, str) else _moved(value, place)
        for name, value in schema.items()
    }
