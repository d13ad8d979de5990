"""What is trained of a conversation, by family: `golden/` was written by hand from the published
formats, and says the whole text and the trained parts of it."""

import copy
import json
from dataclasses import replace
from functools import cache
from itertools import groupby
from pathlib import Path

import pytest

from siftune import gguf_tokenizer
from siftune.chat import conversation, masking, preference, templates
from siftune.chat.families import FAMILIES
from siftune.data.faults import Fault
from siftune.sections import Encode

GOLDEN = {
    path.stem: json.loads(path.read_text()) for path in Path(__file__).parent.glob("golden/*.json")
}
CASES = [(family, case) for family, golden in GOLDEN.items() for case in golden["cases"]]
KINDS = ("single", "multi-turn", "system", "tool", "reasoning")
TAGS = ("<think>", "</think>")


@pytest.fixture(scope="module")
def tokenizer_of(tokenizer):
    """A function: the tokenizer of the tests, made like that of a family, with its template."""

    @cache
    def like(bos_token: str | None, eos_token: str, pre_tokenizer: str | None):
        own = copy.deepcopy(tokenizer)
        own.bos_token = None
        own.add_special_tokens({"eos_token": eos_token})
        if bos_token:
            own.add_special_tokens({"bos_token": bos_token})
        if pre_tokenizer:
            # Of a line break and the answer's first letter, GPT-2's pattern makes other tokens.
            own.backend_tokenizer.pre_tokenizer = gguf_tokenizer._pre_tokenizer(pre_tokenizer)
        return own

    @cache
    def of(family: str):
        golden = GOLDEN[family]
        own = like(golden["bos_token"], golden["eos_token"], golden.get("pre_tokenizer"))
        return templates.choose(own, family)

    return of


def test_every_named_template_has_every_kind_of_case():
    assert set(GOLDEN) == set(FAMILIES)
    assert len(CASES) >= 40
    for golden in GOLDEN.values():
        assert set(KINDS) <= set(golden["cases"])
    told = [case for golden in GOLDEN.values() for case in golden["cases"].values()]
    assert sum("trained" in case for case in told) >= 40
    assert all(("trained" in case) != ("refused" in case) for case in told)


@pytest.mark.parametrize(("family", "case"), CASES)
def test_the_text_and_what_is_trained_of_it(family: str, case: str, tokenizer_of):
    tokenizer, golden = tokenizer_of(family), GOLDEN[family]["cases"][case]
    record = {"messages": golden["messages"], "tools": golden.get("tools")}
    [encoded] = masking.encode(tokenizer, [record], settings(golden), TAGS)
    if "refused" in golden:
        assert isinstance(encoded, Fault), tokenizer.decode(encoded.input_ids)
        assert golden["refused"] in str(encoded)
        return
    assert not isinstance(encoded, Fault), encoded
    assert tokenizer.decode(encoded.input_ids) == golden["text"]
    assert trained_runs(tokenizer, encoded) == golden["trained"]
    assert all(text.endswith(tokenizer.eos_token) for text in golden["trained"])


@pytest.mark.parametrize("family", GOLDEN)
def test_a_prompt_is_the_beginning_of_the_text_with_its_answer(family: str, tokenizer_of):
    seen = 0
    for golden in GOLDEN[family]["cases"].values():
        for index, message in enumerate(golden["messages"]):
            if message["role"] != "assistant" or "refused" in golden:
                continue
            prompt, answered = (
                conversation.render(
                    tokenizer_of(family), turns, answer_next=answer_next, tools=golden.get("tools")
                )
                for turns, answer_next in (
                    (golden["messages"][:index], True),
                    (golden["messages"][: index + 1], False),
                )
            )
            assert answered.startswith(prompt)
            seen += 1
    assert seen >= 4


@pytest.mark.parametrize("family", GOLDEN)
def test_a_preferred_answer_has_the_tokens_that_sft_trains(family: str, tokenizer_of):
    tokenizer, seen = tokenizer_of(family), 0
    for golden in GOLDEN[family]["cases"].values():
        *prompt, last = golden["messages"]
        if "refused" in golden or last["role"] != "assistant" or last.get("tool_calls"):
            continue
        how = {"messages": prompt, "tools": golden.get("tools")}
        texts = {"chosen": last["content"], "rejected": "Another answer. 另一個答案。"}
        [found] = preference.encode(tokenizer, [{**how, **texts}], settings(golden), TAGS)
        last_only = replace(settings(golden), train_on="last_answer")
        for name, text in texts.items():
            answered = {**how, "messages": [*prompt, {"role": "assistant", "content": text}]}
            [sft] = masking.encode(tokenizer, [answered], last_only, TAGS)
            ids = found.prompt + found.answers[name]
            assert ids == sft.input_ids[: len(ids)]
            labels = [masking.IGNORED] * len(found.prompt) + found.answers[name]
            assert labels == sft.labels[: len(ids)]
            assert set(sft.labels[len(ids) :]) <= {masking.IGNORED}
            assert found.answers[name][-1] == tokenizer.eos_token_id
        asked = conversation.prompt_text(tokenizer, prompt, tools=golden.get("tools"))
        assert found.prompt == tokenizer(asked, add_special_tokens=False)["input_ids"]
        [labelled] = preference.encode(
            tokenizer, [{**how, "completion": last["content"], "label": True}],
            settings(golden), TAGS,
        )  # fmt: skip
        assert labelled.prompt == found.prompt
        assert labelled.answers == {"completion": found.answers["chosen"]}
        seen += 1
    assert seen >= 3


def settings(golden: dict) -> Encode:
    return Encode(
        template=None,
        system=None,
        train_on=golden.get("train_on", "all_answers"),
        train_reasoning=True,
        max_length=4096,
        too_long="error",
        max_faulty=0.0,
    )


def trained_runs(tokenizer, encoded: masking.Encoded) -> list[str]:
    """The texts of the unbroken runs of trained tokens."""
    pairs = zip(encoded.input_ids, encoded.labels, strict=True)
    runs = groupby(pairs, key=lambda pair: pair[1] != masking.IGNORED)
    return [tokenizer.decode([label for _, label in run]) for is_trained, run in runs if is_trained]
