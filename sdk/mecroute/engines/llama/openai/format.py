"""What an OpenAI request says about the form of the answer: `response_format` and `grammar`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from mecroute.engines.llama.json_schema import schema_to_gbnf
from mecroute.errors import InvalidRequestError


class AnswerForm(NamedTuple):
    """A grammar (GBNF) for the answer, and the field that asked for it."""

    grammar: str
    field: str


def parse_form(fields: Mapping[str, Any]) -> AnswerForm | None:
    """The form that an answer must have; None for free text.

    Args:
        fields: the request's, without those that are null.

    Raises:
        InvalidRequestError: names the field and what is wrong with it.
    """
    grammar = fields.get("grammar")
    form = _response_format(fields.get("response_format"))
    if grammar in (None, ""):
        return form
    if not isinstance(grammar, str):
        raise InvalidRequestError("grammar is not a text", hint="send GBNF with a rule named root")
    if form is not None:
        raise InvalidRequestError("grammar and response_format are both set", hint="send one of them")
    return AnswerForm(grammar, "grammar")


def _response_format(value: Any) -> AnswerForm | None:
    if value is None:
        return None
    kind = value.get("type") if isinstance(value, Mapping) else None
    if kind == "text":
        return None
    if kind == "json_object":
        gbnf = schema_to_gbnf({"type": "object"}, field="response_format", strict=True)
        return AnswerForm(gbnf, "response_format")
    if kind != "json_schema":
        raise InvalidRequestError(
            f"response_format.type is {kind!r}", hint="it must be 'text', 'json_object' or 'json_schema'"
        )
    given = value.get("json_schema")
    if not isinstance(given, Mapping) or given.get("schema") is None:
        raise InvalidRequestError(
            "response_format.json_schema.schema is missing",
            hint='{"type": "json_schema", "json_schema": {"name": …, "schema": {…}, "strict": true}}',
        )
    strict = given.get("strict")
    if strict is not None and not isinstance(strict, bool):
        raise InvalidRequestError("response_format.json_schema.strict is not true or false")
    field = "response_format.json_schema.schema"
    return AnswerForm(schema_to_gbnf(given["schema"], field=field, strict=bool(strict)), field)
