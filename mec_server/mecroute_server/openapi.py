"""The OpenAPI description of a node, served as `/openapi.json`.

The routes read their bodies themselves, within bounds and with errors in each API's own shape, so FastAPI
cannot derive what they accept: it is written down here, by path.
"""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from mecroute_registry._version import __version__
from mecroute_registry.facts import DIGEST_PATTERN
from mecroute_server.auth import OPEN_PATHS
from mecroute_server.kserve.datatypes import DTYPES

_Schema = dict[str, Any]


def _object(required: str = "", /, **properties: _Schema) -> _Schema:
    return {"type": "object", "properties": properties, "required": required.split()}


def _number(low: float, high: float) -> _Schema:
    return {"type": "number", "minimum": low, "maximum": high}


def _whole(low: int, high: int | None = None) -> _Schema:
    return {"type": "integer", "minimum": low} | ({} if high is None else {"maximum": high})


def _list(items: _Schema, least: int = 0) -> _Schema:
    return {"type": "array", "items": items, "minItems": least}


def _one_of(*values: str) -> _Schema:
    return {"type": "string", "enum": list(values)}


_TEXT: _Schema = {"type": "string"}
_NAME: _Schema = {"type": "string", "minLength": 1}
_FLAG: _Schema = {"type": "boolean"}
_STOPS = {**_list(_NAME), "maxItems": 16}
_TOKEN: _Schema = {"type": "integer"}
_TOKENS: _Schema = _list(_whole(0), 1)
_TEXTS: _Schema = {"anyOf": [_NAME, _list(_NAME, 1)]}


def _content(*kinds: str) -> _Schema:
    return {"anyOf": [_TEXT, _list(_object("type text", type=_one_of(*kinds), text=_TEXT))]}


def _messages(roles: tuple[str, ...], *kinds: str, least: int = 1) -> _Schema:
    return _list(_object("role content", role=_one_of(*roles), content=_content(*kinds)), least)


_SCHEMA: _Schema = {"type": "object"}
_FUNCTION = {"name": _NAME, "description": _TEXT, "parameters": _SCHEMA}
_TOOLS = _list(_object("type function", type=_one_of("function"), function=_object("name", **_FUNCTION)))
_OPENAI_ROLES = ("system", "developer", "user", "assistant")
_SAMPLING: dict[str, _Schema] = {
    "temperature": _number(0, 2),
    "top_p": _number(0, 1),
    "top_k": _whole(0, 2**31 - 1),
    "min_p": _number(0, 1),
    "seed": {"type": "integer"},
    "frequency_penalty": _number(-2, 2),
    "presence_penalty": _number(-2, 2),
    "repeat_penalty": _number(0.01, 10),
}
_OPENAI: dict[str, _Schema] = {
    **_SAMPLING,
    "model": _NAME,
    "stream": _FLAG,
    "stream_options": _object(include_usage=_FLAG),
    "stop": {"anyOf": [_NAME, _STOPS]},
    "max_tokens": _whole(1),
    "lora": {**_list(_object(name=_NAME, id=_whole(0), scale=_number(-100, 100))), "maxItems": 8},
}
_OLLAMA: dict[str, _Schema] = {
    "model": _NAME,
    "stream": _FLAG,
    "keep_alive": {"type": ["string", "number"]},
    "options": _object(**_SAMPLING, stop=_STOPS, num_predict=_whole(-2), num_ctx=_whole(1)),
}
_ANTHROPIC: dict[str, _Schema] = {
    "model": _NAME,
    "messages": _messages(("user", "assistant"), "text"),
    "system": _content("text"),
    "tools": _list(_object("name input_schema", name=_NAME, description=_TEXT, input_schema=_SCHEMA)),
    "tool_choice": _object("type", type=_one_of("auto", "none")),
}

#: The protocol's tensors, as JSON has them.
_TENSORS = _list(
    _object(
        "name datatype shape data",
        name=_NAME,
        datatype=_one_of(*DTYPES),
        shape=_list(_whole(0, 2**40 - 1)),
        data=_list({"type": ["number", "string", "boolean", "array"]}),
        parameters=_SCHEMA,
    ),
    1,
)
_INFER = _object(
    "inputs",
    id=_TEXT,
    inputs=_TENSORS,
    outputs=_list(_object("name", name=_NAME, parameters=_object(binary_data=_FLAG))),
    parameters=_object(binary_data_output=_FLAG),
)

#: The JSON body of each path that takes one.
BODIES: dict[str, _Schema] = {
    "/v1/chat/completions": _object(
        "model messages",
        **_OPENAI,
        messages=_messages(_OPENAI_ROLES, "text"),
        max_completion_tokens=_whole(1),
        tools=_TOOLS,
        tool_choice=_one_of("none", "auto"),
        response_format=_object("type", type=_one_of("text", "json_object")),
    ),
    "/v1/completions": _object(
        "model prompt",
        **{**_OPENAI, "max_tokens": _whole(0)},
        prompt={"anyOf": [_TEXT, _list(_TOKEN, 1), _list({"anyOf": [_TEXT, _list(_TOKEN, 1)]}, 1)]},
        suffix=_TEXT,
        echo=_FLAG,
        logprobs=_whole(0, 20),
        n=_whole(1, 128),
        best_of=_whole(1, 128),
    ),
    "/v1/embeddings": _object(
        "model input",
        model=_NAME,
        input={"anyOf": [*_TEXTS["anyOf"], _TOKENS, _list(_TOKENS, 1)]},
        encoding_format=_one_of("float", "base64"),
        dimensions=_whole(1),
    ),
    "/v1/classify": _object(
        "model input", model=_NAME, input=_TEXTS, labels=_list(_NAME, 1), top_k=_whole(1)
    ),
    "/v1/rerank": _object(
        "model query documents",
        model=_NAME,
        query=_NAME,
        documents=_list({"anyOf": [_NAME, _object("text", text=_NAME)]}, 1),
        top_n=_whole(1),
        return_documents=_FLAG,
    ),
    "/v1/responses": _object(
        "model input",
        model=_NAME,
        input={"anyOf": [_TEXT, _messages(_OPENAI_ROLES, "input_text", "output_text")]},
        instructions=_TEXT,
        max_output_tokens=_whole(1),
        temperature=_SAMPLING["temperature"],
        top_p=_SAMPLING["top_p"],
        stream=_FLAG,
        store=_FLAG,
        tools=_list(_object("type name", type=_one_of("function"), **_FUNCTION)),
        tool_choice=_one_of("none", "auto"),
        text=_object(format=_object("type", type=_one_of("text", "json_object"))),
    ),
    "/v1/messages": _object(
        "model messages max_tokens",
        **_ANTHROPIC,
        max_tokens=_whole(1),
        stop_sequences=_STOPS,
        temperature=_number(0, 1),
        top_k=_SAMPLING["top_k"],
        top_p=_SAMPLING["top_p"],
        stream=_FLAG,
    ),
    "/v1/messages/count_tokens": _object("model messages", **_ANTHROPIC),
    "/api/chat": _object(
        "model",
        **_OLLAMA,
        messages=_messages(("system", "user", "assistant"), "text", least=0),
        tools=_TOOLS,
        format={"anyOf": [_one_of("json", ""), _SCHEMA]},
    ),
    "/api/generate": _object(
        "model",
        **_OLLAMA,
        prompt=_TEXT,
        suffix=_TEXT,
        system=_TEXT,
        raw=_FLAG,
        format={"anyOf": [_one_of("json", ""), _SCHEMA]},
    ),
    "/api/embed": _object("model input", model=_NAME, input=_TEXTS, truncate=_FLAG, dimensions=_whole(0)),
    "/api/show": _object("model", model=_NAME),
    "/v2/models/{name}/infer": _INFER,
    "/v2/models/{name}/versions/{version}/infer": _INFER,
    "/v2/repository/index": _object(ready=_FLAG),
    "/v2/repository/models/{name}/load": _object(parameters=_object()),
    "/v2/repository/models/{name}/unload": _object(parameters=_object(unload_dependents=_FLAG)),
    "/admin/models": _object("ref", ref=_NAME, digest={"type": "string", "pattern": DIGEST_PATTERN}),
}


def describe(app: FastAPI) -> dict[str, Any]:
    """The OpenAPI document of an app's routes: their bodies, their errors and who may ask."""
    document = get_openapi(title=app.title, version=__version__, routes=app.routes)
    document.get("components", {}).get("schemas", {}).clear()  # FastAPI's validation errors: never sent
    document.setdefault("components", {})["securitySchemes"] = {
        "bearer": {"type": "http", "scheme": "bearer"},
        "x-api-key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
    }
    error = {"description": "an error, in the shape of the path's API"}
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            operation["responses"].pop("422", None)
            operation["responses"]["default"] = {**error, "content": {"application/json": {}}}
            if path not in OPEN_PATHS:
                # None: a node without a key answers its own machine.
                operation["security"] = [{"bearer": []}, {"x-api-key": []}, {}]
            if method == "post" and path in BODIES:
                content = {"application/json": {"schema": BODIES[path]}}
                operation["requestBody"] = {"required": bool(BODIES[path]["required"]), "content": content}
    return document
