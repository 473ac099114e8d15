"""From the JSON body of an OpenAI text completion to what the engine runs, one request for each prompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from mecroute.engines.llama.generation import GenerationRequest, Shown
from mecroute.engines.llama.grammar import Constraint
from mecroute.engines.llama.openai.fields import flag, integer, known_fields, unsupported
from mecroute.engines.llama.openai.format import parse_form
from mecroute.engines.llama.openai.request import (
    COMMON,
    MAX_CHOICES,
    MAX_TOP_LOGPROBS,
    PromptTokenizer,
    make_request,
)
from mecroute.errors import InvalidRequestError

_COMPLETION = COMMON | {"prompt", "suffix", "echo", "best_of"}
#: What OpenAI's completions endpoint generates when nothing is said.
_MAX_TOKENS = 16
#: Tokens and candidates of prompts that one request may have the log-probabilities of: some 30 MB.
MAX_SCORED = 100_000


def parse_completion(body: Mapping[str, Any], engine: PromptTokenizer) -> tuple[GenerationRequest, ...]:
    """Read the body of a text completion; a prompt is a text or a list of token ids.

    Args:
        body: decoded JSON; fields that are null count as absent.
        engine: tokenizes the prompts.

    Returns:
        One request for each prompt, at least one.

    Raises:
        InvalidRequestError: names the field that is missing, wrong or not supported.
    """
    fields = known_fields(body, _COMPLETION)
    prompts = _prompts(fields.get("prompt"))
    n = integer(fields, "n", 1, MAX_CHOICES) or 1
    best_of = integer(fields, "best_of", n, MAX_CHOICES)
    chosen_among = best_of if best_of is not None and best_of > n else None
    if chosen_among is not None and fields.get("stream"):
        raise InvalidRequestError(
            f"best_of is {best_of}, and which answers are the best is only known at their end",
            hint="leave out stream, or best_of",
        )
    echo, suffix = flag(fields, "echo"), fields.get("suffix", "")
    if not isinstance(suffix, str):
        raise InvalidRequestError("suffix is not a text")
    top_logprobs = _logprobs(fields)
    if echo and suffix:
        raise unsupported("echo together with suffix")
    limit = integer(fields, "max_tokens", 0 if echo else 1, None)
    form = parse_form(fields)
    common = make_request(
        fields,
        engine,
        (),
        _MAX_TOKENS if limit is None else max(1, limit),  # the engine makes one at least
        0 if chosen_among is not None and top_logprobs is None else top_logprobs,
        Constraint(form.grammar, field=form.field) if form is not None else None,
    )
    keep = n if chosen_among is not None else None
    scores_prompt = echo and top_logprobs is not None
    asked = tuple(
        replace(
            common,
            prompt=_tokens(prompt, suffix, engine),
            n=chosen_among or n,
            scores_prompt=scores_prompt,
            shown=Shown(
                _text(prompt, engine) if echo else "", keep, top_logprobs is not None, answer=limit != 0
            ),
        )
        for prompt in prompts
    )
    if scores_prompt:
        _check_scored(asked, 1 + (top_logprobs or 0))
    return asked


def _prompts(given: Any) -> Sequence[str | list[int]]:
    if isinstance(given, str) or _is_tokens(given):
        return [given]
    if not isinstance(given, list) or not given:
        raise InvalidRequestError(
            "prompt is missing or not a text", hint="send a text, a list of token ids, or a list of these"
        )
    for at, prompt in enumerate(given):
        if not isinstance(prompt, str) and not _is_tokens(prompt):
            raise InvalidRequestError(f"prompt[{at}] is neither a text nor a list of token ids")
    return given


def _check_scored(asked: Sequence[GenerationRequest], each: int) -> None:
    """Bound what is kept of scored prompts, of whose tokens there are `each` with a probability."""
    kept = sum(request.prompt_tokens * request.n for request in asked) * each
    if kept > MAX_SCORED:
        raise InvalidRequestError(
            f"echo and logprobs ask for the log-probabilities of {kept} tokens; the limit is {MAX_SCORED}",
            hint="send fewer or shorter prompts at a time, or a lower logprobs",
        )


def _is_tokens(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(type(token) is int for token in value)


def _tokens(prompt: str | list[int], suffix: str, engine: PromptTokenizer) -> tuple[int, ...]:
    if suffix:
        return engine.tokenize_infill(prompt, suffix)
    return engine.tokenize(prompt) if isinstance(prompt, str) else tuple(prompt)


def _text(prompt: str | list[int], engine: PromptTokenizer) -> str:
    return prompt if isinstance(prompt, str) else engine.detokenize(prompt)


def _logprobs(fields: Mapping[str, Any]) -> int | None:
    if fields.get("logprobs") is False:  # as chat completions say it
        return None
    return integer(fields, "logprobs", 0, MAX_TOP_LOGPROBS)
