import pytest

from siftune import chat
from siftune.stage import UserError

TALK = [
    {"role": "user", "content": "1+1?"},
    {"role": "assistant", "content": "2"},
    {"role": "user", "content": "2+2?"},
    {"role": "assistant", "content": "4 🎉 為"},
]


def trained_text(tokenizer, encoded) -> str:
    ids = [
        i for i, label in zip(encoded["input_ids"], encoded["labels"], strict=True) if label != -100
    ]
    return tokenizer.decode(ids)


def test_the_answers_and_their_stop_tokens_are_trained_and_nothing_else(tokenizer):
    encoded = chat.encode(tokenizer, TALK)
    assert trained_text(tokenizer, encoded) == "2<|im_end|>4 🎉 為<|im_end|>"
    assert tokenizer.decode(encoded["input_ids"]) == tokenizer.apply_chat_template(
        TALK, tokenize=False
    )
    assert all(
        label in (chat.IGNORED, token)
        for token, label in zip(encoded["input_ids"], encoded["labels"], strict=True)
    )


def test_the_prompt_of_inference_is_the_beginning_of_what_is_trained(tokenizer):
    prompt = tokenizer(chat.prompt_text(tokenizer, TALK[:2]), add_special_tokens=False)["input_ids"]
    encoded = chat.encode(tokenizer, TALK[:2])
    assert encoded["input_ids"][: len(prompt)] == prompt
    assert encoded["labels"][: len(prompt)] == [chat.IGNORED] * len(prompt)
    assert encoded["labels"][len(prompt)] != chat.IGNORED


def test_a_system_message_is_put_only_where_there_is_none(tokenizer):
    system = [{"role": "system", "content": "Own."}]
    assert "Default." in chat.prompt_text(tokenizer, TALK, "Default.")
    text = chat.prompt_text(tokenizer, system + TALK, "Default.")
    assert "Own." in text
    assert "Default." not in text


def test_a_template_without_a_stop_token_is_refused(tokenizer, monkeypatch):
    template = tokenizer.chat_template.replace(
        "message['content'] + '<|im_end|>'", "message['content']"
    )
    monkeypatch.setattr(tokenizer, "chat_template", template)
    with pytest.raises(UserError, match="no stop token"):
        chat.encode(tokenizer, TALK)


def test_a_template_that_rewrites_earlier_turns_is_refused(tokenizer, monkeypatch):
    turn = "{{ loop.index0 - loop.length }}{{ m.content }}<|im_end|>"
    template = "{% for m in messages %}" + turn + "{% endfor %}"
    monkeypatch.setattr(tokenizer, "chat_template", template)
    with pytest.raises(UserError, match="rewrites earlier turns"):
        chat.encode(tokenizer, TALK)
