"""Whole data sets through the checks: rows in = kept + rejected, splits that hold, leaks found."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from siftune import files
from siftune.data import preparation, rows
from siftune.sections import Data, Prepare, Source
from siftune.stage import UserError

DATA = Data(
    name="d", path="rows.jsonl", sources=[Source(source="local")],
    reasoning_tags=["<think>", "</think>"], num_examples=None, seed=1,
)  # fmt: skip
PREPARE = Prepare(
    validation=0.2, test=0.2, max_faulty=0.0, near_duplicates=None, leak_words=None,
    repair_mojibake=False, variants=None,
)  # fmt: skip


@pytest.fixture(autouse=True)
def workspace(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def question(number: int) -> dict[str, str]:
    return {"question": f"What is {number} plus {number}?", "answer": f"{number + number}"}


def write(name: str, values: list) -> None:
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [one if isinstance(one, str) else json.dumps(one, ensure_ascii=False) for one in values]
    path.write_text("\n".join(lines), encoding="utf-8")


def prepare(values: list | None = None, data: Data = DATA, **changes):
    if values is not None:
        write("rows.jsonl", values)
    folder = Path("out")
    folder.mkdir(exist_ok=True)
    prepared = preparation.prepare(data, replace(PREPARE, **changes), folder)
    results = preparation.results(prepared)
    assert results["rows"]["in"] == results["rows"]["kept"] + results["rows"]["rejected"]
    assert len(read("rejected")) == results["rows"]["rejected"]
    return results


def read(split: str) -> list[dict]:
    return [json.loads(line) for line in (Path("out") / f"{split}.jsonl").open(encoding="utf-8")]


def everything() -> dict[str, str]:
    """The first message of each written row → its split."""
    return {row["messages"][0]["content"]: split for split in rows.SPLITS for row in read(split)}


def test_rows_become_records_in_three_splits():
    results = prepare([question(n) for n in range(100)])
    assert results["rows"]["in"] == sum(results["splits"].values()) == 100
    (record,) = [row for row in read("train") + read("test") if row["group"] == "What is 7 plus 7?"]
    assert record["messages"] == [
        {"role": "user", "content": "What is 7 plus 7?"},
        {"role": "assistant", "content": "14"},
    ]
    assert len(record["id"]) == 16


def test_the_order_and_the_splits_do_not_depend_on_the_number_of_cores(monkeypatch):
    many = [question(n) for n in range(2500)]
    prepare(many)
    first = {path.name: path.read_bytes() for path in Path("out").iterdir()}
    monkeypatch.setattr("siftune.parallel.num_cores", lambda: 1)
    prepare()
    assert {path.name: path.read_bytes() for path in Path("out").iterdir()} == first


def test_adding_rows_moves_none():
    prepare([question(n) for n in range(100)])
    before = everything()
    prepare([question(n) for n in range(1000, 1400)] + [question(n) for n in range(100)])
    after = everything()
    assert all(after[asked] == split for asked, split in before.items())
    shares = Counter(after.values())
    assert 60 < shares["test"] < 140


def test_a_group_stays_together():
    told = [{**question(n), "topic": f"topic {n % 20}"} for n in range(200)]
    source = Source(source="local", columns={"group": "topic"})
    prepare(told, replace(DATA, sources=[source]))
    splits = {}
    for split in rows.SPLITS:
        for row in read(split):
            assert splits.setdefault(row["group"], split) == split
    assert len(splits) == 20


def test_faulty_rows_stop_the_stage_with_reasons_places_and_a_way_on():
    values = [question(n) for n in range(20)] + ["{broken", {"question": "q", "answer": ""}]
    with pytest.raises(UserError) as caught:
        prepare(values)
    said = str(caught.value)
    assert "2 of 22 rows cannot be used" in said
    assert "rows.jsonl:21" in said
    assert "rows.jsonl:22" in said
    assert "prepare.max_faulty (now 0)" in said
    listed = [json.loads(line) for line in Path("work/rejected.jsonl").read_text().splitlines()]
    assert [row["place"] for row in listed] == ["rows.jsonl:21", "rows.jsonl:22"]

    results = prepare(max_faulty=0.1)
    assert results["rows"] == {"in": 22, "kept": 20, "rejected": 2, "not_drawn": 0, "copies": 0}
    assert read("rejected")[0]["row"].strip() == "{broken"


def test_reasons_are_counted_the_same_when_rows_go_to_other_processes():
    lines = [f"What is {n}?,{n}" + (",too many" if n % 2 else "") for n in range(1000)]
    Path("rows.csv").write_text("\n".join(["question,answer", *lines]))
    results = prepare(data=replace(DATA, path="rows.csv"), max_faulty=0.6)
    assert results["rejected"] == {"wrong number of columns": 500}
    assert read("rejected")[0]["detail"]


def test_repeated_rows_are_kept_once_and_counted():
    results = prepare([question(n % 30) for n in range(60)])
    assert results["rejected"] == {"repeats another row": 30}
    assert read("rejected")[0]["detail"] == "rows.jsonl:1"


WORDS = [f"word{letter}" for letter in "abcdefghijklmn"]


def test_near_duplicates_are_found_by_their_words():
    long = " ".join(f"{word}{number}" for word in WORDS for number in range(4))
    values = [question(n) for n in range(30)]
    values += [{"question": f"{n} {long}", "answer": "a"} for n in range(3)]
    assert prepare(values, near_duplicates=0.9)["rejected"] == {"near duplicate of another row": 2}
    facts = json.loads(Path("out/facts.json").read_text())
    assert facts["near_duplicates"][0]["first"] == "rows.jsonl:31"
    assert prepare(near_duplicates=None)["rejected"] == {}


def test_a_row_that_another_phase_trains_too_is_no_duplicate():
    texts = [" ".join(f"{word}{n}{part}" for word in WORDS for part in "abcdef") for n in range(19)]
    told = [{"question": text, "answer": "yes"} for text in texts]
    again = [{"question": row["question"] + " now", "answer": row["answer"]} for row in told]
    write("folder/train.jsonl", told)
    write("folder/problems.jsonl", told + again)
    columns = {"prompt": "question", "answer": "answer"}
    sources = [
        Source(source="local", files="train.jsonl"),
        Source(source="local", files="problems.jsonl", format="problems", columns=columns),
    ]
    data = replace(DATA, path="folder", sources=sources)
    results = prepare(data=data, near_duplicates=0.9)
    assert results["rejected"] == {"near duplicate of another row": 19}
    twins = [row for row in read("rejected") if "problems" in row["place"]]
    assert len(twins) == 19


def named_splits(train: list, test: list) -> None:
    write("folder/training.jsonl", train)
    write("folder/test.jsonl", test)


FOLDER = replace(DATA, path="folder")


def test_a_training_row_that_contains_a_test_item_is_left_out():
    item = " ".join(WORDS)
    train = [question(n) for n in range(30)]
    leaking = {"question": f"Well then: {item} indeed?", "answer": "yes"}
    named_splits([*train, leaking], [{"question": f"So: {item}!", "answer": "no"}])
    results = prepare(data=FOLDER, leak_words=13)
    assert results["rejected"] == {"shares 13 words with a test item": 1}
    assert results["splits"]["test"] == 1
    facts = json.loads(Path("out/facts.json").read_text())
    (leak,) = facts["leaks"]
    assert leak["place"] == "training.jsonl:31"
    assert leak["shares_with"] == "test.jsonl:1"
    assert leak["words"] in item
    assert prepare(data=FOLDER, leak_words=15)["rejected"] == {}


def test_an_instruction_that_all_rows_share_is_no_leak():
    instruction = " ".join(WORDS)
    train = [{"instruction": instruction, "input": f"{n}", "output": "a"} for n in range(40)]
    test = [{"instruction": instruction, "input": f"{n}", "output": "a"} for n in range(50, 60)]
    named_splits(train, test)
    assert prepare(data=FOLDER, leak_words=13)["rejected"] == {}


def test_benchmark_items_in_files_are_held_out():
    item = " ".join(WORDS)
    write("eval/held_out/README.md", ["no item"])
    write("rows.jsonl", [question(n) for n in range(60)])
    write("leaking.jsonl", [{"question": f"n {item}", "answer": "a"}])
    leaking = Source(source="local", files="leaking.jsonl", split="train")
    data = replace(DATA, path=".", sources=[Source(source="local", files="rows.jsonl"), leaking])
    assert prepare(data=data, leak_words=13)["rejected"] == {}
    write("eval/held_out/bench.jsonl", [{"problem": item, "solution": "x"}])
    assert prepare(data=data, leak_words=13)["rejected"] == {"shares 13 words with a test item": 1}
    facts = json.loads(Path("out/facts.json").read_text())
    assert facts["leaks"][0]["shares_with"] == "eval/held_out/bench.jsonl:1"


def test_a_held_out_row_stays_and_its_twin_goes():
    long = " ".join(f"{word}{number}" for word in WORDS for number in range(4))
    train = [*(question(n) for n in range(30)), {"question": f"7 {long}", "answer": "a"}]
    named_splits([*train, question(99)], [{"question": f"8 {long}", "answer": "a"}])
    write("folder/test.jsonl", [{"question": f"8 {long}", "answer": "a"}, question(99)])
    results = prepare(data=replace(DATA, path="folder"), near_duplicates=0.9)
    assert results["splits"]["test"] == 2
    assert set(results["rejected"]) == {
        "near duplicate of another row",
        "same prompt as a held-out row",
    }


def test_a_source_that_is_for_training_stays_there():
    write("a.jsonl", [question(n) for n in range(60)])
    write("b.jsonl", [question(n) for n in range(100, 160)])
    sources = [
        Source(source="local", files="a.jsonl", split="train"),
        Source(source="local", files="b.jsonl"),
    ]
    prepare(data=replace(DATA, path=".", sources=sources))
    assert {everything()[question(n)["question"]] for n in range(60)} == {"train"}


def test_numbers_of_any_size_and_the_order_of_keys_survive():
    tool = {"type": "function", "function": {"name": "f", "b": 10**30, "a": 1}}
    values = [
        {
            "messages": [
                {"role": "user", "content": f"{n}?"},
                {"role": "assistant", "content": "yes"},
            ],
            "tools": [tool],
        }
        for n in range(30)
    ]
    prepare(values)
    (first, *_) = read("train")
    assert json.dumps(first["tools"]) == json.dumps([tool])
    line = json.dumps(first).encode()
    assert files.parse(line)["tools"][0]["function"]["b"] == 10**30


def test_the_same_prompt_in_two_files_stays_in_the_test():
    named_splits([question(n) for n in range(30)], [{**question(3), "answer": "another"}])
    results = prepare(data=FOLDER)
    assert results["rejected"] == {"same prompt as a held-out row": 1}
    assert everything()["What is 3 plus 3?"] == "test"


def test_files_of_three_splits_are_taken_as_they_are():
    named_splits([question(n) for n in range(30)], [question(n) for n in range(100, 105)])
    write("folder/validation.jsonl", [question(n) for n in range(200, 203)])
    splits = prepare(data=FOLDER)["splits"]
    assert splits == {"train": 30, "validation": 3, "test": 5}


def test_a_draw_is_the_seeds_and_spread_over_the_file():
    values = [question(n) for n in range(400)]
    results = prepare(values, replace(DATA, num_examples=100))
    assert results["rows"]["not_drawn"] == 300
    drawn = set(everything())
    assert len(drawn) == 100
    prepare(None, replace(DATA, num_examples=100))
    assert set(everything()) == drawn
    prepare(None, replace(DATA, num_examples=100, seed=2))
    assert set(everything()) != drawn
    late = sum(asked in drawn for asked in (row["question"] for row in values[200:]))
    assert 25 < late < 75


def test_weights_copy_training_rows_only():
    write("a.jsonl", [question(n) for n in range(100)])
    write("b.jsonl", [question(n) for n in range(1000, 1100)])
    sources = [
        Source(source="local", files="a.jsonl", weight=2.5),
        Source(source="local", files="b.jsonl", num_examples=10),
    ]
    results = prepare(data=replace(DATA, path=".", sources=sources))
    times = Counter(row["messages"][0]["content"] for row in read("train"))
    assert {times[asked] for asked in times if asked in everything()} <= {1, 2, 3}
    from_a = [
        number for asked, number in times.items() if len(asked) < len("What is 1000 plus 1000?")
    ]
    assert set(from_a) == {2, 3}
    assert results["rows"]["not_drawn"] == 90
    assert max(Counter(row["id"] for row in read("test")).values()) == 1


def test_mojibake_is_reported_with_its_repair_and_repaired_when_asked():
    garbled = "l’élève a réussi".encode().decode("windows-1252")
    values = [*(question(n) for n in range(30)), {"question": garbled, "answer": "oui"}]
    assert prepare(values)["warnings"] == {"mojibake": 1}
    facts = json.loads(Path("out/facts.json").read_text())
    (example,) = facts["examples"]["mojibake"]
    assert (example["text"], example["repaired"]) == (garbled, "l’élève a réussi")
    assert garbled in everything()
    prepare(repair_mojibake=True)
    assert "l’élève a réussi" in everything()


def test_variant_characters_are_a_fact_and_normalised_when_asked():
    values = [*(question(n) for n in range(30)), {"question": "夫子何爲者", "answer": "栖栖"}]
    assert prepare(values)["scripts"]["traditional"] > 0
    facts = json.loads(Path("out/facts.json").read_text())
    assert {"found": "爲", "standard": "為", "count": 1} in facts["variants"]
    assert "夫子何爲者" in everything()
    results = prepare(variants="taiwan")
    assert results["warnings"] == {"variant characters, normalised": 1}
    assert "夫子何為者" in everything()


def test_a_teachers_phrase_is_found():
    values = [
        {"question": f"第{n}題?", "answer": f"根據參考答案,這一題的結果是 {n * 7}。"}
        for n in range(60)
    ]
    prepare(values)
    (phrase, *_) = json.loads(Path("out/facts.json").read_text())["phrases"]
    assert "參考答案" in phrase["phrase"]
    assert phrase["suspicious"]
    assert phrase["share"] == 1.0


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("<think>never closed", "unclosed reasoning tag"),
        ("bell \x07", "control character"),
    ],
)
def test_texts_that_cannot_be_trained_on_are_rejected(answer, reason):
    values = [*(question(n) for n in range(30)), {"question": "q?", "answer": answer}]
    assert prepare(values, max_faulty=0.5)["rejected"] == {reason: 1}


def test_no_row_at_all_and_too_few_rows_are_clear_errors():
    with pytest.raises(UserError, match=r"rows\.jsonl|no row"):
        prepare([""])
    with pytest.raises(UserError, match=r"no row falls into .*: 1 rows were kept"):
        prepare([question(1)])


def test_rows_of_unknown_meaning_say_which_key_tells():
    with pytest.raises(UserError, match=r"rows\.jsonl:1: .*columns a, b.*data\.sources\.format"):
        prepare([{"a": 1, "b": 2}])


# Rows for DPO, KTO and GRPO: the row, the columns, and what its record holds beside the question.
TO_PREFER = {
    "pairs": (
        lambda n: {"prompt": f"What is {n}?", "chosen": f"It is {n}.", "rejected": f"Not {n}!"},
        {}, lambda n: {"chosen": f"It is {n}.", "rejected": f"Not {n}!"},
    ),
    "UltraFeedback": (
        lambda n: {
            "prompt": f"What is {n}?", "score_chosen": 8.0, "score_rejected": 3.0,
            **{
                name: [
                    {"role": "user", "content": f"What is {n}?"},
                    {"role": "assistant", "content": said},
                ]
                for name, said in (
                    ("messages", f"It is {n}."), ("chosen", f"It is {n}."),
                    ("rejected", f"Not {n}!"),
                )
            },
        },
        {}, lambda n: {"chosen": f"It is {n}.", "rejected": f"Not {n}!"},
    ),
    "labels": (
        lambda n: {"prompt": f"What is {n}?", "completion": f"It is {n}.", "label": n % 2 == 0},
        {}, lambda n: {"completion": f"It is {n}.", "label": n % 2 == 0},
    ),
    "GSM8K for rewards": (
        lambda n: {"question": f"What is {n}?", "answer": f"{n} = {n}\n#### {n}", "level": n},
        {"answer": "answer"},
        lambda n: {"answer": f"{n} = {n}\n#### {n}", "fields": {"level": n}},
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", TO_PREFER)
def test_rows_to_be_preferred_labelled_or_rewarded(kind):
    row, columns, expected = TO_PREFER[kind]
    data = replace(DATA, sources=[Source(source="local", columns=columns)])
    results = prepare([row(n) for n in range(60)] + [row(7)], data=data, near_duplicates=0.9)
    assert results["rejected"] == {"repeats another row": 1}
    records = {row["group"]: row for split in rows.SPLITS for row in read(split)}
    assert len(records) == 60
    for number in range(60):
        record = records[f"What is {number}?"]
        messages = [{"role": "user", "content": f"What is {number}?"}]
        rest = {key: value for key, value in record.items() if key not in ("id", "group")}
        assert rest == {"messages": messages, **expected(number)}


@pytest.mark.parametrize("kind", ["pairs", "labels"])
def test_what_is_wrong_with_either_answer_is_seen(kind):
    row, _, _ = TO_PREFER[kind]
    last = [*row(60)][1 if kind == "labels" else 2]  # completion, or rejected
    values = [*(row(n) for n in range(60)), {**row(60), last: "<think>never closed"}]
    assert prepare(values, max_faulty=0.5)["rejected"] == {"unclosed reasoning tag": 1}
    values[-1] = {**row(60), last: "夫子何爲者"}
    assert prepare(values, variants="taiwan")["warnings"] == {"variant characters, normalised": 1}
