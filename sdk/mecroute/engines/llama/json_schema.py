"""From a JSON schema to the GBNF grammar of the JSON that fulfils it.

llama-cpp-python's converter does the work; around it is what it leaves to its caller. It passes over
keywords that it does not know, reads `type` lists without their siblings, lets raw line breaks into strings,
and fails with AssertionError, KeyError or AttributeError where a schema is not one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from mecroute.errors import InvalidRequestError, MissingExtraError

MAX_DEPTH = 32
MAX_SCHEMAS = 2_000
MAX_VALUES = 10_000
#: Each of them may be followed by any later one: more make a grammar too deep to be followed.
MAX_OPTIONAL = 100
#: Larger bounds on length make grammars that no sampler can follow.
MAX_COUNT = 500

_LAX = "leave it out, or set strict to false and check the answer yourself"
#: The converter's name for any JSON value.
_ANYTHING = "value"
_TYPES = ("object", "array", "string", "number", "integer", "boolean", "null")
#: Say something about a schema and nothing about the values it admits.
_ANNOTATIONS = frozenset(
    {
        *("title", "description", "default", "examples", "deprecated", "readOnly", "writeOnly", "format"),
        *("$schema", "$id", "$comment", "$defs", "definitions", "discriminator", "nullable", "strict"),
    }
)
_OBJECT = frozenset({"properties", "required", "additionalProperties"})
_ARRAY = frozenset({"items", "prefixItems", "minItems", "maxItems"})
_KEPT = (
    _OBJECT | _ARRAY | {"type", "enum", "const", "anyOf", "oneOf", "allOf", "$ref", "minLength", "maxLength"}
)


def schema_to_gbnf(schema: object, *, field: str, strict: bool) -> str:
    """The grammar of a schema.

    Args:
        schema: decoded JSON.
        field: of the request, named in errors.
        strict: refuse keywords that a grammar cannot see to (`minimum`, `pattern`…) instead of leaving them
            to the model.

    Raises:
        InvalidRequestError: it is no schema, or none that can be enforced.
    """
    prepared = _Preparation(schema, field, strict).run()
    converter = _converter()
    try:
        converter.resolve_refs(prepared, "")
        converter.visit(prepared, "")
    # What it fails with where a schema asks for something that it has no rule for.
    except (AssertionError, AttributeError, KeyError, IndexError, TypeError, ValueError) as error:
        raise InvalidRequestError(f"{field}: this schema cannot be turned into a grammar: {error}") from error
    except RecursionError as error:
        raise InvalidRequestError(f"{field}: the schema is nested too deeply") from error
    return str(converter.format_grammar())


def _converter() -> Any:
    try:
        from llama_cpp import llama_grammar
    except (ImportError, OSError, RuntimeError) as error:
        raise MissingExtraError("device", "following a JSON schema") from error
    module: Any = llama_grammar

    class Converter(module.SchemaConverter):  # type: ignore[misc]
        def _format_literal(self, literal: str) -> str:
            # Its own leaves backslashes as they are, so that an enum of 'a"b' ends the literal early.
            escapes = {"\\": "\\\\", '"': '\\"', "\n": "\\n", "\r": "\\r"}
            return '"' + "".join(escapes.get(char, char) for char in literal) + '"'

        def _generate_constant_rule(self, value: object) -> str:
            return self._format_literal(json.dumps(value, ensure_ascii=False)) + " space"

        def visit(self, schema: Mapping[str, Any], name: str) -> str:
            # Its own spells out each possible length: hundreds of parentheses within each other.
            if schema.get("type") == "string" and ("minLength" in schema or "maxLength" in schema):
                char = self._add_primitive("char", module.PRIMITIVE_RULES["char"])
                bounds = f"{{{schema.get('minLength', 0)},{schema.get('maxLength', '')}}}"
                rule = rf'"\"" {char}{bounds} "\"" space'
            elif schema.get("type") == "array" and "items" in schema:
                item = self.visit(schema["items"], f"{name}{'-' if name else ''}item")
                rule = f'"[" space {_items(item, schema)} "]" space'
            else:
                return str(super().visit(schema, name))
            return str(self._add_rule(f"{name}-" if name in module.RESERVED_NAMES else name or "root", rule))

        def format_grammar(self) -> str:
            if "char" in self._rules:
                # Its own admits raw control characters, which JSON does not.
                self._rules["char"] = r'[^"\\\x7F\x00-\x1F] | "\\" (["\\/bfnrt] | "u" [0-9a-fA-F]{4})'
            return str(super().format_grammar())

    return Converter(prop_order={}, allow_fetch=False, dotall=False, raw_pattern=False)


def _items(item: str, schema: Mapping[str, Any]) -> str:
    least, most = schema.get("minItems", 0), schema.get("maxItems")
    if most == 0:
        return ""
    further = f"{{{max(0, least - 1)},{'' if most is None else most - 1}}}"
    items = f'{item} ("," space {item}){further}'
    return items if least else f"({items})?"


class _Preparation:
    """Brings a schema into the form that the converter reads right."""

    def __init__(self, schema: object, field: str, strict: bool) -> None:
        self._root = schema
        self._field = field
        self._strict = strict
        self._count = 0
        #: Names of referenced schemas by their pointer, and what they hold.
        self._names: dict[str, str] = {}
        self._definitions: dict[str, Any] = {}

    def run(self) -> dict[str, Any]:
        try:
            prepared = self._schema(self._root, "", 0)
        except RecursionError as error:
            raise InvalidRequestError(f"{self._field}: the schema is nested too deeply") from error
        return {**prepared, "definitions": self._definitions}

    def _refuse(self, path: str, problem: str, hint: str | None = None) -> InvalidRequestError:
        return InvalidRequestError(f"{self._field}{path}: {problem}", hint=hint)

    def _schema(self, schema: object, path: str, depth: int) -> dict[str, Any]:
        if schema is True:
            schema = {}
        if not isinstance(schema, Mapping):
            raise self._refuse(path, "a schema must be an object")
        self._count += 1
        if depth > MAX_DEPTH or self._count > MAX_SCHEMAS:
            raise self._refuse(path, f"over {MAX_DEPTH} levels or {MAX_SCHEMAS:,} schemas")
        unknown = sorted(schema.keys() - _KEPT - _ANNOTATIONS)
        if unknown and self._strict:
            raise self._refuse(
                path,
                f"'{unknown[0]}' cannot be enforced",
                _LAX,
            )
        kept = {name: value for name, value in schema.items() if name in _KEPT}
        if "format" in schema and kept.get("type") == "string":
            kept["format"] = str(schema["format"])
        return self._kept(kept, path, depth)

    def _kept(self, schema: dict[str, Any], path: str, depth: int) -> dict[str, Any]:
        if "$ref" in schema:
            return {"$ref": f"#/definitions/{self._definition(schema['$ref'], path)}"}
        all_of = schema.get("allOf")
        if isinstance(all_of, list) and len(all_of) == 1 and isinstance(all_of[0], Mapping):
            rest = {name: value for name, value in schema.items() if name != "allOf"}
            return self._schema({**all_of[0], **rest}, path, depth + 1)
        if all_of is not None:
            raise self._refuse(path, "'allOf' with several schemas is not supported", "merge them into one")
        for choice in ("anyOf", "oneOf"):
            if choice in schema:
                return self._choice(schema, choice, path, depth)
        if "const" in schema:
            return {"const": schema["const"]}
        if "enum" in schema:
            if not isinstance(schema["enum"], list) or not schema["enum"]:
                raise self._refuse(path, "'enum' must be a list that is not empty")
            if len(schema["enum"]) > MAX_VALUES:
                raise self._refuse(path, f"'enum' has over {MAX_VALUES:,} values", "use 'type' instead")
            return {"enum": schema["enum"]}
        kind = schema.get("type")
        if kind is None:
            implied = (("object", _OBJECT), ("array", _ARRAY), ("string", {"minLength", "maxLength"}))
            kind = next((name for name, keywords in implied if schema.keys() & keywords), None)
            if kind is None:
                return {"type": _ANYTHING}
        if isinstance(kind, list):
            if not kind:
                raise self._refuse(path, "'type' is an empty list")
            return {"anyOf": [self._typed({**schema, "type": one}, path, depth) for one in kind]}
        return self._typed({**schema, "type": kind}, path, depth)

    def _choice(self, schema: dict[str, Any], choice: str, path: str, depth: int) -> dict[str, Any]:
        options = schema[choice]
        if not isinstance(options, list) or not options:
            raise self._refuse(path, f"'{choice}' must be a list that is not empty")
        beside = schema.keys() - {choice, "type"}
        if beside and self._strict:
            raise self._refuse(path, f"'{min(beside)}' beside '{choice}' cannot be enforced")
        return {
            "anyOf": [
                self._schema(option, f"{path}.{choice}[{at}]", depth + 1) for at, option in enumerate(options)
            ]
        }

    def _typed(self, schema: dict[str, Any], path: str, depth: int) -> dict[str, Any]:
        kind = schema["type"]
        if kind not in _TYPES:
            raise self._refuse(path, f"'type' is {kind!r}", f"it must be one of {', '.join(_TYPES)}")
        if kind == "object":
            return self._object(schema, path, depth)
        found: dict[str, Any] = {"type": kind}
        names = {"array": ("minItems", "maxItems"), "string": ("minLength", "maxLength")}.get(kind, ())
        for name in names:
            count = schema.get(name)
            if count is None:
                continue
            if isinstance(count, bool) or not isinstance(count, int) or count < 0:
                raise self._refuse(path, f"'{name}' must be a whole number of at least 0")
            if count <= MAX_COUNT:
                found[name] = count
            elif self._strict:
                raise self._refuse(path, f"'{name}' above {MAX_COUNT} cannot be enforced", _LAX)
        if names and found.get(names[0], 0) > found.get(names[1], MAX_COUNT):
            raise self._refuse(path, f"'{names[0]}' is above '{names[1]}'")
        if kind == "string" and "format" in schema:
            found["format"] = schema["format"]
        if kind == "array":
            if isinstance(schema.get("prefixItems"), list):
                raise self._refuse(path, "'prefixItems' is not supported", "use 'items'")
            if "items" in schema or len(found) > 1:
                found["items"] = self._schema(schema.get("items", True), f"{path}.items", depth + 1)
        return found

    def _object(self, schema: dict[str, Any], path: str, depth: int) -> dict[str, Any]:
        properties, required = schema.get("properties", {}), schema.get("required", [])
        if not isinstance(properties, Mapping):
            raise self._refuse(path, "'properties' must be an object")
        if not isinstance(required, list) or not all(isinstance(name, str) for name in required):
            raise self._refuse(path, "'required' must be a list of names")
        more = schema.get("additionalProperties", True)
        if not properties and not required and more is True:
            return {"type": "object"}
        missing = [name for name in required if name not in properties]
        if missing:
            raise self._refuse(path, f"'required' names '{missing[0]}', which 'properties' does not have")
        optional = len(properties.keys() - set(required))
        if optional > MAX_OPTIONAL:
            raise self._refuse(
                path,
                f"{optional} properties are optional",
                f"at most {MAX_OPTIONAL} can be: require the others",
            )
        found: dict[str, Any] = {
            "type": "object",
            "properties": {
                str(name): self._schema(value, f"{path}.properties.{name}", depth + 1)
                for name, value in properties.items()
            },
            "required": required,
            "additionalProperties": False,
        }
        # With properties of its own, more of them are allowed by default; leaving them out is allowed too.
        if not properties and more is not False:
            found["additionalProperties"] = self._schema(more, f"{path}.additionalProperties", depth + 1)
        return found

    def _definition(self, pointer: object, path: str) -> str:
        if not isinstance(pointer, str) or not (pointer == "#" or pointer.startswith("#/")):
            raise self._refuse(path, f"'$ref' is {pointer!r}", "it must point into this schema (#/$defs/…)")
        if pointer in self._names:
            return self._names[pointer]
        target: Any = self._root
        for step in pointer.split("/")[1:]:
            step = step.replace("~1", "/").replace("~0", "~")
            if isinstance(target, list) and step.isascii() and step.isdigit() and int(step) < len(target):
                target = target[int(step)]
            elif isinstance(target, Mapping) and step in target:
                target = target[step]
            else:
                raise self._refuse(path, f"'$ref' points to {pointer}, which is not there")
        name = self._names[pointer] = f"mecroute-definition-{len(self._names)}"
        self._definitions[name] = self._schema(target, f" at {pointer}", 0)
        return name
