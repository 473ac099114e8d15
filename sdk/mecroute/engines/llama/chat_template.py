"""Chat templates: from messages to the prompt text a model was trained on."""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from mecroute.engines.llama.template_sandbox import environment, render
from mecroute.engines.llama.tool_prompt import describe_tools
from mecroute.errors import InvalidModelFileError, InvalidRequestError

#: What llama.cpp also falls back to when a file carries no template.
CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


class Prompt(NamedTuple):
    """A rendered conversation.

    Attributes:
        head: everything up to where the model is to write.
        prefix: what the assistant has already said of this answer; the model continues right after it.
    """

    head: str
    prefix: str


class ChatTemplate:
    """A model's Jinja chat template, in a sandbox: a model file is not trusted to run code.

    Args:
        source: the template's text; None takes ChatML.
        bos: text of the beginning-of-sequence token.
        eos: text of the end-of-sequence token.

    Raises:
        InvalidModelFileError: the template is not valid Jinja.

    Thread-safe.
    """

    def __init__(self, source: str | None, *, bos: str = "", eos: str = "") -> None:
        import jinja2

        self.source = source or CHATML
        self.bos = bos
        #: Whether the template itself tells the model of tools.
        self.knows_tools = re.search(r"\btools\b", self.source) is not None
        self._eos = eos
        try:
            self._template = environment().from_string(self.source)
        except jinja2.TemplateError as error:
            raise InvalidModelFileError(
                f"the model's chat template is not valid: {error}",
                hint="use a model file with a working tokenizer.chat_template, or /v1/completions",
            ) from error

    def render(
        self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] = ()
    ) -> Prompt:
        """Render a conversation, ready for the assistant's next words.

        Args:
            messages: `{"role", "content"}` each, content text or a list of text parts. When the last one
                is the assistant's, its text is the beginning of the answer, to be continued. Earlier ones may
                have `tool_calls`, whose arguments are objects, and results of these the role `tool`.
            tools: functions the model may call, in OpenAI's form. A template that has no place for them is
                given messages that say the same.

        Raises:
            InvalidRequestError: no message, a content that is not text, or roles the template refuses.
        """
        if not messages:
            raise InvalidRequestError("messages is empty", hint="send at least one message")
        plain = [{**message, "content": message_text(message)} for message in messages]
        if not self.knows_tools:
            try:
                plain, tools = describe_tools(plain, tools), ()
            except RecursionError as error:
                raise InvalidRequestError("tools or tool_calls are nested too deeply") from error
        if plain[-1].get("role") != "assistant":
            return Prompt(self._render(plain, tools, add_generation_prompt=True), "")
        # Templates trim and wrap an answer's text, and end the turn after it. A placeholder shows where the
        # text belongs; everything from there on is replaced by the text exactly as it was delivered.
        prefix, placeholder = plain[-1]["content"], f"[answer-{secrets.token_hex(8)}]"
        rendered = self._render(
            [*plain[:-1], {**plain[-1], "content": placeholder}], tools, add_generation_prompt=False
        )
        head, found, _ = rendered.rpartition(placeholder)
        if not found:
            raise InvalidRequestError(
                "this model's chat template drops the assistant's text, so it cannot be continued",
                hint="end the messages with one from the user",
            )
        return Prompt(head, prefix)

    def _render(
        self,
        messages: list[dict[str, Any]],
        tools: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool,
    ) -> str:
        import jinja2

        try:
            return render(
                self._template,
                messages=messages,
                tools=list(tools) or None,
                add_generation_prompt=add_generation_prompt,
                bos_token=self.bos,
                eos_token=self._eos,
            )
        # A template is arbitrary code over the caller's messages: wrong types and depths surface as these.
        except (
            jinja2.TemplateError, TypeError, ValueError, OverflowError, RecursionError, MemoryError,
        ) as error:  # fmt: skip
            raise InvalidRequestError(
                f"the model's chat template refuses these messages: {error}",
                hint="many templates want user and assistant to alternate, after at most one system message",
            ) from error


def message_text(message: Mapping[str, Any]) -> str:
    """The text of a chat message whose content is a string or a list of text parts.

    Raises:
        InvalidRequestError: there is no text, or a part is something else (an image, audio…).
    """
    content = message.get("content")
    if content is None and message.get("tool_calls"):
        return ""
    if isinstance(content, str):
        return content
    if isinstance(content, Sequence):
        texts = []
        for part in content:
            if not isinstance(part, Mapping) or part.get("type") != "text":
                kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
                raise InvalidRequestError(
                    f"a message's content has a part of type '{kind}'",
                    hint="only text parts are supported by this server",
                )
            text = part.get("text")
            if not isinstance(text, str):
                raise InvalidRequestError("a text part of a message's content has no text")
            texts.append(text)
        return "".join(texts)
    raise InvalidRequestError(
        f"the content of the message from '{message.get('role')}' is {type(content).__name__}",
        hint="content must be a string or a list of text parts",
    )
