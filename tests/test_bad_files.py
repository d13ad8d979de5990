"""Bad files and made-up records: each row is used, or rejected with its place and a reason."""

import csv
import gzip
import io
import json
import random
from collections import Counter

import pyarrow
import pyarrow.parquet
import pytest

from siftune.data import containers, formats
from siftune.data.faults import Fault
from siftune.stage import UserError

TAGS = ("<think>", "</think>")
GOOD = b'{"question": "q", "answer": "a"}\n'
MIB = 2**20


def outcomes(path):
    """(place, "" or the reason of the rejection) of each row, as preparation would have it."""
    row_format = None
    found = []
    for row in containers.read(path, root=path.parent):
        reason = ""
        if isinstance(row, containers.Unreadable):
            reason = row.fault.reason
            (row.text + str(row.fault)).encode()
        else:
            row_format = row_format or formats.detect(row.values, {}) or "columns"
            try:
                check_record(formats.convert(row.values, row_format, {}, TAGS)[0])
            except Fault as fault:
                reason = fault.reason
                str(fault).encode()
        found.append((row.place, reason))
    assert len({place for place, _ in found}) == len(found)
    return found


def check_record(record):
    """What everything that follows relies on."""
    json.dumps(record, ensure_ascii=False, allow_nan=False).encode()
    assert isinstance(record["group"], str)
    texts = [record[key] for key in ("text", "chosen", "rejected", "answer") if key in record]
    for message in record.get("messages", []):
        assert message["role"] in ("system", "user", "assistant", "tool")
        texts.append(message["content"] or ("a call" if message.get("tool_calls") else ""))
    assert texts
    for text in texts:
        assert isinstance(text, str)
        assert text == text.strip() != ""
        assert "\0" not in text


def reasons(path):
    return [reason for _, reason in outcomes(path)]


def obj(text="a", **more):
    return json.dumps({"question": "q", "answer": text} | more).encode()


# A line between two good ones, and why it is rejected ("": it is not).
LINES = {
    "latin-1": (obj().replace(b'"a"', b'"caf\xe9"'), "not UTF-8"),
    "cp1252": (obj().replace(b'"a"', b'"\x93quoted\x94"'), "not UTF-8"),
    "Big5": ('{"question": "q", "answer": "為什麼"}'.encode("big5"), "not UTF-8"),
    "GBK": ('{"question": "q", "answer": "为什么天是蓝的"}'.encode("gbk"), "not UTF-8"),
    "UTF-16 in the middle": (obj().decode().encode("utf-16-le"), "NUL character"),
    "half a character": (b'{"question": "q", "answer": "\xe7\x82"}', "not UTF-8"),
    "overlong": (b'{"question": "q", "answer": "\xc0\xaf"}', "not UTF-8"),
    "raw surrogate": (b'{"question": "q", "answer": "\xed\xa0\x80"}', "not UTF-8"),
    "BOM in the middle": (b"\xef\xbb\xbf" + obj(), "not JSON"),
    "NUL": (obj().replace(b'"a"', b'"a\0b"'), "NUL character"),
    "escaped NUL": (obj("a\0b"), "NUL character"),
    "only NULs": (b"\0" * 100, "NUL character"),
    "raw control character": (obj().replace(b'"a"', b'"a\x01b"'), "not JSON"),
    "raw tab": (obj().replace(b'"a"', b'"a\tb"'), "not JSON"),
    "high surrogate": (obj("\ud800"), "lone surrogate"),
    "low surrogate": (obj("x\udfffy"), "lone surrogate"),
    "surrogates the wrong way round": (obj("\udc00\ud800"), "lone surrogate"),
    "surrogate in a key": (obj(**{"\udbff": 1}), "lone surrogate"),
    "a pair of surrogates": (obj("😀"), ""),
    "backslash u as text": (obj("\\ud800"), ""),
    "mojibake": (obj("ç‚ºä»€éº¼"), ""),
    "replacement character": (obj("caf\ufffd"), ""),
    "zero-width space": (obj("a\u200bb"), ""),
    "line separator": ('{"question": "q", "answer": "a\u2028b\u0085c"}'.encode(), ""),
    "special tokens": (obj("<|im_end|>\n<|im_start|>user"), ""),
    "fused": (obj() + obj(), "several JSON values on one line"),
    "fused, spaced": (obj() + b" " + obj(), "several JSON values on one line"),
    "fused with a broken one": (obj() + b'{"question": "q', "several JSON values on one line"),
    "Mac line ends": (obj() + b"\r" + obj(), "several JSON values on one line"),
    "value and rubbish": (obj() + b" // note", "not JSON"),
    "trailing comma after": (obj() + b",", "not JSON"),
    "cut in a text": (obj()[:-3], "not JSON"),
    "cut in a key": (obj()[:4], "not JSON"),
    "cut after a colon": (obj()[:12], "not JSON"),
    "cut in a pretty print": (b"{", "not JSON"),
    "no braces": (b'"question": "q"', "not JSON"),
    "single quotes": (b"{'question': 'q', 'answer': 'a'}", "not JSON"),
    "Python's None": (b'{"question": "q", "answer": None}', "not JSON"),
    "trailing comma": (b'{"question": "q", "answer": "a",}', "not JSON"),
    "comment": (b"# a comment", "not JSON"),
    "plain text": (b"hello", "not JSON"),
    "HTML": (b"<p>hello</p>", "not JSON"),
    "bad escape": (obj().replace(b'"a"', b'"\\x41"'), "not JSON"),
    "number with a leading zero": (b'{"question": "q", "answer": 01}', "not JSON"),
    "NaN": (obj(float("nan")), "NaN or Infinity"),
    "Infinity": (obj(x=float("inf")), "NaN or Infinity"),
    "-Infinity, deep inside": (obj(x=[{"y": [float("-inf")]}]), "NaN or Infinity"),
    "a number beyond a float": (obj(x="N").replace(b'"N"', b"1e999"), "NaN or Infinity"),
    "a number of 5000 digits": (obj(x="N").replace(b'"N"', b"1" * 5000), "a number too long"),
    "a number of 40 digits": (obj(x="N").replace(b'"N"', b"1" * 40), ""),
    "key twice": (b'{"question": "q", "answer": "a", "answer": "b"}', "key twice in one object"),
    "the same twice": (b'{"question": "q", "question": "q"}', "key twice in one object"),
    "escaped key twice": (
        b'{"question": "q", "answer": "a", "\\u0061nswer": "b"}', "key twice in one object",
    ),
    "key twice inside": (b'{"question": "q", "x": [{"y": 1, "y": 2}]}', "key twice in one object"),
    "a list": (b'["q", "a"]', "not a JSON object"),
    "a text": (b'"q"', "not a JSON object"),
    "a number": (b"12", "not a JSON object"),
    "null": (b"null", "not a JSON object"),
    "true": (b"true", "not a JSON object"),
    "an empty object": (b"{}", "no column 'question' (data.sources.columns.prompt)"),
    "a list too deep for Python": (b"[" * 100_000, "nested too deeply"),
    "objects too deep for Python": (b'{"a":' * 100_000, "nested too deeply"),
    "deep, and whole": (b'{"a":' * 300 + b"1" + b"}" * 300, "nested too deeply"),
    "deep lists": (obj(x="D").replace(b'"D"', b"[" * 101 + b"]" * 101), "nested too deeply"),
    "not so deep": (obj(x="D").replace(b'"D"', b"[" * 90 + b"]" * 90), ""),
    "wide": (obj(x=[[]] * 500), ""),
    "2 MB": (obj("x" * 2_000_000), ""),
    "no answer": (b'{"question": "q"}', "no column 'answer' (data.sources.columns.response)"),
    "null answer": (obj(None), "column 'answer' is no text"),
    "empty answer": (obj(" \\n "[:1]), "column 'answer' is empty"),
    "an answer in the prompt's column": (obj("a", question=["q"]), "a message is no object"),
}  # fmt: skip


@pytest.mark.parametrize("name", LINES)
def test_a_bad_line_spoils_only_itself(name, tmp_path):
    line, reason = LINES[name]
    path = tmp_path / "x.jsonl"
    path.write_bytes(GOOD + line + b"\n" + GOOD)
    assert outcomes(path) == [("x.jsonl:1", ""), ("x.jsonl:2", reason), ("x.jsonl:3", "")]


def user(text="q", role="user"):
    return {"role": role, "content": text}


def assistant(text="a", role="assistant"):
    return {"role": role, "content": text}


SOUND = {
    "messages": {"messages": [user(), assistant()]},
    "sharegpt": {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
    "alpaca": {"instruction": "q", "input": "", "output": "a"},
    "preference": {"prompt": "q", "chosen": "a", "rejected": "b"},
    "labelled": {"prompt": "q", "completion": "a", "label": True},
    "text": {"text": "x"},
    "input-output": {"input": "q", "output": "a"},
    "columns": {"question": "q", "answer": "a", "system": "s"},
}

# Format, what is different from the sound row, why it is rejected.
ROWS = {
    "unknown role": ("messages", [user(), assistant(role="narrator")], "unknown role"),
    "capitalised role": ("messages", [user(role="User"), assistant(role="ASSISTANT")], ""),
    "missing role": ("messages", [{"content": "q"}, assistant()], "a message without a role"),
    "null role": ("messages", [user(role=None), assistant()], "a message without a role"),
    "twice in a row": ("messages", [user(), user(), assistant()], "same role twice in a row"),
    "assistant first": ("messages", [assistant(), user(), assistant()], "assistant speaks first"),
    "system late": (
        "messages", [user(), user("s", role="system"), assistant()],
        "system message not at the start",
    ),
    "ends with a question": ("messages", [user(), assistant(), user()], "ends without an answer"),
    "empty content": ("messages", [user(), assistant("")], "an empty turn"),
    "blank content": ("messages", [user(" \n"), assistant()], "an empty turn"),
    "null content": ("messages", [user(), assistant(None)], "content is no text"),
    "content of a number": ("messages", [user(1), assistant()], "content is no text"),
    "an image": (
        "messages", [user([{"type": "image"}]), assistant()], "content that is not only text",
    ),
    "a tool's word unasked": (
        "messages", [user(), user("1", role="tool"), assistant()], "tool result without a call",
    ),
    "no messages": ("messages", [], "no messages"),
    "messages null": ("messages", None, "messages: not a list"),
    "messages of text": ("messages", ["q", "a"], "a message is no object"),
    "messages in Python": ("messages", "[{'role': 'user'}]", "messages: not JSON"),
    "unknown from": (
        "sharegpt", [{"from": "alien", "value": "q"}], "unknown role",
    ),
    "missing value": (
        "sharegpt", [{"from": "human"}, {"from": "gpt", "value": "a"}], "content is no text",
    ),
    "empty value": (
        "sharegpt", [{"from": "human", "value": ""}], "an empty turn",
    ),
    "gpt first": ("sharegpt", [{"from": "gpt", "value": "a"}], "assistant speaks first"),
    "human last": ("sharegpt", [{"from": "human", "value": "q"}], "ends without an answer"),
    "alpaca without output": (
        "alpaca", {"output": ...}, "no column 'output' (data.sources.columns.response)",
    ),
    "alpaca, null output": ("alpaca", {"output": None}, "column 'output' is no text"),
    "alpaca, empty output": ("alpaca", {"output": "\n"}, "column 'output' is empty"),
    "alpaca, no prompt": ("alpaca", {"instruction": " "}, "the prompt is empty"),
    "alpaca, output of parts": ("alpaca", {"output": {"a": 1}}, "column 'output' is no text"),
    "alpaca, history": ("alpaca", {"history": "q"}, "history: not JSON"),
    "alpaca, history of one": ("alpaca", {"history": [["q"]]},
                               "history: not a list of [question, answer]"),
    "equal pair": ("preference", {"rejected": " a"}, "chosen and rejected are the same"),
    "no rejected": ("preference", {"rejected": ...},
                    "no column 'rejected' (data.sources.columns.rejected)"),
    "null rejected": ("preference", {"rejected": None}, "chosen or rejected is no text"),
    "empty chosen": ("preference", {"chosen": ""}, "chosen or rejected is empty"),
    "empty text": ("text", {"text": ""}, "the text is empty"),
    "null text": ("text", {"text": None}, "the text is no text"),
}  # fmt: skip


@pytest.mark.parametrize("ending", ["jsonl", "json"])
@pytest.mark.parametrize("name", ROWS)
def test_a_bad_row_spoils_only_itself(name, ending, tmp_path):
    row_format, change, reason = ROWS[name]
    sound = SOUND[row_format]
    changed = change if isinstance(change, dict) else {next(iter(sound)): change}
    bad = {key: value for key, value in (sound | changed).items() if value is not ...}
    path = tmp_path / f"x.{ending}"
    rows = [sound, bad, sound]
    path.write_text(json.dumps(rows) if ending == "json" else "\n".join(map(json.dumps, rows)))
    assert reasons(path) == ["", reason, ""]


def parquet(columns):
    sink = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table(columns), sink)
    return sink.getvalue()


def arrow(columns):
    sink = io.BytesIO()
    table = pyarrow.table(columns)
    with pyarrow.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue()


QA_COLUMNS = {"question": ["q"] * 500, "answer": [f"a {number}" for number in range(500)]}
TWICE = pyarrow.table([pyarrow.array(["q"])] * 2, names=["a", "a"])

# File name, bytes, what the error says; nothing of the file may be used in silence.
FILES = [
    ("utf16.jsonl", (GOOD * 3).decode().encode("utf-16"), "is UTF-16.*iconv -f UTF-16 -t UTF-8"),
    ("utf16be.jsonl", b"\xfe\xff" + GOOD.decode().encode("utf-16-be"), "is UTF-16"),
    ("utf16-without-bom.csv", "question,answer\n".encode("utf-16-le"), "is UTF-16"),
    ("utf16be-without-bom.json", GOOD.decode().encode("utf-16-be"), "is UTF-16"),
    ("utf32.jsonl", GOOD.decode().encode("utf-32"), "is UTF-32"),
    ("utf32-without-bom.jsonl", GOOD.decode().encode("utf-32-le"), "is UTF-32"),
    ("utf16.txt", "some text".encode("utf-16"), "is UTF-16"),
    ("empty.jsonl", b"", "holds no rows"),
    ("empty.json", b"", "holds no rows"),
    ("empty.csv", b"", "holds no rows"),
    ("empty.parquet", b"", "cannot be read as Parquet"),
    ("empty.arrow", b"", "cannot be read as Arrow"),
    ("empty.jsonl.gz", gzip.compress(b""), "holds no rows"),
    ("only-bom.jsonl", b"\xef\xbb\xbf", "holds no rows"),
    ("blank.jsonl", b"\n \n\r\n\t", "holds no rows"),
    ("blank.json", b"\n \n\r\n\t", "holds no rows"),
    ("no-rows.json", b"[ ]", "holds no rows"),
    ("no-rows.csv", b"question,answer\r\n", "holds no rows"),
    ("no-rows.parquet", parquet({"a": pyarrow.array([], "string")}), "holds no rows"),
    ("no-rows.arrow", arrow({"a": pyarrow.array([], "string")}), "holds no rows"),
    ("cut.json", b"[" + GOOD + b",\n" + GOOD[:12], r"cut\.json:3: not JSON.*the file ends there"),
    ("open.json", b"[" + GOOD, r"open\.json:2: not JSON: the file ends in place of ',' or '\]'"),
    ("comma.json", b"[" + GOOD + b",]", r"comma\.json:2: not JSON: Expecting value, column 2"),
    ("no-comma.json", b"[" + GOOD + GOOD + b"]", r"no-comma\.json:2: not JSON: '\{' in place of"),
    ("two-arrays.json", b"[" + GOOD + b"]\n[" + GOOD + b"]", r"json:3: not JSON: a second value"),
    ("two-objects.json", b'{\n"question": 1}\n{\n"b": 2}', r"json:3: not JSON: a second value"),
    ("two-lists.json", b'{"a": [{"b": 1}], "c": [{"d": 1}]}', "two lists of objects, 'a' and 'c'"),
    ("text.json", b'"hello"', "not JSON: '\"' in place of '\\['"),
    ("words.json", b"hello", "not JSON: 'h' in place of"),
    ("key.json", b'{"a": [1], b: 2}', "not JSON: 'b' in place of '\"'"),
    ("colon.json", b'{"a" 1}', "not JSON: '1' in place of ':'"),
    ("broken.json", b'[{"a": tru}]', "not JSON: Expecting value, column 8"),
    ("deep.json", b"[" * 100_000, "not JSON: nested too deeply"),
    ("digits.json", b'[{"a": ' + b"1" * 5000 + b"}]", "not JSON: a number too long"),
    ("semicolons.csv", b"question;answer\nq;a\n", "one column, 'question;answer'"),
    ("tabs.csv", b"question\tanswer\nq\ta\n", "one column"),
    ("commas.tsv", b"question,answer\nq,a\n", "one column"),
    ("twice.csv", b"a,b,a\n1,2,3\n", "a column twice: 'a'"),
    ("quote.csv", b'"question,answer\nq,a\n', r"quote\.csv:1: the header cannot be read"),
    ("latin-1-header.csv", b"caf\xe9,answer\nq,a\n", "the header cannot be read: not UTF-8"),
    ("mac.csv", b"question,answer\rq,a\r", "the header cannot be read"),
    ("twice.parquet", None, "a column twice: 'a'"),
    ("text.parquet", GOOD * 20, "cannot be read as Parquet"),
    ("text.arrow", GOOD * 20, "cannot be read as Arrow"),
    ("cut.parquet", parquet(QA_COLUMNS)[:-30], "cannot be read as Parquet"),
    ("no-beginning.parquet", parquet(QA_COLUMNS)[300:], "cannot be read as Parquet"),
    ("cut.arrow", arrow(QA_COLUMNS)[:-600], "cannot be read as Arrow"),
    ("rubbish.arrow", b"\xff\xff\xff\xff\x00\x01\x02\x03" * 9, "cannot be read as Arrow"),
    ("parquet.jsonl", parquet(QA_COLUMNS), "is a Parquet file. Please name it .parquet"),
    ("arrow.json", b"ARROW1\0\0rest", "is an Arrow file. Please name it .arrow"),
    ("zip.jsonl", b"PK\x03\x04rest", "is a zip archive or an Excel sheet. Please unpack it"),
    ("sheet.csv", b"PK\x03\x04rest", "Excel sheet.*save it as CSV"),
    ("bzip2.jsonl", b"BZh91AY&SYrest", "is packed in another way than gzip or zstd"),
    ("xz.jsonl", b"\xfd7zXZ\0rest", "is packed in another way than gzip or zstd"),
    ("pointer.parquet", b"version https://git-lfs.github.com/spec/v1\noid", "Git LFS pointer"),
    ("login.jsonl", b"<!DOCTYPE html><html></html>", "is a web page"),
    ("login.parquet", b"\n<html><head>", "is a web page"),
    ("paper.txt", b"%PDF-1.7 rest", "is a PDF file"),
    ("twice.jsonl.gz", gzip.compress(gzip.compress(GOOD)), "is compressed twice"),
    ("cut.jsonl.gz", gzip.compress(GOOD * 9)[:-4], "cannot be read after its beginning"),
    ("flipped.jsonl.gz", gzip.compress(GOOD * 9)[:-6] + b"\0" * 6, "cannot be read after"),
    ("cut.json.zst", b"\x28\xb5\x2f\xfd\x04", "cannot be read after its beginning"),
    ("tail.jsonl.gz", gzip.compress(GOOD) + b"rubbish", "cannot be read after"),
    ("rubbish.jsonl.zst", b"\x28\xb5\x2f\xfdrubbish" * 3, "cannot be read after its beginning"),
    ("unknown.xlsx", b"PK", r"unknown\.xlsx ends in none of \.jsonl"),
    ("folder.jsonl", ..., "cannot be read after its beginning"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "data", "message"), FILES, ids=[name for name, *_ in FILES])
def test_a_file_that_is_wrong_as_a_whole_is_refused(name, data, message, tmp_path):
    path = tmp_path / name
    if data is None:
        pyarrow.parquet.write_table(TWICE, path)
    elif data is ...:
        path.mkdir()
    else:
        path.write_bytes(data)
    with pytest.raises(UserError, match=message) as caught:
        outcomes(path)
    assert name in str(caught.value)


HEAD = b"question,answer\n"

# File name, bytes, place and reason of each row.
TABLES = [
    ("cells.csv", HEAD + b"q,a\nq\nq,a,b\nq,a\n", [
        (2, ""), (3, "wrong number of columns"), (4, "wrong number of columns"), (5, ""),
    ]),
    ("never-closed.csv", HEAD + b'q,"a\nq,b\nq,c\n', [(2, "broken quoting"), (3, ""), (4, "")]),
    ("closed-late.csv", HEAD + b'q,"a\nq,"b"\nq,c\n', [(2, "broken quoting"), (3, ""), (4, "")]),
    ("after-quote.csv", HEAD + b'q,"a"b\nq,c\n', [(2, "broken quoting"), (3, "")]),
    ("quote-at-end.csv", HEAD + b'q,a\nq,"', [(2, ""), (3, "broken quoting")]),
    ("latin-1.csv", HEAD + b"q,caf\xe9\nq,a\n", [(2, "not UTF-8"), (3, "")]),
    ("latin-1-inside.csv", HEAD + b'q,"a\ncaf\xe9"\nq,a\n', [(2, "not UTF-8"), (4, "")]),
    ("nul.csv", HEAD + b"q,a\0b\nq,a\n", [(2, "NUL character"), (3, "")]),
    ("empty-cells.csv", HEAD + b",\nq,\nq,a\n", [
        (2, "the prompt is empty"), (3, "column 'answer' is empty"), (4, ""),
    ]),
    ("blank-lines.csv", HEAD + b"\n  \nq,a\n\n", [(4, "")]),
    ("bom.csv", b"\xef\xbb\xbf" + HEAD + b"q,a\n", [(2, "")]),
    ("long-cell.csv", HEAD + b'q,"' + b"x\n" * 200_000 + b'"\nq,a\n', [(2, ""), (200_003, "")]),
    ("return.csv", HEAD + b"q,a\rb\nq,a\n", [(2, "broken quoting"), (3, "")]),
    ("tabs.tsv", b"question\tanswer\nq\ta\nq\n", [(2, ""), (3, "wrong number of columns")]),
    ("one.jsonl", GOOD, [(1, "")]),
    ("cut-off.jsonl", GOOD + GOOD[:20], [(1, ""), (2, "truncated last line")]),
    ("all-cut-off.jsonl", GOOD[:9], [(1, "truncated last line")]),
    ("no-newline.jsonl", GOOD + b"rubbish", [(1, ""), (2, "not JSON")]),
    ("array.jsonl", b"[" + GOOD[:-1] + b",\n" + GOOD + b"]", [
        (1, "not JSON"), (2, ""), (3, "not JSON"),
    ]),
    ("pretty.jsonl", b'{\n"question": "q"\n}', [(1, "not JSON"), (2, "not JSON"), (3, "not JSON")]),
    ("bom-twice.jsonl", b"\xef\xbb\xbf" * 2 + GOOD + GOOD, [(1, "not JSON"), (2, "")]),
    ("late.json", GOOD + b"\nrubbish\n" + GOOD, [(1, ""), (3, "not JSON"), (4, "")]),
    ("all-bad.jsonl", b"a\nb\n", [(1, "not JSON"), (2, "not JSON")]),
    ("latin-1.txt", "für die ganze Datei".encode("latin-1"), [(1, "not UTF-8")]),
    ("nul.txt", b"some\0text", [(1, "NUL character")]),
    ("blank.txt", b"\n\n", [(1, "empty file")]),
]  # fmt: skip


@pytest.mark.parametrize(("name", "data", "expected"), TABLES, ids=[name for name, *_ in TABLES])
def test_what_can_be_read_of_a_bad_file_is_read(name, data, expected, tmp_path):
    path = tmp_path / name
    path.write_bytes(data)
    assert outcomes(path) == [(f"{name}:{line}", reason) for line, reason in expected]


@pytest.mark.parametrize("share", [1, 10, 100])
def test_wrongly_decoded_text_is_no_matter_of_reading(share, tmp_path):
    texts = ["為什麼" if n % 100 >= share else "ç‚ºä»€éº¼" for n in range(100)]
    path = tmp_path / "x.jsonl"
    path.write_bytes(b"\n".join(map(obj, texts)))
    assert reasons(path) == [""] * 100


def test_a_gzip_file_named_jsonl_is_read(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_bytes(gzip.compress(GOOD * 3))
    assert reasons(path) == [""] * 3


def test_a_line_of_100_mb_spoils_only_itself(tmp_path):
    path = tmp_path / "x.jsonl"
    with path.open("wb") as file:
        file.write(GOOD + b'{"question": "')
        file.writelines([b"x" * MIB] * 100)
        file.write(b'"}\n' + GOOD)
    assert reasons(path) == ["", "line longer than 64 MiB", ""]
    (tmp_path / "x.csv").write_bytes(HEAD + b"q,a\nq," + b"x" * 65 * MIB + b"\nq,a\n")
    assert reasons(tmp_path / "x.csv") == ["", "line longer than 64 MiB", ""]


def test_a_quote_that_is_never_closed_swallows_no_row_of_a_large_file(tmp_path):
    path = tmp_path / "x.csv"
    row = b"q," + b"x" * MIB + b"\n"
    path.write_bytes(HEAD + b'q,"a\n' + row * 65)
    assert reasons(path) == ["broken quoting"] + [""] * 65


def test_damage_in_the_middle_names_the_last_row_before_it(tmp_path):
    rng = random.Random(1)
    lines = [obj(f"{number} {rng.random()}") for number in range(20_000)]
    packed = bytearray(gzip.compress(b"\n".join(lines)))
    packed[len(packed) // 2 :] = b"\xff" * (len(packed) // 2)
    path = tmp_path / "x.jsonl.gz"
    path.write_bytes(packed)
    with pytest.raises(
        UserError, match=r"x\.jsonl\.gz: cannot be read after x\.jsonl\.gz:\d{4,}: "
    ):
        outcomes(path)


def test_there_are_at_least_120_bad_files():
    assert len(LINES) + 2 * len(ROWS) + len(FILES) + len(TABLES) >= 120


@pytest.mark.parametrize(
    "name", ["x.jsonl", "x.json", "x.csv", "x.parquet", "x.arrow", "x.jsonl.gz"]
)
def test_a_file_cut_anywhere_gives_its_first_rows_or_an_error(name, tmp_path):
    table = pyarrow.table({key: values[:9] for key, values in QA_COLUMNS.items()})
    rows = table.to_pylist()
    text = io.StringIO()
    csv.writer(text).writerows([QA_COLUMNS, *([*row.values()] for row in rows)])
    data = {
        "x.json": json.dumps(rows).encode(),
        "x.csv": text.getvalue().encode(),
        "x.parquet": parquet(table.to_pydict()),
        "x.arrow": arrow(table.to_pydict()),
    }.get(name, b"\n".join(json.dumps(row).encode() for row in rows))
    data = gzip.compress(data) if name.endswith(".gz") else data
    seen = Counter()
    for size in range(0, len(data), max(1, len(data) // 150)):
        path = tmp_path / name
        path.write_bytes(data[:size])
        found = []
        try:
            found += containers.read(path, root=tmp_path)
        except UserError:
            seen["refused"] += 1
        num_whole = sum(isinstance(row, containers.RawRow) for row in found)
        # The last cell of CSV may be cut and nobody can know.
        sound = num_whole - (name == "x.csv" and num_whole > 0)
        assert [row.values for row in found[:sound]] == rows[:sound]
        assert len(found) - num_whole <= 1
        seen["rows"] += num_whole
    assert seen["refused"] or name == "x.csv"
    assert seen["rows"] or name in ("x.parquet", "x.arrow", "x.jsonl.gz", "x.json")


WORDS = [
    "q", "a", "為什麼", "", " ", "\n", "\0", "\ud800", "😀", "\u200b", "<|im_end|>", "<think>",
    "x" * 3000, "{}", "[]", '[{"role": "user", "content": "q"}]', '{"name": "f"}', "NaN",
]  # fmt: skip
NAMES = [
    "question", "answer", "prompt", "response", "instruction", "input", "output", "system",
    "history", "text", "content", "messages", "conversations", "chosen", "rejected", "tools",
    "reasoning", "answer_zh", "answer_en", "role", "from", "value", "completion", "為", "",
]  # fmt: skip
ROLES = ["user", "assistant", "system", "tool", "human", "gpt", "User", "tool_call", "x", None]


def any_value(rng, depth=0):
    kind = rng.randrange(14 if depth < 3 else 10)
    if kind < 6:
        return rng.choice(WORDS)
    if kind < 10:
        return rng.choice([None, True, 0, -7, 2.5, 10**30, float("nan"), float("inf")])
    if kind < 12:
        return [any_value(rng, depth + 1) for _ in range(rng.randrange(4))]
    return {rng.choice(NAMES): any_value(rng, depth + 1) for _ in range(rng.randrange(4))}


def any_turn(rng):
    role, content = rng.choice([("role", "content"), ("from", "value")])
    turn = {role: rng.choice(ROLES), content: rng.choice(WORDS[:3])}
    if rng.random() < 0.2:
        extra = ["tool_calls", "train", "weight", "function_call", "content", "reasoning_content"]
        turn[rng.choice(extra)] = any_value(rng)
    return turn


def any_row(rng, sound):
    """A sound row, mostly changed."""
    row = dict(sound)
    if rng.random() < 0.2:
        turns = [any_turn(rng) for _ in range(rng.randrange(6))]
        row[rng.choice(["messages", "conversations", "chosen", "prompt"])] = turns
    for _ in range(rng.choice([0, 0, 1, 1, 2, 4])):
        row[rng.choice([*NAMES, *row])] = any_value(rng)
    return row


def any_line(rng, sound):
    """A row as a line, sometimes damaged; never empty, and one line."""
    text = json.dumps(any_row(rng, sound), ensure_ascii=rng.random() < 0.5)
    line = text.encode("utf-8", "surrogatepass")
    damage = rng.random()
    if damage < 0.05:
        line = line[: rng.randrange(1, len(line) + 1)]
    elif damage < 0.1:
        line = line + rng.choice([b",", line, b" x", b"\0"])
    elif damage < 0.15:
        place = rng.randrange(len(line))
        line = line[:place] + rng.choice([b"\0", b'"', b"\\", b"{", b"\xff"]) + line[place + 1 :]
    return line


def test_10000_made_up_records_are_all_accounted_for(tmp_path):
    rng = random.Random(20260101)
    seen = Counter()
    for number in range(100):
        sound = rng.choice([*SOUND.values()])
        lines = [any_line(rng, sound) for _ in range(100)]
        path = tmp_path / f"{number}.jsonl"
        path.write_bytes(b"\n".join(lines))
        found = outcomes(path)
        assert len(found) == len(lines), f"seed 20260101, file {number}"
        seen.update(reason for _, reason in found)
    assert seen.total() == 10_000
    # The records are worth something only if they come to all ends.
    assert 2000 < seen[""] < 8000
    assert len(seen) > 40


def test_1000_made_up_rows_mean_something_or_nothing_in_every_format():
    rng = random.Random(20260102)
    seen = Counter()
    for _ in range(1000):
        row = any_row(rng, rng.choice([*SOUND.values()]))
        for row_format in formats.FORMATS:
            columns = {rng.choice(["system", "group", "input"]): rng.choice(NAMES)}
            assert formats.detect(row, columns) in {None, *formats.FORMATS}
            try:
                formats.convert(row, row_format, rng.choice([{}, columns]), TAGS)
                seen[row_format] += 1
            except Fault as fault:
                seen[fault.reason] += 1
    assert seen.total() == 1000 * len(formats.FORMATS)
    assert all(seen[row_format] > 20 for row_format in formats.FORMATS)


def test_made_up_rows_come_the_same_from_every_container(tmp_path):
    rng = random.Random(20260103)
    texts = [json.dumps(any_row(rng, rng.choice([*SOUND.values()]))) for _ in range(300)]
    sound = [text for text in texts if "\\ud800" not in text]
    rows = [json.loads(text, parse_constant=lambda _: None) for text in sound]
    (tmp_path / "x.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "y.json").write_text(json.dumps(rows, ensure_ascii=False, indent=1))
    (tmp_path / "z.json.gz").write_bytes(gzip.compress(json.dumps({"rows": rows}).encode()))
    for path in tmp_path.iterdir():
        assert [row.values for row in containers.read(path, root=tmp_path)] == rows
