import csv
import gzip
import io
import itertools
import json
import tracemalloc

import pyarrow
import pyarrow.parquet
import pytest

from siftune.data import containers, csv_rows, text_rows
from siftune.stage import UserError

ROWS = [{"question": '為什麼\n"x"', "answer": "a, b"}, {"question": "q\t2", "answer": ""}]


def to_csv(rows, delimiter=","):
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, rows[0], delimiter=delimiter)
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def to_arrow(rows, new=pyarrow.ipc.new_file):
    table = pyarrow.Table.from_pylist(rows)
    sink = io.BytesIO()
    with new(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue()


def to_parquet(rows):
    sink = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), sink)
    return sink.getvalue()


def to_zstd(data):
    sink = pyarrow.BufferOutputStream()
    with pyarrow.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(data)
    return sink.getvalue().to_pybytes()


def lines(rows, **options):
    return "\n".join(json.dumps(row, **options) for row in rows).encode()


FILES = {
    "lines.jsonl": lines(ROWS),
    "crlf.ndjson": lines(ROWS, ensure_ascii=False).replace(b"\n", b"\r\n") + b"\r\n",
    "bom.jsonl": b"\xef\xbb\xbf" + lines(ROWS),
    "array.json": json.dumps(ROWS).encode(),
    "pretty.json": b"\n\n" + json.dumps(ROWS, indent=2, ensure_ascii=False).encode(),
    "wrapped.json": json.dumps({"version": 1, "data": ROWS, "tags": ["a"]}).encode(),
    "wrapped-pretty.json": json.dumps({"data": ROWS}, indent=1).encode(),
    "misnamed.json": b"\n" + lines(ROWS),
    "table.csv": to_csv(ROWS),
    "table.tsv": to_csv(ROWS, "\t"),
    "table.parquet": to_parquet(ROWS),
    "file.arrow": to_arrow(ROWS),
    "stream.arrow": to_arrow(ROWS, pyarrow.ipc.new_stream),
}


def write(folder, **files):
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return folder


def read(path, data):
    path.write_bytes(data)
    return list(containers.read(path, root=path.parent))


@pytest.mark.parametrize("compress", [bytes, gzip.compress, to_zstd], ids=["plain", "gz", "zst"])
@pytest.mark.parametrize("name", FILES)
def test_every_kind_of_file_has_the_same_rows(name, compress, tmp_path):
    ending = {gzip.compress: ".gz", to_zstd: ".zst"}.get(compress, "")
    rows = read(tmp_path / f"{name}{ending}", compress(FILES[name]))
    assert [row.values for row in rows] == ROWS


def test_bytes_and_not_the_ending_tell_compression(tmp_path):
    assert len(read(tmp_path / "a.jsonl", gzip.compress(lines(ROWS)))) == 2
    assert len(read(tmp_path / "a.jsonl.gz", lines(ROWS))) == 2
    assert len(read(tmp_path / "two.jsonl.gz", gzip.compress(lines(ROWS) + b"\n") * 2)) == 4


@pytest.mark.parametrize(
    ("name", "data", "places"),
    [
        ("a.jsonl", b'{"a": 1}\n\n  \r\n{"a": 2}\n{"a": 3}', [":1", ":4", ":5"]),
        ("a.json", b'\n\n{"a": 1}\n\n{"a": 2}\n', [":3", ":5"]),
        ("a.json", b'[\n{"a": 1},\n{"a": 2}]', ["#1", "#2"]),
        ("a.csv", b'a,b\n"1\n2",3\n\n4,5\n', [":2", ":5"]),
        ("a.parquet", to_parquet(ROWS), ["#1", "#2"]),
        ("a.txt", b"\n\nall of it\n\nis one row\n", [":1"]),
    ],
)
def test_places_are_lines_or_rows_from_1(name, data, places, tmp_path):
    assert [row.place for row in read(tmp_path / name, data)] == [name + place for place in places]


def test_places_name_the_file_below_the_root(tmp_path):
    (tmp_path / "sub").mkdir()
    path = tmp_path / "sub" / "a.jsonl"
    path.write_bytes(lines(ROWS))
    first = next(containers.read(path, root=tmp_path))
    assert first.place == "sub/a.jsonl:1"
    assert next(containers.read(path, root=path)).place == "a.jsonl:1"


@pytest.mark.parametrize(
    "row",
    [
        {"question": "q", "answer": "a", "history": [["q", "a"]], "tags": ["x"]},
        {"messages": [{"role": "user", "content": "q"}], "id": 1},
        {"conversations": [{"from": "human", "value": "q"}]},
    ],
)
@pytest.mark.parametrize("indent", [None, 2])
def test_a_json_file_of_one_object_is_one_row(row, indent, tmp_path):
    (found,) = read(tmp_path / "a.json", json.dumps(row, indent=indent).encode())
    assert found == (row, "a.json#1")


def test_an_element_may_not_be_larger_than_memory(tmp_path, monkeypatch):
    monkeypatch.setattr("siftune.data.strict_json.LIMIT", 5 * 2**20)
    assert len(read(tmp_path / "a.json", b'["' + b"x" * 2**22 + b'", 1]')) == 2
    with pytest.raises(UserError, match=r"a\.json:1: not JSON: a value of over 5 MiB, column 2\."):
        read(tmp_path / "a.json", b'["' + b"x" * 2**24 + b'", 1]')
    with pytest.raises(UserError, match=r"a\.json:1: not JSON: Expecting value, column 8\."):
        read(tmp_path / "a.json", b'[{"a": b, "c": "' + b"x" * 2**24 + b'"}]')


def test_a_bad_element_of_an_array_spoils_only_itself(tmp_path):
    data = b'[{"a": 1}, {"a": NaN}, 7, {"a": "\xe9"}, {"a": 1, "a": 2}, {"a": "\\udc00"}, {"a": 2}]'
    found = read(tmp_path / "a.json", data)
    assert [row.place for row in found] == [f"a.json#{number}" for number in range(1, 8)]
    assert [getattr(row, "fault", None) and row.fault.reason for row in found] == [
        None, "NaN or Infinity", "not a JSON object", "not UTF-8", "key twice in one object",
        "lone surrogate", None,
    ]  # fmt: skip
    assert found[3].text == '{"a": "�"}'


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64])
def test_json_is_the_same_in_chunks_of_any_size(size, tmp_path, monkeypatch):
    rows = [{"為": ["é😀" * 3, -1.5e3, None, True, {}], "b": number} for number in range(9)]
    data = json.dumps({"n": 12, "data": rows}, ensure_ascii=False, indent=1).encode()
    monkeypatch.setattr(text_rows, "_CHUNK", size)
    monkeypatch.setattr("siftune.data.strict_json._CHUNK", 1)
    assert [row.values for row in read(tmp_path / "a.json", data)] == rows
    with pytest.raises(UserError, match=rf"a\.json:{data.count(10) + 1}: .* column 2\."):
        read(tmp_path / "a.json", data[:-1] + b"}x")
    with pytest.raises(UserError, match=r"a\.json:2: .* column 12\."):
        read(tmp_path / "a.json", b'\n[{"a": 1}, x]')


class Endless(io.RawIOBase):
    """A file that repeats itself for ever."""

    def __init__(self, head, again):
        self.parts = itertools.chain([head], itertools.repeat(again))
        self.rest = b""

    def readable(self):
        return True

    def readinto(self, buffer):
        data = self.rest or next(self.parts)
        size = min(len(buffer), len(data))
        buffer[:size], self.rest = data[:size], data[size:]
        return size


@pytest.mark.parametrize(
    ("reader", "head", "again"),
    [
        (text_rows.json_lines, b"\n", b'{"text": "%s"}\n'),
        (text_rows.json_rows, b'{"a": 1}\n', b'{"text": "%s"}\n'),
        (text_rows.json_rows, b"[{}", b',{"text": "%s"}'),
        (text_rows.json_rows, b'{"version": 1, "data": [{}', b',\n{"text": "%s"}'),
        (csv_rows.comma_separated, b"a,text\n", b'1,"te\nxt%s"\n'),
        (text_rows.passages, b"\n", b"A paragraph.\nOf %s lines.\n\n"),
        (text_rows.passages, b"\n", b"No paragraphs.%s\n"),
    ],
)
def test_a_file_is_never_held_in_memory(reader, head, again):
    file = io.BufferedReader(Endless(head, again % (b"x" * 10_000)), 2**16)
    num_characters = 0
    tracemalloc.start()
    for found in reader(file, "a"):
        num_characters += len(found.values.get("text", ""))
        if num_characters > 30e6:
            break
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8e6


def test_a_long_text_becomes_rows_of_whole_paragraphs(tmp_path):
    paragraphs = [f"{number} " + "word " * 2000 + "\r\nend\r\n\r\n" for number in range(150)]
    data = "".join(paragraphs).encode()
    rows = read(tmp_path / "a.txt", data)
    texts = [row.values["text"] for row in rows]
    assert "".join(texts) == data.decode().replace("\r\n", "\n")
    assert all(text.endswith("end\n\n") for text in texts)
    assert max(map(len, texts)) < 120_000
    assert rows[1].place == f"a.txt:{3 * texts[0].count('end') + 1}"
    assert len(read(tmp_path / "b.md", data[:900_000])) == 1


def test_an_empty_text_in_a_folder_of_texts_is_counted(tmp_path):
    (row,) = read(tmp_path / "a.txt", b" \n")
    assert row.fault.reason == "empty file"


def test_what_json_cannot_hold_comes_as_text_or_null(tmp_path):
    import datetime
    import decimal

    row = {
        "day": datetime.date(2026, 1, 2),
        "price": decimal.Decimal("1.50"),
        "bytes": "為".encode(),
        "score": float("nan"),
        "nested": [{"share": float("inf"), "label": "x", "n": 1.5}],
    }
    (found,) = read(tmp_path / "a.parquet", to_parquet([row]))
    assert found.values == {
        "day": "2026-01-02", "price": "1.50", "bytes": "為", "score": None,
        "nested": [{"share": None, "label": "x", "n": 1.5}],
    }  # fmt: skip
    json.dumps(found.values, allow_nan=False)


def test_a_parquet_row_that_is_not_utf8_spoils_only_itself(tmp_path):
    data = to_parquet([{"a": "good"}, {"a": "b\xe9d"}, {"a": "fine"}])
    damaged = data.replace("b\xe9d".encode(), b"b\xff\xfed")
    assert damaged != data
    found = read(tmp_path / "a.parquet", damaged)
    assert [getattr(row, "fault", None) and row.fault.reason for row in found] == [
        None, "not UTF-8", None,
    ]  # fmt: skip


def test_find_takes_data_and_leaves_what_tells_about_it(tmp_path):
    names = ["b/train.jsonl", "a.JSONL.gz", "b/c/d.parquet", "x.arrow"]
    other = [
        ".cache/x.jsonl", "b/.x.jsonl", "README.md", "b/LICENSE.txt", "notes.txt", "state.json",
        "dataset_info.json", "cache-12.arrow", "x.py", "x.jsonl.bak",
    ]  # fmt: skip
    write(tmp_path, **dict.fromkeys(names + other, b"x"))
    found = [path.relative_to(tmp_path).as_posix() for path in containers.find(tmp_path, "**")]
    assert found == sorted(names)
    assert [path.name for path in containers.find(tmp_path, "b/*.jsonl")] == ["train.jsonl"]
    assert [path.name for path in containers.find(tmp_path, "**/*.txt")] == ["notes.txt"]
    assert containers.find(tmp_path / "x.arrow", "ignored") == [tmp_path / "x.arrow"]


@pytest.mark.parametrize(
    ("where", "pattern", "message"),
    [
        (".", "*.jsonl", r"data\.sources\.files: '\*\.jsonl' finds no .* Valid: \.jsonl, .*\.zst"),
        (".", "../*", r"data\.sources\.files: '\.\./\*' must be a pattern below"),
        (".", "/etc/*", r"data\.sources\.files: '/etc/\*' must be a pattern below"),
        (".", "", r"data\.sources\.files: '' must be a pattern"),
        (".", "a**b/*", r"data\.sources\.files"),
        ("none", "**", r"data\.path: .*none is neither a file nor a folder"),
        ("x.py", "**", r"data\.path: .*x\.py ends in none of \.jsonl"),
    ],
)
def test_find_says_what_is_wrong(where, pattern, message, tmp_path):
    write(tmp_path, **{"x.py": b""})
    with pytest.raises(UserError, match=message):
        containers.find(tmp_path / where, pattern)


def test_links_stay_below_the_root(tmp_path):
    write(tmp_path, **{"data/a.jsonl": b"{}", "secret.jsonl": b"{}"})
    (tmp_path / "data" / "inside.jsonl").symlink_to("a.jsonl")
    assert len(containers.find(tmp_path / "data", "**")) == 2
    (tmp_path / "data" / "outside.jsonl").symlink_to(tmp_path / "secret.jsonl")
    with pytest.raises(UserError, match=r"outside\.jsonl is a link to .*secret\.jsonl, outside of"):
        containers.find(tmp_path / "data", "**")
    (tmp_path / "data" / "outside.jsonl").unlink()
    (tmp_path / "data" / "outside.jsonl").symlink_to("nowhere.jsonl")
    with pytest.raises(UserError, match="a link to nothing"):
        containers.find(tmp_path / "data", "**")


@pytest.mark.parametrize(
    ("path", "split"),
    [
        ("training.jsonl", "train"),
        ("validation.jsonl", "validation"),
        ("test.jsonl.gz", "test"),
        ("data/train-00000-of-00001.parquet", "train"),
        ("Tang_testing_data.json", "test"),
        ("my.dev.csv", "validation"),
        ("VAL.json", "validation"),
        ("eval/part-1.json", "validation"),
        ("train/test.json", "test"),
        ("pretrain.json", None),
        ("latest.json", None),
        ("train-test.json", None),
        ("a.json", None),
    ],
)
def test_a_name_tells_the_split(path, split):
    assert containers.default_split(containers.Path(path)) == split
