"""What is trained: the answers and their stop tokens, and what is refused."""

import re
from dataclasses import replace

import pytest

from siftune.chat import conversation, masking, tokenise
from siftune.data.faults import Fault

TAGS = ("<think>", "</think>")
TALK = [
    {"role": "user", "content": "1+1?"},
    {"role": "assistant", "content": "2"},
    {"role": "user", "content": "2+2?"},
    {"role": "assistant", "content": "4 🎉 為"},
]
REASONED = [
    {"role": "user", "content": "1+1?"},
    {"role": "assistant", "content": "<think>\none and one\n</think>\n\n2"},
]


@pytest.fixture
def encode(tokenizer, encode_settings):
    def encoded(messages=None, **changes):
        records = [messages if isinstance(messages, dict) else {"messages": messages}]
        settings = replace(encode_settings, **changes)
        return masking.encode(tokenizer, records, settings, TAGS)[0]

    return encoded


def trained(tokenizer, encoded: masking.Encoded) -> str:
    pairs = zip(encoded.input_ids, encoded.labels, strict=True)
    assert all(label in (masking.IGNORED, token) for token, label in pairs)
    return tokenizer.decode([label for label in encoded.labels if label != masking.IGNORED])


def test_the_answers_and_their_stop_tokens_are_trained_and_nothing_else(tokenizer, encode):
    found = encode(TALK)
    assert trained(tokenizer, found) == "2<|im_end|>4 🎉 為<|im_end|>"
    whole = tokenizer.apply_chat_template(TALK, tokenize=False)
    assert tokenizer.decode(found.input_ids) == whole
    assert found.input_ids == tokenizer(whole, add_special_tokens=False)["input_ids"]


def test_the_prompt_of_inference_is_the_beginning_of_what_is_trained(tokenizer, encode):
    text = conversation.prompt_text(tokenizer, TALK[:2])
    prompt = tokenizer(text, add_special_tokens=False)["input_ids"]
    theirs = tokenizer.apply_chat_template(TALK[:1], add_generation_prompt=True)["input_ids"]
    found = encode(TALK[:2])
    assert prompt == theirs == found.input_ids[: len(prompt)]
    assert found.labels[: len(prompt)] == [masking.IGNORED] * len(prompt)
    assert found.labels[len(prompt)] != masking.IGNORED


def test_only_the_last_answer_or_only_some(tokenizer, encode):
    last = encode(TALK, train_on="last_answer")
    assert trained(tokenizer, last) == "4 🎉 為<|im_end|>"
    some = [TALK[0], {**TALK[1], "train": False}, *TALK[2:]]
    assert trained(tokenizer, encode(some)) == "4 🎉 為<|im_end|>"
    none = [TALK[0], {**TALK[1], "train": False}]
    assert encode(none).reason == "no answer to train on"


def test_reasoning_may_be_read_and_not_learned(tokenizer, encode):
    assert trained(tokenizer, encode(REASONED)).startswith("<think>\none and one")
    found = encode(REASONED, train_reasoning=False)
    assert trained(tokenizer, found) == "\n\n2<|im_end|>"
    assert "one and one" in tokenizer.decode(found.input_ids)


def test_a_system_message_is_put_only_where_there_is_none(tokenizer):
    system = [{"role": "system", "content": "Own."}]
    assert "Default." in conversation.prompt_text(tokenizer, TALK, "Default.")
    text = conversation.prompt_text(tokenizer, system + TALK, "Default.")
    assert "Own." in text
    assert "Default." not in text


def test_an_answer_that_the_template_shortens_is_refused(tokenizer, encode, monkeypatch):
    """As Qwen3's does with the reasoning of all turns but the last."""
    shortened = tokenizer.chat_template.replace(
        "message['content'] +", "message['content'].split('</think>')[-1] +"
    )
    monkeypatch.setattr(tokenizer, "chat_template", shortened)
    found = encode([*REASONED, *TALK[:2]])
    assert found.reason.startswith("an answer is not trained as it is written")
    assert (
        trained(tokenizer, encode([*REASONED, *TALK[:2]], train_on="last_answer")) == "2<|im_end|>"
    )


def test_plain_text_is_trained_whole_with_its_end(tokenizer, encode):
    assert trained(tokenizer, encode({"text": "好 text"})) == "好 text<|im_end|>"


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("message['content'] + '<|im_end|>'", "message['content']", "no stop token"),
        ("message['content']", "message['content'][:3]", "left out by the chat template"),
        ("{% for", "{{ raise_exception('no such role') }}{% for", "refused by the chat template"),
        ("{% for", "{{ messages | length }}{% for", "rewrites earlier turns"),
        ("<|im_start|>assistant\n' }}", "<|im_start|>assistant\n ' }}", "merge|not the beginning"),
    ],
)
def test_a_template_that_cannot_be_trained_with_is_refused(
    tokenizer, encode, monkeypatch, old, new, reason
):
    assert old in tokenizer.chat_template
    monkeypatch.setattr(tokenizer, "chat_template", tokenizer.chat_template.replace(old, new))
    found = encode(
        [{"role": "user", "content": "question"}, {"role": "assistant", "content": "long answer"}]
    )
    assert isinstance(found, Fault)
    assert re.search(reason, str(found))


def test_the_models_own_tokens_in_a_text_are_refused(encode):
    told = [TALK[0], {"role": "assistant", "content": "2<|im_end|>"}]
    assert encode(told).reason == "special token inside the text"


def test_both_ways_to_tokenise_agree(tokenizer):
    texts = [
        "Hello, world! 12345",
        "臺灣的夏天很熱,🙂",
        "<|im_start|>user\nx<|im_end|>\n",
        "  a\n\n b\t",
    ]
    fast = tokenise.fastest(tokenizer)
    assert fast.__qualname__.startswith("_kitoken")
    assert fast(texts) == tokenise.own(tokenizer)(texts)


def test_where_they_disagree_the_tokenizer_itself_is_asked(tokenizer, monkeypatch):
    monkeypatch.setattr(tokenise, "_kitoken", lambda _: lambda texts: [[0] for _ in texts])
    assert tokenise.fastest(tokenizer).__qualname__.startswith("own")
