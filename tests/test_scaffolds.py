"""Only where it is proven to be the same, texts are put together without their template."""

import copy

import pytest
from transformers.utils.chat_template_utils import _compile_jinja_template

from siftune.chat import conversation, scaffolds, templates
from siftune.chat.families import FAMILIES

TURN = "{{ '<' + message['role'] + '>' + message.content ~ eos_token }}"
ODD = ("a", "\0000\0", "{{ x }}{% if %}", " \n<|im_start|>為🎉 ", "\\1 \\g<1>")


def each(turn: str = TURN, begin: str = "", messages: str = "messages") -> str:
    return begin + "{% for message in " + messages + " %}" + turn + "{% endfor %}"


def is_proven(template: str) -> bool:
    tree = _compile_jinja_template(template).environment.parse(template)
    return scaffolds.only_copies_texts(tree)


PROVEN = [
    each(),
    each(messages="messages[1:]"),
    each(begin="{% set turns = messages %}", messages="turns"),
    each("{{ message.content if message.role == 'user' else '-' + message['content'] }}"),
    each("{% if loop.first and messages[0].role != 'system' %}x{% endif %}" + TURN),
    each("{% if message.tool_calls or tools %}{{ raise_exception('no') }}{% endif %}" + TURN),
    each(begin="{% if not add_generation_prompt is defined %}{% set a = false %}{% endif %}"),
]
NOT_PROVEN = [
    each("{{ message.content | trim }}"),
    each("{{ message.content.strip() }}"),
    each("{{ message['content'][:3] }}"),
    each("{{ message['con' ~ 'tent'] }}"),
    each("{{ message.get('content') }}"),
    each("{{ message }}"),
    each("{{ message.content or '-' }}"),
    each("{{ message.content * 2 }}"),
    each("{% if message.content %}x{% endif %}"),
    each("{{ 'x' if message.content == 'a' else 'y' }}"),
    each("{{ 'x' if 'a' + message.content == 'aa' else 'y' }}"),
    each("{{ 'x' if message.content is string else 'y' }}"),
    each("{% set text = message.content %}{{ text }}"),
    each("{% set text %}{{ message.content }}{% endset %}{{ text | length }}"),
    each("{% filter upper %}{{ message.content }}{% endfilter %}"),
    each("{% set other = message %}{{ other.content | length }}"),
    each("{{ loop.previtem.content | length if loop.previtem }}"),
    each("{% set l = loop %}{{ l.nextitem }}"),
    each("{{ raise_exception(message.content) }}"),
    each("{{ raise_exception('no', *[message.content]) }}"),
    each("{% if loop.changed(message.content) %}x{% endif %}"),
    each(messages="messages if message.content"),
    each(messages="messages | reverse"),
    each(messages="messages[:messages[0].content | int]"),
    each(begin="{{ messages | length }}"),
    each(begin="{{ messages[0].content | length }}"),
    each(begin="{{ messages[n].content }}"),
    each(begin="{% set ns = namespace(a=messages[0].content) %}{% if ns.a %}x{% endif %}"),
    each(begin="{% macro m() %}{{ messages[0].content }}{% endmacro %}{{ m() | length }}"),
    each(begin="{% set turns = messages %}{{ turns | tojson }}"),
    each(begin="{{ '\\0' }}"),
    each(begin="\0"),
]


PROVEN_NAMES = ["chatml", "mistral-v7", "phi-3", "phi-4", "phi-4-mini", "zephyr"]


@pytest.mark.parametrize("template", PROVEN)
def test_a_template_that_only_writes_its_texts_is_proven(template: str):
    assert is_proven(template)


@pytest.mark.parametrize("template", NOT_PROVEN)
def test_a_template_that_might_look_at_a_text_is_not(template: str):
    assert not is_proven(template)


def test_named_templates():
    proven = [name for name in FAMILIES if is_proven(templates.named(name))]
    assert proven == PROVEN_NAMES


@pytest.mark.parametrize("name", [*range(len(PROVEN)), *PROVEN_NAMES])
def test_the_text_is_what_the_template_writes(name: int | str, tokenizer):
    own = copy.deepcopy(tokenizer)
    own.chat_template = PROVEN[name] if isinstance(name, int) else templates.named(name)
    writer = conversation.Writer(own)
    for system in ([], [{"role": "system", "content": "Be brief."}]):
        for first in ODD:
            for last in ODD:
                turns = [*system, {"role": "user", "content": first}]
                turns += [{"role": "assistant", "content": last}] if first != last else []
                for answer_next in (True, False):
                    expected = own.apply_chat_template(
                        turns, tokenize=False, add_generation_prompt=answer_next
                    )
                    assert writer.render(turns, answer_next=answer_next) == expected
