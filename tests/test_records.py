import json
import re
from dataclasses import replace

import pyarrow
import pyarrow.parquet
import pytest

from siftune import records
from siftune.config import Data, Prepare
from siftune.stage import UserError

DATA = Data(
    name="d", source="local", revision=None, path="x", prompt="question", response="answer",
    group=None, num_examples=None, seed=0,
)  # fmt: skip


def write(path, *lines):
    path.write_bytes(
        b"\n".join(line if isinstance(line, bytes) else line.encode() for line in lines)
    )
    return path


def outcomes(rows, data=DATA):
    raw = [records.RawRow(row, f"f:{number}") for number, row in enumerate(rows, start=1)]
    return list(records.canonical(raw, data))


def test_a_row_becomes_a_conversation():
    (record,) = outcomes([{"question": " 1+1? ", "answer": "2\n", "other": None}])
    assert record["messages"] == [
        {"role": "user", "content": "1+1?"},
        {"role": "assistant", "content": "2"},
    ]
    assert record["group"] == "1+1?"


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"question": "q"}, r"no column 'answer' \(data\.response\); it has question"),
        ({"question": "q", "answer": None}, "column 'answer' is no text"),
        ({"question": "q", "answer": 2}, "column 'answer' is no text"),
        ({"question": "  \n", "answer": "a"}, "column 'question' is empty"),
        ({"question": "same", "answer": "a"}, "same conversation as f:1"),
    ],
)
def test_a_bad_row_is_rejected_with_its_reason(row, reason):
    good = {"question": "same", "answer": "a"}
    kept, rejected = outcomes([good, row])
    assert kept["messages"][1]["content"] == "a"
    assert re.search(reason, rejected.reason)
    assert (rejected.place, rejected.row) == ("f:2", row)


def test_a_named_group_must_be_there():
    data = replace(DATA, group="topic")
    kept, rejected = outcomes(
        [{"question": "q", "answer": "a", "topic": "t"}, {"question": "q2", "answer": "a"}], data
    )
    assert kept["group"] == "t"
    assert "data.group" in rejected.reason


def test_rows_in_are_kept_plus_rejected():
    rows = [{"question": str(n % 7), "answer": "a" * (n % 3)} for n in range(100)]
    assert len(outcomes(rows)) == 100


def test_adding_rows_moves_no_row_and_shares_are_kept():
    shares = Prepare(validation=0.1, test=0.3)
    splits = [records.split_of(f"group {n}", shares) for n in range(5000)]
    assert abs(splits.count("test") / 5000 - 0.3) < 0.02
    assert abs(splits.count("validation") / 5000 - 0.1) < 0.02

    assert [records.split_of(f"group {n}", shares) for n in range(8)] == splits[:8]
    more_training = Prepare(validation=0.1, test=0.2)
    moved = {
        (before, records.split_of(f"group {n}", more_training)) for n, before in enumerate(splits)
    }
    assert ("train", "test") not in moved


def test_files_of_every_format_are_read_in_order(tmp_path):
    row = {"question": "為", "answer": "a"}
    write(tmp_path / "a.jsonl", json.dumps(row), "", json.dumps(row, ensure_ascii=False))
    write(tmp_path / "b.json", json.dumps([row]))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([row]), tmp_path / "c.parquet")
    write(tmp_path / "README.md", "not data")
    read = list(records.read(tmp_path))
    assert [raw.values for raw in read] == [row] * 4
    assert [raw.place for raw in read] == ["a.jsonl:1", "a.jsonl:3", "b.json#1", "c.parquet#1"]


@pytest.mark.parametrize(
    ("name", "lines", "message"),
    [
        ("x.jsonl", ['{"a": 1}', '{"a": '], r"x\.jsonl:2: not JSON"),
        ("x.jsonl", ["[1]"], r"x\.jsonl:1: a line must hold one JSON object"),
        ("x.jsonl", ['{"a": "é"}'.encode("latin-1")], r"x\.jsonl:1: not UTF-8"),
        ("x.jsonl", ["[" * 100_000], r"x\.jsonl:1: not JSON"),
        ("x.json", ['{"a": 1}'], r"x\.json: must hold a list"),
        ("x.json", ["[1]"], r"x\.json: row 1 is no JSON object"),
        ("x.csv", ["a,b"], r"none of \.jsonl, \.json, \.parquet"),
    ],
)
def test_a_file_that_cannot_be_read_is_named_with_its_line(tmp_path, name, lines, message):
    with pytest.raises(UserError, match=message):
        list(records.read(write(tmp_path / name, *lines)))


def test_a_folder_without_data_is_an_error(tmp_path):
    with pytest.raises(UserError, match=r"holds no \.jsonl"):
        list(records.read(tmp_path))
