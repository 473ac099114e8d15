from __future__ import annotations

import pytest

from mecroute.engines.llama import ChatTemplate
from mecroute.errors import InvalidModelFileError, InvalidRequestError
from support.tiny_gguf import CHAT_TEMPLATE

HELLO = {"role": "user", "content": "Hello"}


def test_a_question_ends_with_the_generation_prompt() -> None:
    prompt = ChatTemplate(CHAT_TEMPLATE).render([HELLO])
    assert prompt == ("<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n", "")


def test_an_unfinished_answer_is_continued_exactly_where_it_stops() -> None:
    trimming = CHAT_TEMPLATE.replace("message['content']", "message['content'] | trim")
    answer = {"role": "assistant", "content": "  Hi, how are "}
    prompt = ChatTemplate(trimming).render([HELLO, answer])
    assert prompt.head == "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"
    assert prompt.prefix == "  Hi, how are "


def test_a_template_that_drops_the_answer_cannot_continue_it() -> None:
    template = ChatTemplate("{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}")
    with pytest.raises(InvalidRequestError, match="cannot be continued"):
        template.render([HELLO, {"role": "assistant", "content": "x"}])


def test_text_parts_are_joined_and_others_refused() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert ChatTemplate("{{ messages[0].content }}").render([{"role": "user", "content": parts}]).head == "ab"
    with pytest.raises(InvalidRequestError, match="image_url"):
        ChatTemplate(None).render([{"role": "user", "content": [{"type": "image_url"}]}])


def test_a_templates_own_refusal_reaches_the_caller() -> None:
    template = ChatTemplate("{{ raise_exception('roles must alternate') }}")
    with pytest.raises(InvalidRequestError, match="roles must alternate"):
        template.render([HELLO])


def test_no_message_is_refused() -> None:
    with pytest.raises(InvalidRequestError, match="empty"):
        ChatTemplate(None).render([])


def test_an_invalid_template_is_the_files_fault() -> None:
    with pytest.raises(InvalidModelFileError, match="chat template"):
        ChatTemplate("{% for %}")


@pytest.mark.parametrize(
    "attack",
    [
        "{{ messages.__class__.__mro__ }}",
        "{{ messages.append({}) }}",
        "{{ ''.__class__.__base__.__subclasses__() }}",
        "{{ range(10**9) | list }}",
    ],
)
def test_a_hostile_template_gets_nowhere(attack: str) -> None:
    with pytest.raises(InvalidRequestError):
        ChatTemplate(attack).render([HELLO])
