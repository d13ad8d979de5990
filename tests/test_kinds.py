"""Which phase a row is for, and what is refused before anything is trained."""

import json
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest

from siftune import config, generation, preflight
from siftune.data import formats, kinds
from siftune.sections import RowFormat, Source
from siftune.stage import UserError

TURNS = [{"role": "user", "content": "1+1?"}]
RECORDS = {
    "pretrain": [{"text": "Once."}],
    "sft": [{"messages": [*TURNS, {"role": "assistant", "content": "2"}]}],
    "dpo": [
        {"messages": TURNS, "chosen": "2", "rejected": "3"},
        {"messages": TURNS, "completion": "2", "label": True},
    ],
    "grpo": [{"messages": TURNS, "answer": "2", "fields": {}}],
}
# A row that each format reads.
RAW = {
    "alpaca": {"instruction": "1+1?", "output": "2"},
    "input-output": {"input": "1+1?", "output": "2"},
    "sharegpt": {
        "conversations": [{"from": "human", "value": "1+1?"}, {"from": "gpt", "value": "2"}]
    },
    "messages": {"messages": RECORDS["sft"][0]["messages"]},
    "columns": {"question": "1+1?", "answer": "2"},
    "text": {"text": "Once."},
    "preference": {"prompt": "1+1?", "chosen": "2", "rejected": "3"},
    "labelled": {"prompt": "1+1?", "completion": "2", "label": True},
    "problems": {"prompt": "1+1?", "answer": "2"},
}


def test_a_record_is_for_one_phase():
    assert list(RECORDS) == list(kinds.ROWS)
    for phase, records in RECORDS.items():
        assert [kinds.phase_of(record) for record in records] == [phase] * len(records)


@pytest.mark.parametrize("name", RAW)
def test_a_format_tells_the_phase_of_its_rows(name):
    assert {*RAW, "auto"} == set(RowFormat.__args__)
    record, _ = formats.convert(RAW[name], name, {}, ("<think>", "</think>"))
    assert kinds.phase_of(record) == kinds.phase_of_format(name)


def test_every_kind_but_text_is_asked_as_a_conversation():
    answers = [
        found["messages"][-1]["content"]
        for records in RECORDS.values()
        for found in map(kinds.as_conversation, records)
        if found
    ]
    assert answers == ["2", "2", "2", "2"]
    rows = [{**one, "group": "g"} for records in RECORDS.values() for one in records]
    asked = generation.spread(rows, 9)
    assert [one["messages"][-1] for one in asked] == [{"role": "assistant", "content": "2"}] * 4
    assert not any({"chosen", "completion", "answer", "fields"} & one.keys() for one in asked)


@pytest.fixture
def params(default_params, monkeypatch):
    monkeypatch.setattr(config, "PARAMS_FILE", default_params)
    return config.load_all()


@pytest.mark.parametrize(
    ("formats_of_sources", "message"),
    [
        (["messages", "text"], r"pretrain: null, but data\.sources have rows for it: plain text"),
        (["text"], "pretrain: null"),
        (["preference"], r"(?s)sft: this section is set, .*dpo: null"),
        (["problems", "auto"], "grpo: null"),
        (["columns"], None),
        (["auto"], None),
    ],
)
def test_formats_that_are_named_are_checked_before_anything_runs(
    params, formats_of_sources, message
):
    sources = [Source("local", format=name) for name in formats_of_sources]
    given = SimpleNamespace(
        **vars(params) | {"data": replace(params.data, path=".", sources=sources)}
    )
    if message is None:
        preflight.check(given)
    else:
        with pytest.raises(UserError, match=message):
            preflight.check(given)


def test_a_phase_without_rows_is_refused():
    with pytest.raises(
        UserError, match=r"grpo: this section is set, .*problems with a true answer"
    ):
        kinds.require({"grpo": (True, False)})
    kinds.require({"grpo": (True, True), "dpo": (False, False)})


def test_no_torch_is_needed(tmp_path):
    code = f"""
import sys
from siftune.data import kinds
assert kinds.phase_of({json.dumps(RECORDS["pretrain"][0])}) == "pretrain"
assert "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-P", "-c", code], cwd=tmp_path, check=True)
