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


_GROWING = "{% set n = namespace(s='x' * 1000) %}{% for i in range(60) %}GROW{% endfor %}{{ n.s | length }}"
_NESTED = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
_TWICE = "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}"


@pytest.mark.parametrize(
    "attack",
    [
        _NESTED,
        "{% set __counted__ = 1 %}" + _NESTED,
        "{% for a in range(99999) %}{% for b in range(99999) | map('int') %}{% endfor %}{% endfor %}",
        _TWICE,
        *(
            _GROWING.replace("GROW", step)
            for step in (
                "{% set n.s = n.s + n.s %}",
                "{% set n.s = n.s ~ n.s %}",
                "{% set n.s %}{{ n.s }}{{ n.s }}{% endset %}",
                "{% set n.s = [n.s, n.s] | join %}",
                "{% set n.s = ''.join([n.s, n.s]) %}",
                "{% set n.s = n.s.replace('x', n.s) %}",
                "{% set n.s = n.s | replace('x', n.s) %}",
                "{% set n.s = n.s * 1000 %}",
                "{% set n.s = [n.s, n.s] %}{{ n.s }}",
                "{% set n.s = [n.s, n.s] %}{% set x = n.s ~ '' %}",
                "{% set n.s = [n.s, n.s] %}{% set x = n.s | tojson %}",
                "{% set n.s = [n.s, n.s] %}{% set x = '%s' % (n.s,) %}",
                "{% set n.s = [n.s, n.s] %}{% set x = '{}'.format(n.s) %}",
            )
        ),
        "{% for i in range(60) %}{{ 'x' * 10000000 }}{% endfor %}",
        "{% set n = namespace(i=99999) %}{% for i in range(60) %}{% set n.i = n.i * n.i %}{% endfor %}",
        "{{ 9 ** 9 ** 9 }}",
        "{{ 'x' | center(10 ** 10) }}",
        "{{ 'x'.ljust(10 ** 10) }}",
        "{{ '%9999999999d' % 1 }}",
        "{{ '%*d' % (10 ** 10, 1) }}",
        "{{ '%9999999999d' | format(1) }}",
        "{{ '{:9999999999}'.format(1) }}",
        "{{ '{:{w[0]}}'.format(1, w=[10 ** 10]) }}",
        "{{ messages | tojson(indent=10 ** 10) }}",
        *(
            "{% set s = 'x ' * 8000000 %}{% set l = [s] * 1000 %}" + step
            for step in (
                "{{ l | map('string') | join | length }}",
                "{{ ''.join(l | map('string')) | length }}",
                "{{ ([''] * 1000) | join(s) | length }}",
                "{{ s.join([''] * 1000) | length }}",
                "{{ ([[0] * 100000] * 10000) | sum(start=[]) | length }}",
                "{{ s.replace(' ', '\n') | indent(100000) | length }}",
                "{{ s.translate({32: 'y' * 1000000}) | length }}",
                "{{ s.replace(' ', '\t').expandtabs(100000) | length }}",
                "{{ ('{0}' * 1000).format(s) | length }}",
                "{{ ('{a}' * 1000).format_map({'a': s}) | length }}",
                "{{ ('%(a)s' * 1000) % {'a': s} }}",
                "{{ l | unique | list | length }}",
                "{{ l | map('upper') | sort | length }}",
                "{{ l | string | length }}",
                "{{ range(99999) | map('center', 99999) | list | length }}",
                "{% set n = namespace(l=[]) %}{% for i in range(200) %}"
                "{% set n.l = n.l + [[0] * 16000000] %}{% endfor %}",
            )
        ),
    ],
)
def test_a_template_that_would_not_end_or_fill_the_memory_is_stopped(attack: str) -> None:
    with pytest.raises(InvalidRequestError, match="was stopped"):
        ChatTemplate(attack).render([HELLO])


def test_ordinary_templates_are_not_in_the_way() -> None:
    source = (
        "{% set ns = namespace(last=-1) %}"
        "{% for m in messages %}{% set ns.last = loop.index0 if m.role == 'user' else ns.last %}{% endfor %}"
        "{% for m in messages | selectattr('role', 'equalto', 'user') if m.content %}"
        "{{ loop.index }}/{{ loop.length }}{{ ',' if not loop.last }}{% endfor %} "
        "{{ '%s-%05d' % ('a', 7) }} {{ '{:>3}'.format('b') }} "
        "{{ messages[::-1][0].content.split('l') | join('L') }}"
        "{% set block %}{{ ns.last ~ '!' }}{% endset %}{{ block | trim }}"
        "{% macro f(x) %}<{{ x }}>{% endmacro %}{{ f('y') }}{{ 'ab' * 2 + 'c' }}{{ {'a': [1]} | tojson }}"
        "{{ [1, 2] }}{% for i in range(5) %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}"
    )
    assert ChatTemplate(source).render([HELLO, HELLO]).head == (
        '1/2,2/2 a-00007   b HeLLo1!<y>ababc{"a": [1]}[1, 2]01'
    )
    many = [HELLO, {"role": "assistant", "content": "x" * 1000}] * 2000
    assert len(ChatTemplate(CHAT_TEMPLATE).render([*many, HELLO]).head) > 2_000_000
