"""A split as tokens: what fits, what is cut, what is refused, and the facts about it."""

import json
from dataclasses import replace

import pytest

from siftune import encoders, encoding, files, token_facts, tokens
from siftune.chat import masking
from siftune.stage import UserError

TAGS = ["<think>", "</think>"]


def record(number: int, *, exchanges: int = 1, words: int = 2) -> dict:
    messages = []
    for turn in range(exchanges):
        messages.append({"role": "user", "content": f"Question {number}.{turn}?"})
        messages.append({"role": "assistant", "content": "so " * words + f"{number}.{turn}"})
    return {"id": f"{number:04}", "group": str(number), "messages": messages}


@pytest.fixture
def encode(tokenizer, encode_settings, tmp_path):
    def run(records: list[dict], **changes):
        files.write_jsonl(tmp_path / "train.jsonl", records)
        how = encoders.how(tokenizer, replace(encode_settings, **changes), TAGS)
        facts = encoding.encode_splits({"train": tmp_path / "train.jsonl"}, how, {"sft": tmp_path})[
            "sft", "train"
        ]
        return facts, tokens.read("train", tmp_path).to_list(), how

    return run


def decoded(tokenizer, row: dict) -> str:
    return tokenizer.decode(row["input_ids"])


def test_every_record_is_written_in_order_with_its_facts(encode, tokenizer):
    records = [record(number) for number in range(1200)]  # more than one batch
    facts, rows, how = encode(records)
    assert [row["id"] for row in rows] == [one["id"] for one in records]
    alone = how.encode_one(records[700])
    assert rows[700]["input_ids"] == alone.input_ids
    assert rows[700]["labels"] == alone.labels
    counts = facts.counts()
    assert counts["rows"] == counts["kept"] == 1200
    assert counts["tokens"] == sum(len(row["input_ids"]) for row in rows)
    trained = [label for row in rows for label in row["labels"] if label != masking.IGNORED]
    assert counts["trained_tokens"] == len(trained)
    assert sum(facts.lengths["total"].values()) == 1200
    # All prompts begin with the template's default system message and "Question ".
    shared = tokenizer.decode(facts.shared_prefix)
    assert shared.startswith("<|im_start|>system")
    assert shared.endswith("Question ") or shared.endswith("Question")
    assert counts["shared_prefix"] == len(facts.shared_prefix)
    assert facts.random == [f"{number:04}" for number in range(token_facts.NUM_SHOWN)]


ASKED = [{"role": "user", "content": "1+1?"}]
PAIR = {"id": "p", "messages": ASKED, "chosen": "2", "rejected": "3"}
MIXED = [
    {"id": "t", "text": "Once upon a time. " * 200},
    record(1),
    PAIR,
    {"id": "l", "messages": ASKED, "completion": "two", "label": False},
    {"id": "q", "messages": ASKED, "answer": "2", "fields": {"level": 3}},
]


def test_each_kind_of_row_is_for_its_phase(tokenizer, encode_settings, tmp_path):
    prepared = {"train": tmp_path / "train.jsonl"}
    files.write_jsonl(prepared["train"], MIXED)
    folders = {phase: tmp_path / phase for phase in tokens.SCHEMAS}
    for folder in folders.values():
        folder.mkdir()
    how = encoders.how(tokenizer, encode_settings, TAGS)
    assert encoding.count(prepared) == {
        ("pretrain", "train"): 1, ("sft", "train"): 1, ("dpo", "train"): 2, ("grpo", "train"): 1,
    }  # fmt: skip
    facts = encoding.encode_splits(prepared, how, folders)
    rows = {phase: tokens.read("train", folder).to_list() for phase, folder in folders.items()}
    # A text may be longer than encode.max_length: it is trained in blocks.
    (text,) = rows["pretrain"]
    assert len(text["input_ids"]) > encode_settings.max_length
    assert text["labels"] == text["input_ids"]
    assert text["input_ids"][-1] == tokenizer.eos_token_id
    assert rows["sft"][0]["id"] == "0001"
    asked = tokenizer.apply_chat_template(ASKED, add_generation_prompt=True)["input_ids"]
    pair, labelled = rows["dpo"]
    assert pair["prompt_ids"] == labelled["prompt_ids"] == asked
    end = "<|im_end|>"
    assert tokenizer.decode(pair["chosen_ids"]) == f"2{end}"
    assert tokenizer.decode(pair["rejected_ids"]) == f"3{end}"
    assert labelled["chosen_ids"] is None
    assert tokenizer.decode(labelled["rejected_ids"]) == f"two{end}"
    (problem,) = rows["grpo"]
    assert problem["prompt_ids"] == asked
    assert json.loads(problem["record"]) == MIXED[4]
    assert facts["dpo", "train"].num_kept == 2
    assert facts["dpo", "train"].num_trained == sum(
        len(row[name] or []) for row in rows["dpo"] for name in ("chosen_ids", "rejected_ids")
    )
    assert facts["grpo", "train"].num_trained == 0
    assert facts["grpo", "train"].num_tokens == len(asked)
    told = encoding.results(facts)
    assert told["train"]["kept"] == 5
    assert told["dpo"]["train"]["kept"] == 2
    assert set(encoding.by_name(facts)) == {f"{phase} train" for phase in tokens.SCHEMAS}


def test_a_phase_needs_rows_in_each_split(tokenizer, encode_settings, tmp_path):
    prepared = {split: tmp_path / f"{split}.jsonl" for split in tokens.SPLITS}
    files.write_jsonl(prepared["train"], [record(1), PAIR])
    files.write_jsonl(prepared["validation"], [record(2)])
    folders = {"sft": tmp_path, "dpo": tmp_path / "dpo"}
    folders["dpo"].mkdir()
    how = encoders.how(tokenizer, encode_settings, TAGS)
    with pytest.raises(UserError, match=r"of 0 validation rows for dpo none is left"):
        encoding.encode_splits(prepared, how, folders)


@pytest.mark.parametrize("too_long", ["drop", "cut_answer", "cut_first_turns"])
def test_a_prompt_that_is_too_long_is_dropped_or_loses_its_first_turns(
    tokenizer, encode_settings, tmp_path, too_long
):
    talk = [
        {"role": "user", "content": "why " * 100},
        {"role": "assistant", "content": "so"},
        {"role": "user", "content": "1+1?"},
    ]
    problem = {"id": "q", "messages": talk, "answer": "2", "fields": {}}
    files.write_jsonl(tmp_path / "train.jsonl", [problem, {**MIXED[4], "id": "r"}])
    settings = replace(encode_settings, max_length=64, too_long=too_long)
    how = encoders.how(tokenizer, settings, TAGS)
    found = encoding.encode_splits({"train": tmp_path / "train.jsonl"}, how, {"grpo": tmp_path})
    kept = [tokenizer.decode(row["prompt_ids"]) for row in tokens.read("train", tmp_path)]
    if too_long == "cut_first_turns":
        assert len(kept) == 2
        assert "why" not in kept[0]
        assert found["grpo", "train"].num_cut == 1
    else:
        assert len(kept) == 1
        assert found["grpo", "train"].num_dropped == 1


def test_the_worst_rows_are_listed_with_the_reason(encode):
    facts, _, _ = encode([*(record(n) for n in range(40)), record(99, words=150)])
    why = {row["id"]: row["why"] for _, _, row in facts.worst}
    assert "0099" in why
    page = encoding.for_the_page({("sft", "train"): facts}, encode([record(1)])[2])
    assert json.loads(json.dumps(page))["splits"]["train"]["kept"] == 41
    assert len(page["worst"]) <= token_facts.NUM_LISTED


LONG = [record(1), record(2, exchanges=5, words=8), record(3, words=200)]


def test_too_long_is_an_error_with_the_longest_row(encode):
    with pytest.raises(UserError, match=r"2 of 3 train rows for sft.*128 tokens; 0003 has \d+"):
        encode(LONG, max_length=128)


def test_too_long_is_dropped_and_counted(encode):
    facts, rows, _ = encode(LONG, max_length=128, too_long="drop")
    assert [row["id"] for row in rows] == ["0001"]
    assert (facts.num_dropped, facts.num_cut) == (2, 0)
    assert {row["id"] for row in facts.listed["dropped"]} == {"0002", "0003"}


def test_the_first_exchanges_are_cut_whole_and_the_last_answer_keeps_its_end(encode, tokenizer):
    facts, rows, _ = encode(LONG, max_length=128, too_long="cut_first_turns")
    assert [row["id"] for row in rows] == ["0001", "0002"]
    assert (facts.num_dropped, facts.num_cut) == (1, 1)
    text = decoded(tokenizer, rows[1])
    assert text.startswith("<|im_start|>system")
    assert "Question 2.0?" not in text
    assert text.rstrip().endswith("2.4<|im_end|>")
    assert len(rows[1]["input_ids"]) <= 128
    assert rows[1]["labels"].count(tokenizer.eos_token_id) == text.count("<|im_start|>assistant")


def test_a_cut_answer_is_counted_and_its_end_is_gone(encode, tokenizer):
    facts, rows, _ = encode(LONG, max_length=128, too_long="cut_answer")
    assert [len(row["input_ids"]) for row in rows][1:] == [128, 128]
    assert facts.num_cut == 2
    assert rows[2]["labels"][-1] == rows[2]["input_ids"][-1] != tokenizer.eos_token_id
    assert facts.listed["cut"][0]["kept_tokens"] == 128


def test_nothing_left_to_train_on_is_a_fault_with_its_row(encode):
    question = {"role": "user", "content": "why " * 200}
    row = {"id": "0007", "messages": [question, {"role": "assistant", "content": "so"}]}
    with pytest.raises(
        UserError, match=r"1 x no trained token after cutting\. The first: 0007: of"
    ):
        encode([row], max_length=64, too_long="cut_answer")


def test_faults_are_counted_and_tolerated_up_to_a_share(encode):
    bad = record(8)
    bad["messages"][1]["content"] += "<|im_end|>"
    rows = [*(record(n) for n in range(9)), bad]
    with pytest.raises(UserError, match=r"(?s)1 of 10 rows.*special token.*encode\.max_faulty"):
        encode(rows)
    facts, kept, _ = encode(rows, max_faulty=0.1)
    assert len(kept) == 9
    assert facts.faulty == {"special token inside the text": 1}


def test_all_dropped_is_an_error(encode):
    with pytest.raises(UserError, match=r"of 1 train rows for sft none is left"):
        encode([record(1)], max_length=4, too_long="drop")


def test_some_takes_the_first_that_can_be_encoded(encode, tmp_path):
    bad = record(0)
    bad["messages"][1]["content"] += "<|im_end|>"
    records = [bad, record(1), record(2), record(3)]
    _, _, how = encode([record(1)])
    files.write_jsonl(tmp_path / "test.jsonl", records)
    found = list(encoding.some(tmp_path / "test.jsonl", 2, how))
    assert [row.input_ids for row in found] == [how.encode_one(r).input_ids for r in records[1:3]]
