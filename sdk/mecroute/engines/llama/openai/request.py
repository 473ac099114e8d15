"""From the JSON body of an OpenAI request to what the engine runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

from mecroute.engines.llama.generation import GenerationRequest
from mecroute.engines.llama.grammar import Constraint
from mecroute.engines.llama.model import ChatPrompt
from mecroute.engines.llama.openai.fields import integer, known_fields, number
from mecroute.engines.llama.openai.format import parse_form
from mecroute.engines.llama.openai.lora import parse_lora
from mecroute.engines.llama.openai.messages import parse_messages
from mecroute.engines.llama.openai.tools import parse_tools
from mecroute.engines.llama.sampling import SamplingParams
from mecroute.errors import InvalidRequestError
from mecroute.prefix_keys import prefix_keys

_MAX_STOPS = 16
#: OpenAI's own limit.
MAX_TOP_LOGPROBS = 20
_MAX_BIASES = 1024
#: OpenAI's own limit; what an engine has room for may be less.
MAX_CHOICES = 128

#: Fields that decide how the answer travels or is accounted for, not what it says.
_NEUTRAL = frozenset(
    {
        *("model", "stream", "stream_options", "user", "metadata", "store", "service_tier"),
        *("safety_identifier", "prompt_cache_key", "prompt_cache_retention", "prediction"),
        # llama.cpp's and ours; the prefix cache is always on
        *("cache_prompt", "timings_per_token", "mecroute"),
    }
)
_SAMPLING = frozenset(
    {
        *("temperature", "top_p", "top_k", "min_p", "seed"),
        *("frequency_penalty", "presence_penalty", "repeat_penalty"),
    }
)
#: What a chat and a text completion have in common.
COMMON = _NEUTRAL | _SAMPLING | {"max_tokens", "stop", "n", "logit_bias", "logprobs", "grammar", "lora"}
_TOOLS = {"tools", "tool_choice", "parallel_tool_calls"}
_CHAT = COMMON | {"messages", "max_completion_tokens", "top_logprobs", "response_format"} | _TOOLS


class PromptTokenizer(Protocol):
    """What of an engine is needed to understand a request; `LlamaEngine` is one."""

    n_ctx: int

    @property
    def adapters(self) -> tuple[str, ...]:
        """See `LlamaEngine.adapters`."""
        ...

    def chat_prompt(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] = (),
        *,
        has_form: bool = False,
    ) -> ChatPrompt:
        """See `LlamaEngine.chat_prompt`."""
        ...

    def tokenize(self, text: str, *, add_special: bool = True) -> tuple[int, ...]:
        """See `LlamaEngine.tokenize`."""
        ...

    def tokenize_infill(self, before: str | Sequence[int], after: str) -> tuple[int, ...]:
        """See `LlamaEngine.tokenize_infill`."""
        ...

    def detokenize(self, tokens: Sequence[int]) -> str:
        """See `LlamaEngine.detokenize`."""
        ...


def parse_chat(body: Mapping[str, Any], engine: PromptTokenizer) -> GenerationRequest:
    """Read the body of a chat completion.

    Args:
        body: decoded JSON; fields that are null count as absent.
        engine: tokenizes the prompt.

    Raises:
        InvalidRequestError: names the field that is missing, wrong or not supported.
    """
    fields = known_fields(body, _CHAT)
    messages = fields.get("messages")
    if not isinstance(messages, list):
        raise InvalidRequestError("messages is missing or not a list", hint="send a list of messages")
    messages = parse_messages(messages)
    tools, form = parse_tools(fields), parse_form(fields)
    if tools.form is not None and form is not None:
        raise InvalidRequestError(
            f"tool_choice demands a call, and {form.field} another form", hint="send one of them"
        )
    form, constraint = tools.form or form, None
    prompt = engine.chat_prompt(messages, tools.offered, has_form=form is not None)
    if form is not None:
        said = prompt.said
        if said is None:
            said = engine.tokenize(messages[-1]["content"], add_special=False)
        constraint = Constraint(form.grammar, said, form.field, prompt.again)
    limit = integer(fields, "max_completion_tokens", 1, None)
    if limit is None:
        limit = integer(fields, "max_tokens", 1, None)
    request = make_request(
        fields, engine, prompt.tokens, limit or engine.n_ctx, _chat_logprobs(fields), constraint, tools.names
    )
    return replace(
        request,
        again=prompt.again_text,
        n_again=len(prompt.again),
        # The very messages that were sent: clients name conversations by them too.
        prefix_keys=tuple(prefix_keys(fields["messages"], tools=fields.get("tools"))),
    )


def wants_usage(body: Mapping[str, Any]) -> bool:
    """Whether a streamed answer is to end with a chunk that carries `usage`.

    Raises:
        InvalidRequestError: stream_options is not an object.
    """
    options = body.get("stream_options")
    if options is None:
        return False
    if not isinstance(options, Mapping):
        raise InvalidRequestError("stream_options is not an object")
    return options.get("include_usage") is True


def make_request(
    fields: Mapping[str, Any],
    engine: PromptTokenizer,
    prompt: tuple[int, ...],
    max_tokens: int,
    top_logprobs: int | None,
    constraint: Constraint | None,
    functions: tuple[str, ...] = (),
) -> GenerationRequest:
    """A request for one prompt; what chat and text completions say in the same words is read here."""
    return GenerationRequest(
        prompt=prompt,
        max_tokens=max_tokens,
        sampling=_sampling(fields),
        stop=_stop(fields.get("stop")),
        top_logprobs=top_logprobs,
        constraint=constraint,
        n=integer(fields, "n", 1, MAX_CHOICES) or 1,
        functions=functions,
        adapters=parse_lora(fields.get("lora"), engine.adapters),
    )


def _chat_logprobs(fields: Mapping[str, Any]) -> int | None:
    wanted = fields.get("logprobs", False)
    if not isinstance(wanted, bool):
        raise InvalidRequestError("logprobs is not true or false")
    top = integer(fields, "top_logprobs", 0, MAX_TOP_LOGPROBS)
    if top and not wanted:
        raise InvalidRequestError("top_logprobs is set and logprobs is not", hint="set logprobs to true")
    return (top or 0) if wanted else None


def _logit_bias(fields: Mapping[str, Any]) -> tuple[tuple[int, float], ...]:
    biases = fields.get("logit_bias")
    if not biases:
        return ()
    if not isinstance(biases, Mapping):
        raise InvalidRequestError("logit_bias is not an object", hint='{"token id": bias}')
    if len(biases) > _MAX_BIASES:
        raise InvalidRequestError(f"logit_bias has {len(biases)} tokens", hint=f"send at most {_MAX_BIASES}")
    found = []
    for token, bias in biases.items():
        if not (isinstance(token, str) and token.isascii() and token.isdigit() and len(token) < 10):
            raise InvalidRequestError(f"logit_bias: {token!r} is not a token id")
        if bias is None:
            raise InvalidRequestError(f"logit_bias: the bias of token {token} is not a number")
        found.append((int(token), number({"logit_bias": bias}, "logit_bias", -100, 100) or 0.0))
    return tuple(found)


def _sampling(fields: Mapping[str, Any]) -> SamplingParams:
    given: dict[str, Any] = {
        "temperature": number(fields, "temperature", 0, 2),
        "top_p": number(fields, "top_p", 0, 1),
        "top_k": integer(fields, "top_k", 0, 2**31 - 1),
        "min_p": number(fields, "min_p", 0, 1),
        "frequency_penalty": number(fields, "frequency_penalty", -2, 2),
        "presence_penalty": number(fields, "presence_penalty", -2, 2),
        "repeat_penalty": number(fields, "repeat_penalty", 0.01, 10),
    }
    seed = integer(fields, "seed", None, None)
    # OpenAI's seed is a signed 64-bit number, llama.cpp's an unsigned 32-bit one whose highest means random.
    given["seed"] = None if seed is None else seed % (2**32 - 1)
    given["logit_bias"] = _logit_bias(fields)
    return SamplingParams(**{name: value for name, value in given.items() if value is not None})


def _stop(value: Any) -> tuple[str, ...]:
    if value is None:
        return ()
    stops = [value] if isinstance(value, str) else value
    if not isinstance(stops, list) or not all(isinstance(stop, str) and stop for stop in stops):
        raise InvalidRequestError("stop is not a string or a list of strings, none of them empty")
    if len(stops) > _MAX_STOPS:
        raise InvalidRequestError(f"stop has {len(stops)} strings", hint=f"send at most {_MAX_STOPS}")
    return tuple(stops)
