"""Named templates, a user's own, and what no template may do."""

import copy
import os
import re
import time
from pathlib import Path

import jinja2
import jinja2.meta
import pytest
from transformers import AutoTokenizer

from siftune.chat import conversation, templates, trial
from siftune.chat.families import FAMILIES
from siftune.data.faults import Fault
from siftune.stage import UserError

TALK = [
    {"role": "user", "content": "1+1?"},
    {"role": "assistant", "content": "2"},
    {"role": "user", "content": "2+2?"},
]
CHATML = templates.named("chatml")
TURN = "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
NEXT = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"


def turns(turn: str, end: str = NEXT) -> str:
    return "{% for m in messages %}" + turn + "{% endfor %}" + end


@pytest.fixture
def with_template(tokenizer, monkeypatch):
    """A function: the tokenizer with this template."""

    def change(template: str):
        monkeypatch.setattr(tokenizer, "chat_template", template)
        return tokenizer

    return change


def probe(tokenizer) -> str | None:
    return templates.probe(tokenizer, {tokenizer.eos_token_id})


# The named ones.


def test_each_name_is_a_file():
    assert {path.stem for path in templates.FOLDER.glob("*.jinja")} == set(FAMILIES)
    assert len(FAMILIES) == 15


@pytest.mark.parametrize("name", FAMILIES)
def test_a_named_template_reads_the_conversation_and_nothing_else(name: str):
    """So it cannot know the date, and says the same on every day."""
    text = templates.named(name)
    read = jinja2.meta.find_undeclared_variables(jinja2.Environment().parse(text))
    read -= set(re.findall(r"{%- set (\w+) =", text))  # also those of one branch only
    asked = {"messages", "tools", "add_generation_prompt", "enable_thinking"}
    assert read <= asked | {"bos_token", "eos_token", "raise_exception", "namespace"}
    assert text.startswith("{#-\n  ")
    assert max(len(line) for line in text.partition("-#}")[0].splitlines()) <= 100


@pytest.mark.parametrize("name", FAMILIES)
def test_a_named_template_is_fit_for_training(name: str, tokenizer):
    chosen = templates.choose(tokenizer, name)
    if name == "llama-3":  # two line breaks are one token here, but not before a letter
        with pytest.raises(UserError, match=r"merges the end of the prompt .* '.*\\n\\n'"):
            probe(chosen)
    else:
        assert probe(chosen) is None


@pytest.mark.parametrize("name", FAMILIES)
def test_a_named_template_refuses_roles_and_tools_that_it_has_not(name: str, tokenizer):
    template, tokens = templates.named(name), tokenizer.special_tokens_map

    def refusal(messages, tools=None) -> str:
        with pytest.raises(Fault) as refused:
            render(template, messages, tools, tokens)
        return refused.value.detail

    assert name in refusal([{"role": "critic", "content": "Bad."}])
    if name not in ("llama-3", "mistral", "qwen-2.5", "qwen-3"):
        call = {"function": {"name": "now", "arguments": {}}}
        called = {"role": "assistant", "content": "", "tool_calls": [call]}
        result = {"role": "tool", "content": "noon"}
        for messages, tools in (
            (TALK, [{"type": "function", "function": {"name": "now"}}]),
            ([TALK[0], called], None),
            ([TALK[0], result], None),
        ):
            assert "no tools" in refusal(messages, tools)
    if name in ("gemma-2", "gemma-3", "llama-2", "mistral", "alpaca", "vicuna"):
        assert "in turns" in refusal([TALK[0], TALK[0]])


@pytest.mark.parametrize("name", ["llama-3", "mistral"])
def test_a_text_beside_a_tool_call_is_not_dropped_in_silence(name: str):
    call = {"id": "call00001", "function": {"name": "now", "arguments": {}}}
    both = {"role": "assistant", "content": "Let me look.", "tool_calls": [call]}
    with pytest.raises(Fault, match="never both in one turn"):
        render(templates.named(name), [TALK[0], both], None, {"eos_token": "</s>"})


@pytest.mark.parametrize("name", FAMILIES)
def test_a_tokenizer_without_bos_gets_none(name: str):
    tokens = {"eos_token": "</s>"}
    text = render(templates.named(name), TALK, None, tokens)
    with_bos = render(templates.named(name), TALK, None, {**tokens, "bos_token": "<s>"})
    assert text == with_bos.replace("<s>", "")
    assert "None" not in text


def render(template: str, messages, tools, tokens: dict[str, str]) -> str:
    class Tokenizer:
        chat_template = template
        special_tokens_map = tokens

    return conversation.render(Tokenizer(), messages, answer_next=True, tools=tools)


# The tokens they need.


def test_missing_tokens_are_added_and_all_others_keep_their_ids(tokenizer, tmp_path):
    before = tokenizer.get_vocab()
    chosen = templates.choose(tokenizer, "phi-3")
    new = ["<|system|>", "<|user|>", "<|assistant|>", "<|end|>"]
    assert chosen.convert_tokens_to_ids(new) == list(range(len(before), len(before) + 4))
    assert {token: id for token, id in chosen.get_vocab().items() if token not in new} == before
    assert set(new) <= set(chosen.all_special_tokens)
    assert chosen.eos_token == "<|end|>"
    assert chosen("a<|end|>b", add_special_tokens=False)["input_ids"][1] == chosen.eos_token_id
    chosen.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert again.get_vocab() == chosen.get_vocab()
    assert again.eos_token == "<|end|>"
    assert again.chat_template == templates.named("phi-3")


def test_the_given_tokenizer_is_left_as_it_is(tokenizer):
    before = tokenizer.get_vocab(), tokenizer.eos_token, tokenizer.chat_template
    templates.choose(tokenizer, "gemma-3")
    assert (tokenizer.get_vocab(), tokenizer.eos_token, tokenizer.chat_template) == before


def test_tokens_that_are_there_are_not_touched(tokenizer):
    chosen = templates.choose(tokenizer, "chatml")
    assert chosen.get_vocab() == tokenizer.get_vocab()
    assert chosen.added_tokens_decoder == tokenizer.added_tokens_decoder


def test_a_template_whose_stop_token_is_the_tokenizers_own(tokenizer):
    assert templates.choose(tokenizer, "alpaca").eos_token == tokenizer.eos_token
    without = copy.deepcopy(tokenizer)
    without.eos_token = None
    assert templates.choose(without, "alpaca").eos_token == "</s>"


# Which one.


def test_no_name_is_the_tokenizers_own(tokenizer, monkeypatch):
    assert templates.choose(tokenizer, None).chat_template == tokenizer.chat_template
    monkeypatch.setattr(tokenizer, "chat_template", {"default": "one", "tool_use": "other"})
    assert templates.choose(tokenizer, None).chat_template == "one"


@pytest.mark.parametrize("own", [None, "", {"tool_use": "only"}])
def test_a_base_model_has_to_be_given_one(own, tokenizer, monkeypatch):
    monkeypatch.setattr(tokenizer, "chat_template", own)
    with pytest.raises(UserError, match=r"encode\.template: it is null.*\n.*chatml, llama-2"):
        templates.choose(tokenizer, None)


def test_an_unknown_name_lists_the_valid_ones(tokenizer):
    with pytest.raises(UserError, match=r"no template 'lama-3'\.\n.* llama-3, .* zephyr"):
        templates.choose(tokenizer, "lama-3")


@pytest.fixture
def own(tmp_path, monkeypatch):
    """The folder of users' templates, in an empty workspace."""
    monkeypatch.chdir(tmp_path)
    templates.OWN.mkdir(parents=True)
    return templates.OWN


def test_a_file_is_read(tokenizer, own):
    (own / "my own.jinja").write_text(CHATML)
    chosen = templates.choose(tokenizer, "my own.jinja")
    assert chosen.chat_template == CHATML
    assert probe(chosen) is None


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"{% for m in messages %}{{ m.content }}", "cannot be rendered: TemplateSyntaxError"),
        (b"{{ no_such_function() }}", "cannot be rendered: UndefinedError"),
        (b"\xff\xfe", "is not UTF-8"),
        (b"{# " + b"x" * templates.MAX_FILE_BYTES, "more than 64 kB"),
        (None, "cannot be read: No such file"),
    ],
)
def test_a_file_that_is_no_template(content, said, tokenizer, own):
    if content is not None:
        (own / "my.jinja").write_bytes(content)
    with pytest.raises(UserError, match=said):
        templates.choose(tokenizer, "my.jinja")


def test_a_file_elsewhere_is_refused_because_nobody_would_see_it_change(tokenizer, own):
    with pytest.raises(UserError, match=r"\.\./my\.jinja is not in train/templates"):
        templates.choose(tokenizer, "../my.jinja")


# What the probe finds.


@pytest.mark.parametrize(
    ("template", "said"),
    [
        (turns("<|im_start|>{{ m.role }}\n{{ m.content }}\n"), r"no stop token \(<\|im_end\|>\)"),
        (
            turns("<|im_start|>{{ m.role }}\n{{ m.content }}\n", NEXT + "{% if not add_generation"
                  "_prompt %}<|im_end|>{% endif %}"),
            "no stop token",
        ),
        ("{{ bos_token * 2 }}" + turns(TURN), "two beginning-of-sequence tokens"),
        ("{{ bos_token }}" + turns(TURN), "two beginning-of-sequence tokens"),
        (turns(TURN, "{% if add_generation_prompt %}<|im_start|>bot\n{% endif %}"), "beginning"),
        (turns(TURN, NEXT + "\n{{ messages | length }}"), "prompt: .*\n  text: "),
        (turns(TURN.replace("m.content", "m.content[:9]")), "leaves out a turn"),
        (turns("{% if m.role == 'user' %}" + TURN + "{% endif %}"), "leaves out a turn"),
        (turns("{% if loop.last %}" + TURN + "{% endif %}"), "leaves out a turn"),
        (turns(TURN.replace("}}\n", "}}\n\n"), NEXT.replace("\n", "\n\n")), "merges the end"),
    ],
)  # fmt: skip
def test_a_template_that_cannot_be_trained_is_refused(template, said, with_template):
    with pytest.raises(UserError, match=r"encode\.template: ") as refused:
        probe(with_template(template))
    assert refused.match(said)


def test_a_system_message_that_is_left_out_is_a_warning(with_template):
    silent = turns("{% if m.role != 'system' %}" + TURN + "{% endif %}")
    assert probe(with_template(silent)) == "the chat template leaves out system messages"
    loud = "{% if messages[0].role == 'system' %}{{ raise_exception('no') }}{% endif %}"
    assert probe(with_template(loud + turns(TURN))) is None


def test_a_prompt_that_opens_the_reasoning_is_tried_with_reasoning(with_template):
    """As Qwen3-Thinking: without one, `<think>` is followed by other tokens than in its prompt."""
    answer = (
        "{% if m.role == 'assistant' and '<think>' not in m.content %}"
        "<|im_start|>assistant\n<think>\n\n</think>\n\n{{ m.content }}<|im_end|>\n"
        "{% else %}" + TURN + "{% endif %}"
    )
    opened = NEXT.replace("assistant\n", "assistant\n<think>\n")
    assert probe(with_template(turns(answer, opened))) is None


def test_the_tags_of_transformers_are_known(with_template):
    marked = TURN.replace("{{ m.content }}", "{% generation %}{{ m.content }}{% endgeneration %}")
    loop = "{% for a in [1] %}{% break %}{% endfor %}"
    assert probe(with_template(turns(marked, loop + NEXT))) is None


# The one token that ends an answer.


def test_the_stop_token_of_a_named_template_may_be_new_to_the_model(tokenizer):
    known = {tokenizer.eos_token_id}
    chosen = templates.choose(tokenizer, "phi-3")
    assert templates.settle_stop_token(chosen, known) is None
    assert chosen.eos_token == "<|end|>"


def test_a_stop_token_that_only_the_generation_settings_name(tokenizer):
    base = copy.deepcopy(tokenizer)
    base.eos_token = "<|endoftext|>"
    stops = set(base.convert_tokens_to_ids(["<|endoftext|>", "<|im_end|>"]))
    templates.settle_stop_token(base, stops)
    assert base.eos_token == "<|im_end|>"


# A template is a program of somebody else's.

ESCAPES = [
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ cycler.__init__.__globals__.os.system('touch escaped') }}",
    "{{ lipsum.__globals__['os'].system('touch escaped') }}",
    "{{ namespace.__init__.__globals__.os.system('touch escaped') }}",
    "{{ joiner.__init__.__globals__.__builtins__.open('escaped', 'w') }}",
    "{{ self.__init__.__globals__.__builtins__.__import__('os').system('touch escaped') }}",
    "{{ raise_exception.__globals__['__builtins__'].open('escaped', 'w') }}",
    "{{ (cycler | attr('__in' ~ 'it__') | attr('__globals__'))['os'].system('touch escaped') }}",
    "{{ '{0.__class__.__init__.__globals__}'.format(messages) }}",
    "{% set n = namespace() %}{% set n.x = messages.__class__ %}{{ n.x.__base__ }}",
    "{{ messages[0].update({'content': 'another question'}) }}",
    "{% import 'os' as os %}{{ os.system('touch escaped') }}",
]
TOO_MUCH = [
    "{{ range(10 ** 9) | list }}",
    "{{ 'a' * 10 ** 10 }}",
    "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
]


@pytest.mark.parametrize("escape", ESCAPES)
def test_no_way_out_of_the_sandbox(escape, with_template, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"cannot be rendered: \w+Error"):
        probe(with_template(escape + CHATML))
    assert os.listdir() == []


@pytest.mark.parametrize("program", TOO_MUCH)
def test_a_template_that_takes_too_much_ends_in_seconds(program, with_template):
    start = time.monotonic()
    with pytest.raises(UserError, match=r"cannot be rendered|more than 3 seconds or 512 MB"):
        probe(with_template(program + CHATML))
    assert time.monotonic() - start < templates.TRIAL_SECONDS


def test_the_trial_imports_no_library_but_jinja():
    imported = Path(trial.__file__).read_text()
    assert "siftune" not in imported
    assert "transformers" not in imported.replace("transformers'", "")
