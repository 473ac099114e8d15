"""Answers that a grammar or a JSON schema constrains, and grammars that would hurt llama.cpp."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mecroute.engines.llama import GREEDY, GenerationRequest, LlamaEngine, SamplingParams
from mecroute.engines.llama.gbnf import check_gbnf
from mecroute.engines.llama.grammar import Constraint
from mecroute.engines.llama.json_schema import schema_to_gbnf
from mecroute.engines.llama.openai import chat_completion, parse_chat, parse_completion
from mecroute.errors import InvalidRequestError

MESSAGES = [{"role": "user", "content": "Hello"}]
PERSON = {
    "type": "object",
    "properties": {
        "mood": {"enum": ['so "so"', "good\n", "schön"]},
        "adult": {"type": ["boolean", "null"]},
        "tags": {"type": "array", "items": {"const": "x"}, "minItems": 1, "maxItems": 2},
    },
    "required": ["mood", "adult", "tags"],
    "additionalProperties": False,
}


def answer(engine: LlamaEngine, request: GenerationRequest) -> str:
    return "".join(event.text for event in engine.submit(request))


def constrained(engine: LlamaEngine, grammar: str, *, seed: int = 0, limit: int = 400) -> str:
    return answer(
        engine,
        GenerationRequest(
            engine.tokenize("x"),
            max_tokens=limit,
            sampling=SamplingParams(temperature=1.5, seed=seed),
            constraint=Constraint(grammar),
        ),
    )


@pytest.mark.parametrize("seed", range(4))
def test_an_answer_conforms_to_its_grammar(engine: Callable[..., LlamaEngine], seed: int) -> None:
    assert constrained(engine(), 'root ::= "yes" | "no" | "schön"', seed=seed) in ("yes", "no", "schön")


@pytest.mark.parametrize("seed", range(4))
def test_an_answer_conforms_to_its_schema(engine: Callable[..., LlamaEngine], seed: int) -> None:
    found = json.loads(constrained(engine(), schema_to_gbnf(PERSON, field="schema", strict=True), seed=seed))
    assert list(found) == ["mood", "adult", "tags"]
    assert found["mood"] in PERSON["properties"]["mood"]["enum"]  # type: ignore[index]
    assert found["adult"] in (True, False, None)
    assert found["tags"] in (["x"], ["x", "x"])


def test_a_chat_answer_has_the_format_that_was_asked_for(
    engine: Callable[..., LlamaEngine], talking_model: Path
) -> None:
    talking = engine(talking_model)
    schema = {"name": "person", "schema": PERSON, "strict": True}
    body = {
        "messages": MESSAGES,
        "seed": 1,
        "response_format": {"type": "json_schema", "json_schema": schema},
    }

    async def run() -> dict[str, Any]:
        return await chat_completion(talking.submit(parse_chat(body, talking)), "tiny", "x")

    choice = asyncio.run(run())["choices"][0]
    assert choice["finish_reason"] == "stop"
    assert set(json.loads(choice["message"]["content"])) == {"mood", "adult", "tags"}


def test_an_object_begins_where_one_was_asked_for(engine: Callable[..., LlamaEngine]) -> None:
    one = engine()
    body = {"messages": MESSAGES, "seed": 1, "max_tokens": 8, "response_format": {"type": "json_object"}}
    assert answer(one, parse_chat(body, one)).startswith("{")


def test_a_completion_follows_a_grammar(engine: Callable[..., LlamaEngine]) -> None:
    one = engine()
    body = {"prompt": "x", "max_tokens": 9, "grammar": 'root ::= "ok" [0-9]{2}'}
    (request,) = parse_completion(body, one)
    text = answer(one, request)
    assert text[:2] == "ok"
    assert text[2:].isdigit()


def test_an_answer_goes_on_within_its_grammar(engine: Callable[..., LlamaEngine]) -> None:
    one = engine()
    said = {"role": "assistant", "content": "[true, fa"}
    body = {"messages": [*MESSAGES, said], "grammar": 'root ::= "[true, false" "!"{3} "]"', "max_tokens": 20}
    assert answer(one, parse_chat(body, one)) == "lse!!!]"
    wrong = {"role": "assistant", "content": "[false"}
    with pytest.raises(InvalidRequestError, match="has said so far"):
        one.submit(parse_chat({**body, "messages": [*MESSAGES, wrong]}, one))


def test_a_grammar_changes_nothing_for_the_rest_of_the_batch(
    engine: Callable[..., LlamaEngine], decided: list[tuple[tuple[int, ...], str]]
) -> None:
    one = engine(n_parallel=8)
    others = [
        one.submit(
            GenerationRequest(
                one.tokenize("x"),
                max_tokens=60,
                sampling=SamplingParams(seed=seed),
                constraint=Constraint("root ::= [a-z]+"),
                top_logprobs=2,
            )
        )
        for seed in range(4)
    ]
    got = [answer(one, GenerationRequest(prompt, max_tokens=16, sampling=GREEDY)) for prompt, _ in decided]
    assert got == [text for _, text in decided]
    for other in others:
        text = "".join(event.text for event in other)
        assert text.isascii()
        assert text.isalpha()


HOSTILE = {
    "unknown rule": "root ::= x",
    "no root": 'a ::= "b"',
    "open text": 'root ::= "a',
    "open parenthesis": 'root ::= ("a"',
    "closed parenthesis": 'root ::= "a")',
    "open class": "root ::= [a-",
    "nothing": "",
    "zero byte": "\0",
    "prose": "Please answer in French.",
    "repeats nothing": 'root ::= * "a"',
    "left recursion": 'root ::= root "a" | "b"',
    "indirect left recursion": 'root ::= a\na ::= b\nb ::= "x"? a | "y"',
    "deep parentheses": "root ::= " + "(" * 40_000 + '"a"' + ")" * 40_000,
    "deep rules": "root ::= a0\n" + "\n".join(f"a{i} ::= a{i + 1}" for i in range(5000)) + '\na5000 ::= "x"',
    "doubling": "root ::= a0\n"
    + "\n".join(f"a{i} ::= a{i + 1} | a{i + 1}" for i in range(40))
    + '\na40 ::= "x"',
    "doubling later": 'root ::= "y" a0\n'
    + "\n".join(f"a{i} ::= a{i + 1} a{i + 1}" for i in range(40))
    + '\na40 ::= "x"?',
    "empty over and over": 'root ::= ("a"? "b"?)*',
    "huge repetition": 'root ::= "a"{100000000}',
    "token numbers": "root ::= [a-z] !<[1]> root !<[1]>",
    "too long": 'root ::= "a"\n' * 10_000,
}


@pytest.mark.parametrize("grammar", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_bad_grammar_is_refused_and_the_engine_lives_on(
    engine: Callable[..., LlamaEngine], grammar: str
) -> None:
    one = engine()
    with pytest.raises(InvalidRequestError, match="grammar"):
        constrained(one, grammar)
    assert constrained(one, 'root ::= "fine"') == "fine"


def test_llama_cpps_own_grammars_are_accepted() -> None:
    from llama_cpp import llama_grammar

    for name in ("ARITHMETIC_GBNF", "C_GBNF", "CHESS_GBNF", "JAPANESE_GBNF", "JSON_GBNF", "LIST_GBNF"):
        check_gbnf(getattr(llama_grammar, name), field=name)


@pytest.mark.parametrize(
    ("schema", "said"),
    [
        ("text", "must be an object"),
        (False, "must be an object"),
        ({"type": "alien"}, "'type' is 'alien'"),
        ({"type": "value"}, "'type' is 'value'"),
        ({"type": []}, "empty list"),
        ({"type": ["string", {}]}, "'type' is"),
        ({"enum": []}, "enum"),
        ({"enum": list(range(10_001))}, "'enum' has over 10,000 values"),
        ({"properties": {f"p{i}": {} for i in range(101)}}, "101 properties are optional"),
        ({"anyOf": {}}, "anyOf"),
        ({"type": "integer", "minimum": 3}, "'minimum' cannot be enforced"),
        ({"type": "string", "pattern": "^a$"}, "'pattern' cannot be enforced"),
        ({"properties": {"a": {"properties": []}}}, r"schema\.properties\.a: 'properties' must be"),
        ({"properties": {}, "required": ["a"]}, "'required' names 'a'"),
        ({"properties": {}, "required": 5}, "'required'"),
        ({"type": "array", "minItems": 10**9}, "minItems"),
        ({"type": "array", "minItems": 3, "maxItems": 1}, "'minItems' is above 'maxItems'"),
        ({"type": "string", "maxLength": True}, "maxLength"),
        ({"type": "string", "maxLength": -1}, "maxLength"),
        ({"type": "string", "maxLength": 2000}, "'maxLength' above 500 cannot be enforced"),
        ({"$ref": "https://example.com/schema"}, r"\$ref"),
        ({"$ref": "#/$defs/none"}, "not there"),
        ({"$ref": 5}, r"\$ref"),
        ({"allOf": [{}, {}]}, "allOf"),
    ],
)
def test_a_bad_schema_is_refused_by_name(schema: object, said: str) -> None:
    with pytest.raises(InvalidRequestError, match=said) as caught:
        schema_to_gbnf(schema, field="schema", strict=True)
    assert caught.value.message.startswith("schema")


def test_a_schema_that_is_too_deep_is_refused() -> None:
    schema: dict[str, Any] = {}
    for _ in range(3000):
        schema = {"type": "array", "items": schema}
    with pytest.raises(InvalidRequestError, match="levels"):
        schema_to_gbnf(schema, field="schema", strict=False)


def test_a_schema_that_only_means_itself_is_refused(engine: Callable[..., LlamaEngine]) -> None:
    one = engine()
    body = {
        "messages": MESSAGES,
        "response_format": {"type": "json_schema", "json_schema": {"schema": {"$ref": "#"}}},
    }
    with pytest.raises(InvalidRequestError, match=r"response_format\.json_schema\.schema"):
        one.submit(parse_chat(body, one))


def test_what_cannot_be_enforced_is_left_to_the_model_unless_strict() -> None:
    loose = schema_to_gbnf({"type": "integer", "minimum": 3}, field="schema", strict=False)
    assert loose == schema_to_gbnf({"type": "integer"}, field="schema", strict=True)
    long = schema_to_gbnf({"type": "string", "maxLength": 2000}, field="schema", strict=False)
    assert long == schema_to_gbnf({"type": "string"}, field="schema", strict=True)


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object", "properties": {"next": {"$ref": "#"}, "value": {"type": "string"}}},
        {
            "$defs": {"string": {"enum": [1]}},
            "properties": {"a": {"$ref": "#/$defs/string"}, "b": {"type": "string"}},
        },
        {"type": "array", "items": {}},
        {"additionalProperties": {"type": "number"}},
        {"type": "string", "minLength": 1, "maxLength": 3},
        {"type": "string", "format": "date-time"},
        {"type": "string", "format": "uuid"},
        {"anyOf": [{"type": "null"}, {"allOf": [{"$ref": "#/$defs/a"}]}], "$defs": {"a": {"const": 'q"\\'}}},
        {"properties": {f"p{i}": {"type": "string"} for i in range(100)}},
        {
            "properties": {f"p{i}": {"type": "null"} for i in range(200)},
            "required": [f"p{i}" for i in range(100)],
        },
        True,
    ],
)
def test_schemas_make_grammars_that_llama_cpp_accepts(
    engine: Callable[..., LlamaEngine], schema: object
) -> None:
    one = engine()
    assert constrained(one, schema_to_gbnf(schema, field="schema", strict=True), limit=2)
