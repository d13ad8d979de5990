"""Pairs of answers as tokens: what is refused, and what is left of those that are too long."""

from dataclasses import replace
from functools import partial

import pytest

from siftune.chat import masking, preference
from siftune.data.faults import Fault
from siftune.stage import UserError

TAGS = ("<think>", "</think>")
TALK = [
    {"role": "system", "content": "Be short."},
    {"role": "user", "content": "1+1?"},
    {"role": "assistant", "content": "2"},
    {"role": "user", "content": "2+2?"},
]
PAIR = {"id": "a", "messages": TALK, "chosen": "4 🎉 為", "rejected": "5, or rather 6"}


@pytest.fixture
def encode(tokenizer, encode_settings):
    def encoded(record=PAIR, **changes):
        settings = replace(encode_settings, **changes)
        return preference.encode(tokenizer, [record], settings, TAGS)[0]

    return encoded


def test_a_pair_is_one_prompt_and_two_answers_to_their_stop_tokens(tokenizer, encode):
    found = encode()
    texts = {name: tokenizer.decode(ids) for name, ids in found.answers.items()}
    assert texts == {"chosen": "4 🎉 為<|im_end|>", "rejected": "5, or rather 6<|im_end|>"}
    asked = tokenizer.apply_chat_template(TALK, add_generation_prompt=True)["input_ids"]
    assert found.prompt == asked
    assert len(found) == len(asked) + max(map(len, found.answers.values()))
    # Flags of sft say nothing here: the prompt is never trained, the last answer always.
    flagged = [*TALK[:2], {**TALK[2], "train": False}, TALK[3]]
    assert encode({**PAIR, "messages": flagged}, train_on="all_answers") == found


def test_the_system_message_of_the_params_stands_before_both(encode):
    without = {**PAIR, "messages": TALK[1:]}
    assert encode(without, system="Be short.") == encode()


def test_many_records_stay_in_order_beside_a_faulty_one(tokenizer, encode, encode_settings):
    faulty = {**PAIR, "chosen": "a<|im_end|>b"}
    other = {**PAIR, "rejected": "7"}
    found = preference.encode(tokenizer, [PAIR, faulty, other], encode_settings, TAGS)
    assert found[0] == encode()
    assert isinstance(found[1], Fault)
    assert str(found[1]).startswith("special token inside the text: chosen: <|im_end|> in ")
    assert found[2] == encode(other)


def test_answers_of_the_same_tokens_are_a_fault(encode):
    # `prepare` refuses the same text, but a template may take blanks away.
    found = encode({**PAIR, "chosen": "4", "rejected": "4"})
    assert isinstance(found, Fault)
    assert found.reason == "chosen and rejected are the same tokens"


@pytest.mark.parametrize(
    "record", [{"messages": TALK[:3]}, {"text": "t"}, {"messages": TALK, "answer": "4"}]
)
def test_other_records_are_refused(record, encode):
    with pytest.raises(UserError, match="no answers to be preferred"):
        encode(record)


def test_a_reasoning_that_is_only_read_is_refused(encode):
    with pytest.raises(UserError, match=r"params\.yaml: encode\.train_reasoning"):
        encode(train_reasoning=False)


@pytest.mark.parametrize("record", [PAIR, {"messages": TALK, "completion": "4", "label": True}])
def test_sft_refuses_them(record, tokenizer, encode_settings):
    with pytest.raises(UserError, match="answers to be preferred, labelled or found"):
        masking.encode(tokenizer, [record], encode_settings, TAGS)


def cut(found, rule, max_length, encode):
    return preference.cut(PAIR, found, rule, max_length, encode)


def test_the_oldest_exchanges_go_before_both_answers(encode):
    whole = encode()
    shorter = encode({**PAIR, "messages": [TALK[0], TALK[3]]})
    assert len(shorter) < len(whole)
    for max_length in (len(whole) - 1, len(shorter)):
        assert cut(whole, "cut_first_turns", max_length, encode) == shorter
    assert cut(whole, "cut_first_turns", len(shorter) - 1, encode) is None
    assert cut(whole, "drop", len(whole) - 1, encode) is None


def test_the_end_of_a_longer_answer_goes(encode):
    whole = encode()
    cutting = partial(cut, whole, "cut_answer", encode=encode)
    for room in (2, len(whole) - len(whole.prompt) - 1):
        left = cutting(max_length=len(whole.prompt) + room)
        assert left.prompt == whole.prompt
        assert left.answers == {name: ids[:room] for name, ids in whole.answers.items()}
        assert left.answers != whole.answers
    nothing = cutting(max_length=len(whole.prompt))
    assert isinstance(nothing, Fault)
    assert nothing.reason == "no trained token after cutting"


def test_answers_that_differ_only_in_what_is_cut_are_a_fault(encode):
    alike = {**PAIR, "chosen": "one two three four", "rejected": "one two three five"}
    whole = encode(alike)
    found = preference.cut(alike, whole, "cut_answer", len(whole.prompt) + 1, encode)
    assert isinstance(found, Fault)
    assert found.reason == "chosen and rejected are the same tokens"
