"""Ten bugs that ruin a fine-tune in silence, seeded one by one: each is caught."""

import copy
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from siftune import encoding, models
from siftune.chat import cutting, masking, tokenise
from siftune.data.faults import Fault
from siftune.encoders import Conversations
from siftune.training import sft

TAGS = ("<think>", "</think>")
SYSTEM = {"role": "system", "content": "Be brief."}
TALK = [
    SYSTEM,
    {"role": "user", "content": "1+1?"},
    {"role": "assistant", "content": "It is 2."},
    {"role": "user", "content": "2+2?"},
    {"role": "assistant", "content": "It is 4."},
]


@pytest.fixture
def seed(monkeypatch) -> Callable:
    """Replace a function by one that gets the right result and spoils it."""

    def spoil(owner, name: str, spoiled: Callable) -> None:
        right = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *args, **kw: spoiled(right(*args, **kw), *args))

    return spoil


def proof_of_the_mask(tokenizer, settings) -> None:
    (found,) = masking.encode(tokenizer, [{"messages": TALK}], settings, TAGS)
    if isinstance(found, Fault):
        raise found
    learned = tokenizer.decode([label for label in found.labels if label != masking.IGNORED])
    assert learned == "It is 2.<|im_end|>It is 4.<|im_end|>"
    assert tokenizer.decode(found.input_ids) == tokenizer.apply_chat_template(TALK, tokenize=False)


def shift(by: int) -> Callable:
    def shifted(labels, tokenizer, whole, *_):
        marks = [label != masking.IGNORED for label in labels]
        moved = marks[-by:] + marks[:-by]
        return [t if m else masking.IGNORED for t, m in zip(whole, moved, strict=True)]

    return shifted


def without_stop_token(labels, tokenizer, *_):
    return [masking.IGNORED if label == tokenizer.eos_token_id else label for label in labels]


def with_prompt(labels, tokenizer, whole, *_):
    return list(whole)


MASK_BUGS = {
    "stop token masked": without_stop_token,
    "shifted left": shift(-1),
    "shifted right": shift(1),
    "prompt included": with_prompt,
}


def test_the_mask_is_right_without_a_bug(tokenizer, encode_settings):
    proof_of_the_mask(tokenizer, encode_settings)


@pytest.mark.parametrize("bug", MASK_BUGS)
def test_a_wrong_mask_is_caught(bug, seed, tokenizer, encode_settings):
    seed(masking, "_labels", MASK_BUGS[bug])
    with pytest.raises(AssertionError):
        proof_of_the_mask(tokenizer, encode_settings)


def test_two_bos_are_caught(tokenizer, encode_settings):
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.bos_token = "<|endoftext|>"
    tokenizer.chat_template = "<|endoftext|>" + tokenizer.chat_template
    proof_of_the_mask(tokenizer, encode_settings)
    tokenizer.chat_template = "<|endoftext|>" + tokenizer.chat_template
    with pytest.raises(Fault, match="two beginning-of-sequence tokens"):
        proof_of_the_mask(tokenizer, encode_settings)


def test_a_dropped_role_is_caught(tokenizer, encode_settings, monkeypatch):
    deaf = tokenizer.chat_template.replace(
        "{% for message in messages %}", "{% for message in messages if message.role != 'system' %}"
    )
    assert deaf != tokenizer.chat_template
    monkeypatch.setattr(tokenizer, "chat_template", deaf)
    with pytest.raises(Fault, match=r"left out by the chat template: system: 'Be brief\.'"):
        proof_of_the_mask(tokenizer, encode_settings)


def proof_of_the_cut(tokenizer, settings) -> None:
    """Whatever is cut, what is left begins as the whole, and cuts are counted."""
    how = encoding.How(tokenizer, tokenise.own(tokenizer), settings, TAGS)
    record = {"id": "1", "messages": TALK}
    whole = how.encode_one(record)
    facts = encoding.Facts()
    left = encoding._fit(record, whole, Conversations(how), settings, facts)
    assert facts.num_cut == 1
    assert left.input_ids == whole.input_ids[: len(left.input_ids)]
    assert left.labels == whole.labels[: len(left.labels)]


def test_the_wrong_side_cut_off_is_caught(seed, tokenizer, encode_settings):
    short = replace(encode_settings, max_length=24, too_long="cut_answer")
    proof_of_the_cut(tokenizer, short)

    def from_the_left(kept, record, encoded, rule, max_length, encode):
        return masking.Encoded(encoded.input_ids[-max_length:], encoded.labels[-max_length:])

    seed(cutting, "cut", from_the_left)
    with pytest.raises(AssertionError):
        proof_of_the_cut(tokenizer, short)


def test_a_swapped_template_is_caught(tokenizer, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tokenizer.save_pretrained(models.TOKENIZER)
    merged = tmp_path / "models/merged"
    tokenizer.save_pretrained(merged)
    models.load_tokenizer(merged)
    template = merged / "chat_template.jinja"
    template.write_text(template.read_text().replace("user", "human") + " ")
    with pytest.raises(ValueError, match="not the one that the model was trained with"):
        models.load_tokenizer(merged)


@pytest.fixture
def trainer(tiny_model, tokenizer, encode_settings):
    """What `check_batches` looks at: a model, rows, and TRL's own collator."""
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

    records = [{"messages": TALK[:3]}, {"messages": TALK}]
    rows = masking.encode(tokenizer, records, encode_settings, TAGS)
    model = models.load_model(tiny_model)
    with torch.no_grad():  # a random model says nearly the same whatever it sees
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.mul_(100)
            layer.self_attn.v_proj.weight.mul_(20)
        model.model.norm.weight.mul_(10)
    return SimpleNamespace(
        phase="sft",
        model=model,
        train_dataset=[row._asdict() for row in rows],
        data_collator=DataCollatorForLanguageModeling(pad_token_id=tokenizer.pad_token_id),
    )


def test_batches_are_right_without_a_bug(trainer):
    sft.check_batches(trainer)


def test_padding_that_hides_the_stop_token_is_caught(trainer, tokenizer):
    right = trainer.data_collator

    def hiding(rows):
        batch = right(rows)
        batch["labels"][batch["input_ids"] == tokenizer.eos_token_id] = masking.IGNORED
        return batch

    trainer.data_collator = hiding
    with pytest.raises(ValueError, match="changes the labels"):
        sft.check_batches(trainer)


def test_a_leak_between_packed_conversations_is_caught(trainer):
    def packed(rows):
        ids = [token for row in rows for token in row["input_ids"]]
        labels = [label for row in rows for label in row["labels"]]
        return {"input_ids": torch.tensor([ids]), "labels": torch.tensor([labels])}

    trainer.data_collator = packed
    with pytest.raises(ValueError, match="one sees the other"):
        sft.check_batches(trainer)
